import numpy as np
import pytest

from pixvox.data.volumes.packed_crops import pack_crops, unpack_crops
from pixvox.errors import DataError


def test_any_numbers_of_32_bits_come_back_and_a_grid_costs_bits():
    random = np.random.default_rng(0)
    for count in (0, 1, 7):
        rows = random.integers(-(2**31), 2**31, (count, 5))
        assert np.array_equal(unpack_crops(pack_crops(rows)), rows)
    grid = np.stack(np.meshgrid(*[np.arange(0, 640, 16)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    assert len(pack_crops(np.column_stack([grid, grid[:, :2] % 7]))) < len(grid)


def test_a_number_that_is_too_large_and_a_damaged_blob_are_refused():
    with pytest.raises(DataError, match="take smaller crops"):
        pack_crops(np.array([[0, 0, 2**31, 0, 0]]))
    blob = pack_crops(np.ones((4, 5), dtype=np.int64))
    for wrong in (blob[:-3], b"", b"x" * 9):
        with pytest.raises(ValueError, match="packed crops"):
            unpack_crops(wrong)
