import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import sigmoid_focal_loss

from pixvox.losses.query_masks import mask_losses


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("focal", [False, True])
def test_losses_are_means_over_the_points_that_count(focal, weighted):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 20, generator=generator) * 3
    true = (torch.rand(3, 20, generator=generator) > 0.5).float()
    weight = (torch.rand(3, 20, generator=generator) > 0.4).float() if weighted else None
    mask, dice = mask_losses(logits, true, weight, focal)
    expected_mask = expected_dice = torch.zeros(())
    for i in range(3):
        kept = slice(None) if weight is None else weight[i] > 0
        x, t = logits[i, kept], true[i, kept]
        if focal:
            expected_mask = expected_mask + sigmoid_focal_loss(x, t, 0.25, 2.0, "mean")
        else:
            expected_mask = expected_mask + F.binary_cross_entropy_with_logits(x, t)
        p = x.sigmoid()
        expected_dice = expected_dice + 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)
    torch.testing.assert_close(mask, expected_mask)
    torch.testing.assert_close(dice, expected_dice)


def test_a_mask_without_a_known_point_teaches_nothing():
    logits = torch.randn(2, 5, requires_grad=True)
    mask, dice = mask_losses(logits, torch.ones(2, 5), torch.tensor([[0.0] * 5, [1.0] * 5]))
    (mask + dice).backward()
    assert logits.grad[0].abs().sum() == 0
    assert logits.grad[1].abs().sum() > 0
