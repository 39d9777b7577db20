import numpy as np
import pytest
import torch

from pixvox.data.sample import intensity_range
from pixvox.data.volumes.ome_zarr import create_ome_zarr
from pixvox.data.volumes.open import open_volume
from pixvox.inference import windows
from pixvox.inference.windows import volume_range

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("size", [(9, 70, 50), (130, 110)])
def test_the_range_of_a_volume_in_parts_is_that_of_the_whole(tmp_path, monkeypatch, size):
    values = RNG.integers(0, 60_000, size).astype(np.uint16)
    array = create_ome_zarr(tmp_path / "v.ome.zarr", size, np.uint16, (4, 16, 16)[-len(size) :])
    array[:] = values
    monkeypatch.setattr(windows, "_PART", 1500)
    read = []
    finite = windows._finite_window
    monkeypatch.setattr(windows, "_finite_window", lambda *given: read.append(given[1]) or finite(*given))
    for most in (250_000, 1000):  # all elements, and some of them
        monkeypatch.setattr(
            windows, "subsample_step", lambda elements, most=most: max(1, elements // most) | 1
        )
        found = volume_range(open_volume(tmp_path / "v.ome.zarr"), 1)
        expected = intensity_range(values[None].astype(np.float32), max_elements=most)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert max(np.prod([part.stop - part.start for part in region]) for region in read) <= 1500


def test_a_large_volume_is_looked_at_here_and_there(monkeypatch):
    values = RNG.normal(100, 10, (2, 40, 80, 60)).astype(np.float32)
    values[1] *= 2
    values[0, 5, 5, 5] = np.nan
    monkeypatch.setattr(windows, "_SEEN", 2**14)
    found = volume_range(open_volume(values, axes="CZYX"), 2)
    expected = intensity_range(np.nan_to_num(values, nan=100))
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0)
