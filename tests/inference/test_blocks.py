"""Blocks fill a volume once, and each window shows its block and the margin around it."""

import numpy as np
import pytest

from pixvox.errors import ConfigError
from pixvox.inference.blocks import Blocks, intersection, within


def _random_layouts():
    random = np.random.default_rng(0)
    for _ in range(200):
        dims = int(random.integers(1, 4))
        size, tile = (tuple(random.integers(1, most, dims).tolist()) for most in (60, 40))
        divisor = tuple((2 ** random.integers(0, 4, dims)).tolist())
        yield Blocks(size, tile, float(random.uniform(0, 0.5)), divisor)


def test_each_voxel_belongs_to_one_block_and_lies_in_its_window():
    for blocks in _random_layouts():
        if len(blocks) > 3000:
            continue
        seen = np.zeros(blocks.size, dtype=np.uint8)
        for block in blocks:
            seen[block.core] += 1
            for core, kept, window, axis in zip(
                block.core, block.kept, block.window, blocks.axes, strict=True
            ):
                assert window.start <= kept.start <= core.start < core.stop <= kept.stop <= window.stop
                assert kept.start in (0, core.start - axis.margin)
                assert kept.stop in (axis.size, core.stop + axis.margin)
                assert window.stop - window.start <= axis.tile
        assert (seen == 1).all()


def test_windows_begin_at_multiples_of_the_divisor_and_have_the_length_of_the_tile():
    blocks = Blocks((200, 90), (64, 128), 0.25, divisor=(16, 16))
    assert blocks.margin == (16, 0)
    assert all(block.window[0].start % 16 == 0 for block in blocks)
    assert {block.window[0].stop - block.window[0].start for block in blocks} <= {64, 56}
    assert all(block.window[1] == slice(0, 90) for block in blocks)


def test_neighbours_are_those_that_share_what_they_keep():
    blocks = Blocks((30, 40, 20), (16, 16, 16), 0.25)
    for block in blocks:
        near = {other.number for other in blocks.neighbours(block)}
        reached = {other.number for other in blocks if intersection(block.kept, other.core)} - {block.number}
        assert reached == near


def test_blocks_are_numbered_by_place():
    blocks = Blocks((30, 40), (16, 16), 0.25)
    assert [block.number for block in blocks] == list(range(len(blocks)))
    behind = blocks.next_along(blocks[0], axis=0)
    assert behind is not None
    assert behind.place == (1, 0)
    assert blocks.next_along(blocks[len(blocks) - 1], axis=1) is None


def test_a_place_shared_by_two_blocks_lies_on_both_sides_of_their_border():
    blocks = Blocks((40, 16), (16, 16), 0.25)
    first, second = blocks[0], blocks[1]
    shared = blocks.shared(first, second)
    border, margin = first.core[0].stop, blocks.margin[0]
    assert shared[0] == slice(border - margin, border + margin)
    assert within(shared, second.kept)[0].start == 0


@pytest.mark.parametrize("overlap", [-0.1, 0.6])
def test_an_overlap_beyond_half_is_refused(overlap):
    with pytest.raises(ConfigError, match=r"in \[0, 0.5\]"):
        Blocks((40, 40), (16, 16), overlap)


def test_a_tile_without_length_is_refused():
    with pytest.raises(ConfigError, match="at least 1"):
        Blocks((40, 40), (16, 0))
