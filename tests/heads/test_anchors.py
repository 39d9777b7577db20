import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator as TorchvisionAnchors
from torchvision.models.detection.image_list import ImageList

from pixvox.heads.anchors import AnchorGenerator


def test_equals_torchvisions_rounded_anchors():
    sizes, ratios = ((16, 24), (32, 48)), (0.5, 1.0, 2.0)
    reference = TorchvisionAnchors(sizes, (ratios,) * 2)
    maps = [torch.zeros(1, 1, 13, 17), torch.zeros(1, 1, 7, 9)]
    (expected,) = reference(ImageList(torch.zeros(1, 3, 104, 136), [(104, 136)]), maps)
    ours = AnchorGenerator(sizes, ratios, rounded=True)([(13, 17), (7, 9)], (104, 136), "cpu")
    assert torch.equal(torch.cat(ours), expected)


def test_ratios_keep_area_and_volume():
    flat = AnchorGenerator([[8.0]], (0.5, 1.0, 2.0)).cell_anchors(0, 2)
    assert torch.allclose((flat[:, 2:] - flat[:, :2]).prod(1), torch.tensor(64.0))
    deep = AnchorGenerator([[8.0]], (0.5, 2.0), (0.5, 1.0, 3.0)).cell_anchors(0, 3)
    assert len(deep) == 6
    assert torch.allclose((deep[:, 3:] - deep[:, :3]).prod(1), torch.tensor(512.0))


def test_anisotropy_shortens_the_depth_alone():
    cell = AnchorGenerator([[8.0]], (1.0,), anisotropy=0.5).cell_anchors(0, 3)
    assert (cell[0, 3:] - cell[0, :3]).tolist() == [8, 8, 4]


def test_positions_run_with_x_fastest():
    anchors = AnchorGenerator([[2.0]], (1.0,))([(2, 1, 3)], (8, 4, 6), "cpu")[0]
    centres = (anchors[:, :3] + anchors[:, 3:]) / 2
    assert centres.tolist() == [[0, 0, 0], [2, 0, 0], [4, 0, 0], [0, 0, 4], [2, 0, 4], [4, 0, 4]]


def test_another_number_of_levels_is_refused():
    with pytest.raises(ValueError, match="2 levels of features but anchor sizes for 1"):
        AnchorGenerator([[8.0]])([(4, 4), (2, 2)], (16, 16), "cpu")
