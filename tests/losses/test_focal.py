import pytest
import torch
from monai.losses import FocalLoss

from pixvox.losses.cross_entropy import CrossEntropy
from pixvox.losses.focal import Focal


@pytest.mark.parametrize("size", [(5, 7), (3, 5, 4)])
@pytest.mark.parametrize("weights", [None, [0.25, 2.0, 1.0]])
def test_equals_monais_over_a_softmax(size, weights):
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, *size, requires_grad=True), torch.randint(0, 3, (2, *size))
    reference = FocalLoss(to_onehot_y=True, use_softmax=True, gamma=2.0, weight=weights, reduction="none")
    total = labels.numel() if weights is None else torch.tensor(weights)[labels].sum()
    expected = reference(logits, labels[:, None]).sum() / total
    ours = Focal(gamma=2.0, class_weights=weights)(logits, labels)
    assert torch.allclose(ours, expected, rtol=1e-5)
    slopes = [torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (ours, expected)]
    assert torch.allclose(*slopes, atol=1e-7)


def test_gamma_zero_is_cross_entropy():
    logits, labels = torch.randn(2, 3, 5, 7), torch.randint(0, 3, (2, 5, 7))
    for weights in (None, [0.25, 2.0, 1.0]):
        expected = CrossEntropy(class_weights=weights)(logits, labels)
        assert torch.allclose(Focal(gamma=0.0, class_weights=weights)(logits, labels), expected)


def test_more_ignored_pixels_do_not_dilute_the_mean():
    logits, labels = torch.randn(1, 3, 4, 5), torch.randint(0, 3, (1, 4, 5))
    padded = torch.cat([labels, torch.full((1, 40, 5), 255)], dim=1)
    larger = torch.cat([logits, torch.randn(1, 3, 40, 5)], dim=2)
    assert torch.allclose(Focal()(larger, padded), Focal()(logits, labels))


def test_a_negative_gamma_is_refused():
    with pytest.raises(ValueError, match="gamma must be at least 0, got -1"):
        Focal(gamma=-1.0)
