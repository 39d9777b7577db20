import itertools

import pytest
import torch
import torch.nn.functional as F

from pixvox.losses.lovasz import Lovasz, jaccard_slopes


def jaccard_loss(wrong, truth):
    """One minus the IoU of a class when the pixels ``wrong`` are."""
    predicted = truth ^ wrong
    return 1 - float((predicted & truth).sum()) / float((predicted | truth).sum())


def extension(errors, truth):
    """The Lovász extension as an integral over thresholds of the loss where errors are above."""
    levels = sorted({0.0, *errors.tolist()})
    steps = itertools.pairwise(levels)
    return sum((high - low) * jaccard_loss(errors > low, truth) for low, high in steps)


@pytest.mark.parametrize("size", [(5, 6), (3, 4, 2)])
@pytest.mark.parametrize("per_image", [True, False])
def test_is_the_lovasz_extension_of_the_classes_that_are_present(size, per_image):
    torch.manual_seed(0)
    logits, labels = 2 * torch.randn(2, 4, *size), torch.randint(0, 3, (2, *size))
    labels[:, 0, 0], labels[1][labels[1] == 2] = 255, 0
    probabilities = logits.double().softmax(1).movedim(1, -1)
    losses = []
    for images in [[0], [1]] if per_image else [[0, 1]]:
        valid = labels[images] != 255
        known, chances = labels[images][valid], probabilities[images][valid]
        of_classes = [
            extension(((known == c).double() - chances[:, c]).abs(), known == c) for c in known.unique()
        ]
        losses.append(sum(of_classes) / len(of_classes))
    expected = sum(losses) / len(losses)
    assert float(Lovasz(per_image=per_image)(logits, labels)) == pytest.approx(expected, rel=1e-5)


def test_of_hard_predictions_is_one_minus_the_iou():
    torch.manual_seed(1)
    labels, shown = torch.randint(0, 3, (2, 5, 7)), torch.randint(0, 4, (2, 5, 7))
    logits = 200.0 * F.one_hot(shown, 4).movedim(-1, 1).float()
    expected = sum(jaccard_loss((labels == c) ^ (shown == c), labels == c) for c in range(3)) / 3
    assert float(Lovasz()(logits, labels)) == pytest.approx(expected, rel=1e-6)


def test_class_weights_weigh_the_classes():
    logits, labels = torch.randn(1, 3, 5, 7), torch.randint(0, 3, (1, 5, 7))
    alone = [
        float(Lovasz(class_weights=F.one_hot(torch.tensor(c), 3).tolist())(logits, labels)) for c in range(3)
    ]
    both = float(Lovasz(class_weights=[1.0, 3.0, 0.0])(logits, labels))
    assert both == pytest.approx((alone[0] + 3 * alone[1]) / 4, rel=1e-5)


def test_slopes_of_a_large_map_are_exact_where_differences_of_indices_are_not():
    torch.manual_seed(0)
    errors, truth = torch.rand(300_000), torch.rand(300_000) < 0.01
    slopes = jaccard_slopes(errors, truth, torch.ones_like(truth))
    order = errors.argsort(descending=True)
    missed = truth[order].cumsum(0).double()
    indices = 1 - (truth.sum() - missed) / (truth.sum() + torch.arange(1, len(errors) + 1) - missed)
    expected = indices.diff(prepend=torch.zeros(1, dtype=torch.float64))
    torch.testing.assert_close(slopes[order].double(), expected, rtol=1e-4, atol=1e-13)
