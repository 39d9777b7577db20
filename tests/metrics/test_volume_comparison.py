import numpy as np
import pytest
import zarr

from noisy_objects import noisy_label_maps
from pixvox.data.volumes.open import open_volume
from pixvox.errors import DataError
from pixvox.metrics import volume_comparison
from pixvox.metrics.contingency import ContingencyCounter
from pixvox.metrics.volume_comparison import compare_volumes
from pixvox.metrics.volume_scores import volume_scores

SIZES = [(15, 22), (7, 9, 11)]


def whole(predicted, true, ignore=None, **options):
    counter = ContingencyCounter(**options)
    counter.add(predicted, true, ignore)
    return volume_scores([counter.table()], distance=2.0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("block", [4, 1000, None])
def test_blocks_equal_the_whole(size, block, monkeypatch):
    monkeypatch.setattr(volume_comparison, "BLOCK_VOXELS", 50)
    predicted, true = noisy_label_maps(0, size, 12)
    ignore = np.random.default_rng(1).random(size) < 0.1
    spacing = (2.0, 0.5, 1.0)[-len(size) :]
    scores = compare_volumes(
        predicted, true, ignore.astype(np.uint8), ignore_ids=(3,), spacing=spacing, distance=2.0, block=block
    )
    assert scores == whole(predicted, true, ignore, spacing=spacing, ignore_ids=(3,))


def test_files_are_compared_by_what_they_say(tmp_path):
    """Chunks that a store leaves out, as zarr does with empty ones, are background; spacing is the truth's."""
    predicted, true = noisy_label_maps(0, (7, 9, 11), 12)
    predicted[:4, :4, :4] = 0
    stored = zarr.create_array(
        tmp_path / "found.zarr", shape=true.shape, chunks=(4, 4, 4), dtype="uint64", fill_value=0
    )
    stored[:] = predicted
    np.save(tmp_path / "true.npy", true)
    assert not (tmp_path / "found.zarr" / "c" / "0" / "0" / "0").exists()
    scores = compare_volumes(
        tmp_path / "found.zarr", open_volume(tmp_path / "true.npy", axes="ZYX"), distance=2.0
    )
    assert scores == whole(predicted, true)
    true_volume = open_volume(true, spatial_dims=3)
    true_volume.spacing = (2.0, 0.5, 1.0)
    assert compare_volumes(predicted, true_volume, distance=2.0) == whole(
        predicted, true, spacing=(2.0, 0.5, 1.0)
    )


@pytest.mark.parametrize(
    ("size", "chunks", "block"),
    [
        ((64, 100, 100), [None, None], (10, 100, 100)),  # arrays: slices as long as they are
        ((64, 100, 100), [(16, 16, 16), None], (16, 48, 100)),  # whole chunks, several in a row
        ((64, 1000, 1000), [(1, 1000, 1000), None], (1, 1000, 1000)),  # pages
        ((64, 500, 500), [(1, 500, 500), (64, 64, 64)], (32, 32, 63)),  # too much together: cut
        ((5, 6), [(16, 16), (16, 16)], (5, 6)),
    ],
)
def test_blocks_are_whole_chunks_where_memory_allows(size, chunks, block, monkeypatch):
    monkeypatch.setattr(volume_comparison, "BLOCK_VOXELS", 100_000 if size[-1] < 1000 else 1_000_000)

    found = volume_comparison._block_size(size, chunks)
    assert np.prod(found) <= volume_comparison.BLOCK_VOXELS
    assert found == block


def test_wrong_volumes_are_named():
    labels = np.ones((4, 5, 6), dtype=int)
    with pytest.raises(DataError, match=r"these differ: array \(4, 5, 6\), array \(4, 5, 5\)"):
        compare_volumes(labels, labels[..., 1:])
    with pytest.raises(DataError, match="4 channels.*--axes ZYX"):
        compare_volumes(open_volume(labels, axes="CYX"), labels[0])
    with pytest.raises(
        DataError, match="a block has a length above 0 for each of the 3 axes.*got \\[2, 2\\]"
    ):
        compare_volumes(labels, labels, block=[2, 2])
    with pytest.raises(DataError, match="holds float64"):
        compare_volumes(labels * 0.5, labels)
