import math

import pytest
import torch
import torch.nn.functional as F

from pixvox.losses.cross_entropy import CrossEntropy
from pixvox.losses.ohem import OHEM


def by_hand(logits, labels, threshold, least, weights):
    """Sort the pixels that count by their cross-entropy; keep those above the threshold, or the first ``least``."""
    valid = labels != 255
    known = labels[valid]
    losses = F.cross_entropy(logits.movedim(1, -1)[valid], known, reduction="none")
    order = losses.argsort(descending=True)
    kept = order[: max(int((losses.exp() > 1 / threshold).sum()), least)]
    factors = torch.tensor(weights)[known][kept]
    return (losses[kept] * factors).sum() / factors.sum()


@pytest.mark.parametrize("size", [(9, 8), (3, 5, 4)])
@pytest.mark.parametrize(("threshold", "min_kept", "least"), [(0.7, 1, 1), (0.01, 20, 20), (0.01, 0.1, None)])
def test_keeps_the_hard_pixels_or_at_least_so_many(size, threshold, min_kept, least):
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, *size), torch.randint(0, 3, (2, *size))
    labels[:, 0] = 255
    least = least or math.ceil(0.1 * int((labels != 255).sum()))
    for weights in ([1.0, 1.0, 1.0], [0.1, 1.0, 5.0]):
        loss = OHEM(threshold=threshold, min_kept=min_kept, class_weights=weights)(logits, labels)
        assert torch.allclose(loss, by_hand(logits, labels, threshold, least, weights), rtol=1e-5)


def test_with_all_pixels_kept_it_is_cross_entropy():
    logits, labels = torch.randn(2, 3, 5, 7), torch.randint(0, 3, (2, 5, 7))
    labels[0, :2] = 255
    for options in ({"threshold": 1.0, "min_kept": 0}, {"threshold": 0.0, "min_kept": 10**9}):
        assert torch.allclose(OHEM(**options)(logits, labels), CrossEntropy()(logits, labels))


def test_easy_pixels_learn_nothing():
    logits = torch.tensor([[[[5.0, 0.1]], [[0.0, 0.0]]]], requires_grad=True)
    OHEM(min_kept=0)(logits, torch.zeros(1, 1, 2, dtype=torch.int64)).backward()
    assert logits.grad[0, :, 0, 0].abs().max() == 0
    assert logits.grad[0, :, 0, 1].abs().max() > 0


@pytest.mark.parametrize("options", [{"threshold": 1.5}, {"min_kept": -1}, {"min_kept": 1.5}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="threshold must be from 0 to 1|min_kept must be"):
        OHEM(**options)
