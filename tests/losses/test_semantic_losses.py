import pytest
import torch
import torch.nn.functional as F
from monai.losses import DiceLoss

from pixvox.losses.cross_entropy import CrossEntropy
from pixvox.losses.dice import Dice


@pytest.mark.parametrize("size", [(5, 7), (3, 5, 7)])
def test_cross_entropy_leaves_ignored_pixels_out_in_value_and_gradient(size):
    logits = torch.randn(2, 4, *size, requires_grad=True)
    labels = torch.randint(0, 4, (2, *size))
    labels[:, 0] = 255
    loss = CrossEntropy(class_weights=[1.0, 2.0, 1.0, 0.5])(logits, labels)
    valid = labels != 255
    kept = logits.movedim(1, -1)[valid]
    expected = F.cross_entropy(kept, labels[valid], torch.tensor([1.0, 2.0, 1.0, 0.5]))
    assert torch.allclose(loss, expected)
    loss.backward()
    assert logits.grad[:, :, 0].abs().max() == 0


@pytest.mark.parametrize("loss", [CrossEntropy(), Dice()])
def test_all_ignored_is_zero_with_finite_gradients(loss):
    logits = torch.randn(1, 3, 4, 5, requires_grad=True)
    value = loss(logits, torch.full((1, 4, 5), 255))
    value.backward()
    assert value == 0
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("size", [(9, 8), (4, 6, 5)])
def test_dice_equals_monais_when_all_classes_are_present(size):
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, *size), torch.randint(0, 3, (2, *size))
    reference = DiceLoss(to_onehot_y=True, softmax=True, batch=True, smooth_nr=1e-5, smooth_dr=1e-5)
    assert torch.allclose(Dice()(logits, labels), reference(logits, labels[:, None]), atol=1e-6)


def test_dice_of_a_certain_right_answer_is_zero_whatever_is_ignored():
    labels = torch.tensor([[[0, 1, 255], [1, 0, 255]]])
    logits = 50 * F.one_hot(labels.clamp(max=1), 3).movedim(-1, 1).float()
    assert float(Dice()(logits, labels)) == pytest.approx(0, abs=1e-5)
