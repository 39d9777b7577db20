import numpy as np
import pytest

from pixvox.data.fingerprint import Fingerprint
from pixvox.data.metadata import Metadata
from pixvox.heads.decoupled_solo import DecoupledSOLO
from pixvox.heads.solo import SOLO

STRIDES = {2: [[4, 4], [8, 8]], 3: [[1, 4, 4], [2, 8, 8]]}


def suggested(head, dims, sides, counts=(20,), patch=128):
    facts = Fingerprint(
        Metadata("instance", dims, ("cell",), 1),
        num_images=10,
        image_sizes=np.full((len(counts), dims), 64),
        objects_per_image=np.array(counts),
        object_sides=np.array(sides, dtype=float),
    )
    found = head.suggest(facts, {}, STRIDES[dims], (patch,) * dims)
    assert all(suggestion.read and suggestion.why for suggestion in found)
    return {suggestion.key: suggestion.value for suggestion in found}


def test_two_cells_lie_along_a_small_object_of_each_level():
    # Objects up to 24 x 4 pixels belong to the finer level, those from 6 x 8 to the other as well.
    assert suggested(SOLO, 2, [[16, 32]] * 20)["num_grids"] == [[16, 8], [36, 36]]
    assert suggested(SOLO, 2, [[64, 64]] * 20)["num_grids"] == [[4, 4], [4, 4]]


@pytest.mark.parametrize(("head", "most"), [(SOLO, (40, 12)), (DecoupledSOLO, (64, 24))])
def test_grids_stay_in_bounds(head, most):
    for dims in (2, 3):
        assert suggested(head, dims, [[2] * dims] * 9)["num_grids"][0] == [most[dims - 2]] * dims


def test_crowds_get_more_candidates():
    assert "num_candidates" not in suggested(SOLO, 2, [[9, 9]], counts=[100])
    assert suggested(SOLO, 2, [[9, 9]], counts=[900])["num_candidates"] == 3600


def test_no_object_suggests_nothing():
    assert suggested(SOLO, 2, np.zeros((0, 2))) == {}
