import numpy as np
import pytest
import tifffile

from pixvox.data.volumes.ome_zarr import build_pyramid, create_ome_zarr
from pixvox.data.volumes.open import open_level, open_volume
from pixvox.data.volumes.volume import Volume
from pixvox.errors import DataError
from pixvox.visualization import thinning
from pixvox.visualization.thinning import steps_for, sufficient_level, thinned

RNG = np.random.default_rng(0)


@pytest.fixture
def reads(monkeypatch):
    """Note how many values each read asked for."""
    sizes, plain = [], Volume.read

    def noted(self, region):
        block = plain(self, region)
        sizes.append(block.size)
        return block

    monkeypatch.setattr(Volume, "read", noted)
    return sizes


@pytest.mark.parametrize("block_bytes", [1, 700, 2**20])
@pytest.mark.parametrize(
    ("size", "chunks", "steps"),
    [
        ((13, 20, 31), (4, 8, 8), (3, 1, 5)),
        ((13, 20, 31), (4, 8, 8), (1, 2, 2)),
        ((50, 31), (16, 16), (7, 3)),
    ],
)
def test_every_few_voxels_are_the_same_however_they_are_read(
    tmp_path, monkeypatch, reads, size, chunks, steps, block_bytes
):
    monkeypatch.setattr(thinning, "BLOCK_BYTES", block_bytes)
    values = RNG.integers(0, 60_000, (2, *size), dtype=np.uint16)
    array = create_ome_zarr(tmp_path / "a.ome.zarr", size, np.uint16, chunks, channels=2)
    array[:] = values
    expected = values[(slice(None), *(slice(None, None, step) for step in steps))]
    found = thinned(open_volume(tmp_path / "a.ome.zarr"), steps)
    assert found.dtype == np.uint16 and np.array_equal(found, expected)
    # One block of chunks at a time, or one chunk where that is more; rows of chunks may end short of the limit.
    assert max(reads) * 2 <= max(block_bytes, 2 * 2 * np.prod(chunks))
    in_memory = open_volume(values, axes="CZYX" if len(size) == 3 else "CYX")
    assert np.array_equal(thinned(in_memory, steps), expected)


def test_planes_between_those_that_are_shown_are_not_read(tmp_path, reads):
    values = RNG.integers(0, 255, (40, 30, 20), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack", metadata={"axes": "ZYX"})
    assert np.array_equal(thinned(open_volume(tmp_path / "a.tif"), (8, 1, 1))[0], values[::8])
    assert reads == [600] * 5


@pytest.mark.parametrize(
    ("steps", "level"), [((1, 1, 1), 0), ((1, 4, 4), 0), ((3, 3, 3), 1), ((4, 5, 4), 2), ((9, 9, 9), 2)]
)
def test_the_coarsest_level_that_suffices_is_read(tmp_path, reads, steps, level):
    values = RNG.integers(0, 1000, (37, 50, 61), dtype=np.uint16)
    create_ome_zarr(tmp_path / "a.ome.zarr", values.shape, np.uint16, (8, 8, 8), labels=True)[:] = values
    assert build_pyramid(tmp_path / "a.ome.zarr", smallest=16) == 3
    volume = open_volume(tmp_path / "a.ome.zarr")
    found, factors, number = sufficient_level(volume, steps)
    assert found.size == open_level(volume, level).size and factors == (2**level,) * 3 and number == level
    thin = thinned(volume, steps)[0]
    assert thin.shape == tuple(-(-n // step) for n, step in zip(values.shape, steps, strict=True))
    exactly = tuple(
        np.arange(0, n, step) // 2**level * 2**level for n, step in zip(values.shape, steps, strict=True)
    )
    assert np.array_equal(thin, values[np.ix_(*exactly)])
    assert sum(reads) <= found.size[0] * found.size[1] * found.size[2]


def test_other_levels_keep_axes_and_time(tmp_path):
    movie = RNG.integers(0, 255, (2, 8, 16, 20), dtype=np.uint8)
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as file:
        file.write(movie, subifds=1, metadata={"axes": "TZYX"}, photometric="minisblack", tile=(16, 16))
        file.write(movie[:, :, ::2, ::2], subfiletype=1, photometric="minisblack", tile=(16, 16))
    volume = open_volume(tmp_path / "a.ome.tif", time=1)
    coarse = open_level(volume, 1)
    assert np.array_equal(coarse.read((slice(None),) * 3)[0], movie[1, :, ::2, ::2])
    with pytest.raises(DataError, match="there is no level 2"):
        open_level(volume, 2)
    with pytest.raises(DataError, match="does not exist"):
        open_level(open_volume(movie[0], spatial_dims=3), 1)


def test_steps_are_the_smallest_that_fit():
    assert steps_for((128, 512, 513), (128, 512, 512)) == (1, 1, 2)
