import pytest
import torch
from monai.losses import GeneralizedDiceLoss

from pixvox.losses.generalized_dice import GeneralizedDice


@pytest.mark.parametrize("size", [(9, 8), (4, 6, 5)])
@pytest.mark.parametrize("include_background", [True, False])
def test_equals_monais_when_all_classes_are_present(size, include_background):
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 4, *size), torch.randint(0, 4, (2, *size))
    labels[labels == 3] *= torch.rand(int((labels == 3).sum())) < 0.2  # a rare class
    reference = GeneralizedDiceLoss(
        include_background, to_onehot_y=True, softmax=True, batch=True, smooth_nr=0.0, smooth_dr=1e-12
    )
    ours = GeneralizedDice(smooth=0.0, include_background=include_background)
    assert torch.allclose(ours(logits, labels), reference(logits, labels[:, None]), atol=1e-6)


def test_absent_classes_are_left_out_and_nothing_is_infinite():
    logits, labels = torch.randn(1, 5, 6, 7), torch.randint(0, 2, (1, 6, 7))
    probabilities = logits.softmax(1)
    shared, sums, weights = [], [], []
    for c in range(2):
        truth = (labels == c)[0]
        shared.append(probabilities[0, c][truth].sum())
        sums.append(probabilities[0, c].sum() + truth.sum())
        weights.append(1 / truth.sum() ** 2)
    expected = 1 - 2 * sum(map(torch.mul, weights, shared)) / sum(map(torch.mul, weights, sums))
    assert torch.allclose(GeneralizedDice()(logits, labels), expected, atol=1e-5)


def test_smoothing_does_not_hide_the_loss_of_a_large_image():
    """1 / volume^2 is 1e-11 here: beside it a smoothing of 1e-5 would be everything, and the loss 0."""
    labels = torch.zeros(1, 600, 601, dtype=torch.int64)
    labels[:, 300:] = 1
    loss = GeneralizedDice(smooth=1e-5)(torch.zeros(1, 2, 600, 601), labels)
    assert float(loss) == pytest.approx(0.5, abs=1e-3)
