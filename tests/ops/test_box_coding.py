import pytest
import torch
from torchvision.models.detection._utils import BoxCoder as TorchvisionCoder

from pixvox.ops import BoxCoder


def random_boxes(n: int, dims: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(n, dims, generator=generator) * 20
    return torch.cat([low, low + 1 + torch.rand(n, dims, generator=generator) * 15], dim=1)


def test_coding_equals_torchvision_in_2d():
    boxes, references = random_boxes(9, 2, 0), random_boxes(9, 2, 1)
    ours, theirs = BoxCoder((10.0, 5.0)), TorchvisionCoder((10.0, 10.0, 5.0, 5.0))
    codes = ours.encode(boxes, references)
    torch.testing.assert_close(codes, theirs.encode([boxes], [references])[0])
    wild = torch.randn(9, 3, 4, generator=torch.Generator().manual_seed(2)) * 40  # beyond the clip too
    expected = theirs.decode(wild.flatten(1), [references])
    torch.testing.assert_close(ours.decode(wild, references[:, None]), expected)


@pytest.mark.parametrize("dims", [2, 3])
def test_decoding_undoes_encoding(dims):
    boxes, references = random_boxes(9, dims, 0), random_boxes(9, dims, 1)
    coder = BoxCoder((3.0, 2.0))
    torch.testing.assert_close(coder.decode(coder.encode(boxes, references), references), boxes)


def test_axes_are_coded_alike_and_one_slice_is_neutral():
    boxes, references = random_boxes(9, 3, 0), random_boxes(9, 3, 1)
    order = [2, 0, 1, 5, 3, 4]
    coder = BoxCoder((10.0, 5.0))
    torch.testing.assert_close(
        coder.encode(boxes[:, order], references[:, order]), coder.encode(boxes, references)[:, order]
    )
    boxes[:, [2, 5]] = references[:, [2, 5]] = torch.tensor([0.0, 1.0])
    planar = coder.encode(boxes[:, [0, 1, 3, 4]], references[:, [0, 1, 3, 4]])
    torch.testing.assert_close(coder.encode(boxes, references)[:, [0, 1, 3, 4]], planar)
    assert coder.encode(boxes, references)[:, [2, 5]].abs().max() == 0


def test_weights_are_two_or_one_per_coordinate():
    boxes, references = random_boxes(3, 3, 0), random_boxes(3, 3, 1)
    full = BoxCoder((10.0, 10.0, 10.0, 5.0, 5.0, 5.0)).encode(boxes, references)
    torch.testing.assert_close(full, BoxCoder((10.0, 5.0)).encode(boxes, references))
    with pytest.raises(ValueError, match="got 3"):
        BoxCoder((1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match="4 weights do not fit boxes of 6"):
        BoxCoder((1.0, 1.0, 1.0, 1.0)).encode(boxes, references)


@pytest.mark.parametrize("dims", [2, 3])
def test_coding_passes_gradcheck(dims):
    boxes, references = random_boxes(3, dims, 0).double().requires_grad_(), random_boxes(3, dims, 1).double()
    coder = BoxCoder()
    assert torch.autograd.gradcheck(lambda b: coder.encode(b, references), boxes)
    assert torch.autograd.gradcheck(lambda c: coder.decode(c, references), boxes)
