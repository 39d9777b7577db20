import math

import pytest
import torch
from torch import nn
from torchvision.ops import sigmoid_focal_loss

from pixvox.losses.query_classification import IoUAware, SigmoidFocal, SoftmaxWithNoObject

ALL = [SoftmaxWithNoObject(), SigmoidFocal(), IoUAware()]
LABELS = torch.tensor([[2, -1, 0], [-1, -1, 1]])


def _logits(classification, scale=3.0):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, classification.num_logits(3), generator=generator) * scale


def test_iou_aware_loss_is_that_of_the_paper_entry_by_entry():
    logits = _logits(IoUAware()).double().requires_grad_()
    ious = torch.rand(2, 3, generator=torch.Generator().manual_seed(1))
    total = torch.zeros((), dtype=torch.float64)
    for image in range(2):
        for query in range(3):
            for number in range(3):
                score = logits[image, query, number].sigmoid()
                if LABELS[image, query] == number:
                    wanted = (score**0.25 * ious[image, query] ** 0.75).detach()
                    total = total - wanted * score.log() - (1 - wanted) * (1 - score).log()
                else:
                    total = total - score**2 * (1 - score).log()
    ours = IoUAware().loss(logits, LABELS, torch.tensor(3.0), ious=ious)
    torch.testing.assert_close(ours.double(), total / 3, rtol=1e-6, atol=0)
    ours_gradient, gradient = (torch.autograd.grad(value, logits)[0] for value in (ours, total / 3))
    torch.testing.assert_close(ours_gradient, gradient, rtol=1e-5, atol=1e-7)


def test_iou_aware_loss_without_boxes_says_what_to_choose():
    with pytest.raises(ValueError, match="choose SigmoidFocal or SoftmaxWithNoObject"):
        IoUAware().loss(_logits(IoUAware()), LABELS, torch.tensor(1.0))


def test_focal_loss_equals_torchvisions():
    logits = _logits(SigmoidFocal())
    wanted = torch.zeros(2, 3, 3)
    wanted[0, 0, 2] = wanted[0, 2, 0] = wanted[1, 2, 1] = 1
    expected = sigmoid_focal_loss(logits, wanted, alpha=0.3, gamma=1.5, reduction="sum") / 5
    torch.testing.assert_close(SigmoidFocal(0.3, 1.5).loss(logits, LABELS, torch.tensor(5.0)), expected)


def test_no_object_weighs_less_in_the_mean():
    logits = _logits(SoftmaxWithNoObject(0.1))
    log = -logits.log_softmax(-1)
    expected = log[0, 0, 2] + log[0, 2, 0] + log[1, 2, 1] + 0.1 * (log[0, 1, 3] + log[1, 0, 3] + log[1, 1, 3])
    found = SoftmaxWithNoObject(0.1).loss(logits, LABELS, torch.tensor(9.0))
    torch.testing.assert_close(found, expected / 3.3)


@pytest.mark.parametrize("classification", ALL, ids=lambda part: type(part).__name__)
def test_queries_that_do_not_learn_have_no_gradient_and_change_nothing(classification):
    logits = _logits(classification).requires_grad_()
    learns = torch.tensor([[True, False, True], [True, True, True]])
    ious = torch.full((2, 3), 0.5)
    loss = classification.loss(logits, LABELS, torch.tensor(3.0), learns, ious)
    gradient = torch.autograd.grad(loss, logits)[0].abs().sum(dim=2) > 0
    assert torch.equal(gradient, learns)
    changed = logits.detach().clone()
    changed[0, 1] = 7.0
    assert classification.loss(changed, LABELS, torch.tensor(3.0), learns, ious) == loss


@pytest.mark.parametrize("classification", ALL, ids=lambda part: type(part).__name__)
def test_confident_mistakes_have_finite_losses_and_costs(classification):
    logits = _logits(classification, 1e4).requires_grad_()
    loss = classification.loss(logits, LABELS, torch.tensor(3.0), ious=torch.zeros(2, 3))
    assert torch.isfinite(loss)
    assert torch.isfinite(torch.autograd.grad(loss, logits)[0]).all()
    assert torch.isfinite(classification.cost(logits[0], torch.tensor([0, 2]))).all()


@pytest.mark.parametrize("classification", ALL, ids=lambda part: type(part).__name__)
def test_half_precision_is_computed_in_float32(classification):
    logits = _logits(classification).bfloat16()
    ious = torch.full((2, 3), 0.5)
    found = classification.loss(logits, LABELS, torch.tensor(3.0), ious=ious)
    expected = classification.loss(logits.float(), LABELS, torch.tensor(3.0), ious=ious)
    assert found.dtype == torch.float32
    assert found == expected
    assert (
        classification.scores(logits).dtype
        == classification.cost(logits[0], LABELS[0, :1]).dtype
        == torch.float32
    )


@pytest.mark.parametrize("classification", ALL, ids=lambda part: type(part).__name__)
def test_a_query_sure_of_a_class_costs_least_for_it_and_scores_highest(classification):
    logits = torch.full((3, classification.num_logits(3)), -4.0)
    logits[torch.arange(3), torch.tensor([1, 2, 0])] = 4.0
    cost = classification.cost(logits, torch.tensor([2, 0, 1]))
    assert cost.shape == (3, 3)
    assert cost.argmin(dim=0).tolist() == [1, 2, 0]
    assert classification.scores(logits).shape == (3, 3)
    assert classification.scores(logits).argmax(dim=1).tolist() == [1, 2, 0]


def test_training_begins_at_the_prior_confidence():
    layer = nn.Linear(4, 3)
    for classification in (SigmoidFocal(), IoUAware()):
        classification.init_bias(layer)
        assert all(math.isclose(value, 0.01, rel_tol=1e-5) for value in layer.bias.sigmoid().tolist())
    layer = nn.Linear(4, 4)
    SoftmaxWithNoObject().init_bias(layer)
    assert layer.bias.abs().sum() == 0
