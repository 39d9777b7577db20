"""What is kept of a block comes back, whole or piece by piece, and damage is told."""

import numpy as np
import pytest

from pixvox.errors import DataError
from pixvox.inference.blocks import Blocks
from pixvox.inference.tile_store import TileStore


@pytest.fixture
def blocks():
    return Blocks((30, 40, 21), (16, 16, 12), 0.3)


def _values(block, lead=(), seed=0):
    random = np.random.default_rng(seed)
    return random.integers(0, 500, (*lead, *block.size)).astype(np.uint16)


@pytest.mark.parametrize("lead", [(), (3,)])
def test_any_region_reads_as_it_was_saved(tmp_path, blocks, lead):
    store, random = TileStore(tmp_path, {}), np.random.default_rng(1)
    block = blocks.at((1, 1, 1))
    values = _values(block, lead)
    store.save(block, values)
    for _ in range(50):
        ends = [np.sort(random.choice(part.stop - part.start + 1, 2, replace=False)) for part in block.kept]
        region = tuple(slice(a + k.start, b + k.start) for (a, b), k in zip(ends, block.kept, strict=True))
        inner = tuple(slice(a, b) for a, b in ends)
        assert np.array_equal(store.read(block, region), values[(..., *inner)])


def test_a_place_shared_with_a_neighbour_is_read_without_the_rest(tmp_path, blocks):
    store, block = TileStore(tmp_path, {}), blocks.at((1, 1, 1))
    store.save(block, _values(block))
    shared = blocks.shared(block, blocks.next_along(block, 1))
    some = [place for place, _ in store.pieces(block, shared)]
    assert 3 * len(some) == len(list(store.pieces(block, block.kept)))
    assert all(place[1] == shared[1] for place in some)


def test_columns_come_back_with_their_types(tmp_path, blocks):
    store, block = TileStore(tmp_path, {}), blocks[0]
    store.save(block, _values(block), scores=np.float32([0.5, 1]), reaches=np.zeros((0, 3), np.int64))
    columns = store.columns(block)
    assert columns["scores"].tolist() == [0.5, 1.0]
    assert columns["scores"].dtype == np.float32
    assert columns["reaches"].shape == (0, 3)


def test_what_was_made_with_something_else_is_removed(tmp_path, blocks):
    TileStore(tmp_path, {"weights": 1}).save(blocks[0], _values(blocks[0]))
    same = TileStore(tmp_path, {"weights": 1})
    assert same.resumed
    assert same.has(blocks[0])
    other = TileStore(tmp_path, {"weights": 2})
    assert not other.resumed
    assert not other.has(blocks[0])


@pytest.mark.parametrize("place", [3, 40, -5])
def test_a_damaged_file_is_told_by_its_name(tmp_path, blocks, place):
    store, block = TileStore(tmp_path, {}), blocks[0]
    store.save(block, _values(block), scores=np.ones(3))
    path = tmp_path / "00000000.tile"
    content = bytearray(path.read_bytes())
    content[place] ^= 0xFF
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"00000000.tile.*damaged"):
        store.read(block, block.kept)


def test_a_cut_off_file_is_told(tmp_path, blocks):
    store, block = TileStore(tmp_path, {}), blocks[0]
    store.save(block, _values(block))
    path = tmp_path / "00000000.tile"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="damaged"):
        store.read(block, block.kept)


def test_removed_files_leave_no_folder(tmp_path, blocks):
    store = TileStore(tmp_path / "tiles", {})
    store.save(blocks[0], _values(blocks[0]))
    store.remove()
    assert not (tmp_path / "tiles").exists()
