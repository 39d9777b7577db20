"""What holds for every loss of class maps, and cross-entropy and Dice themselves."""

import pytest
import torch
import torch.nn.functional as F
from monai.losses import DiceLoss

from pixvox.losses.boundary import Boundary
from pixvox.losses.class_overlaps import _sums_by_class, class_overlaps
from pixvox.losses.cross_entropy import CrossEntropy
from pixvox.losses.dice import Dice
from pixvox.losses.focal import Focal
from pixvox.losses.generalized_dice import GeneralizedDice
from pixvox.losses.lovasz import Lovasz
from pixvox.losses.ohem import OHEM
from together import together

LOSSES = {
    "cross_entropy": CrossEntropy(),
    "cross_entropy_smoothed": CrossEntropy(class_weights=[0.1, 2.0, 1.0], label_smoothing=0.1),
    "dice": Dice(),
    "dice_weighted": Dice(class_weights=[0.1, 2.0, 0.0], include_background=False),
    "generalized_dice": GeneralizedDice(),
    "focal": Focal(),
    "focal_weighted": Focal(gamma=0.5, class_weights=[0.1, 0.2, 0.1]),
    "lovasz": Lovasz(),
    "lovasz_per_image": Lovasz(per_image=True, class_weights=[0.1, 2.0, 0.0]),
    "ohem": OHEM(),
    "ohem_all": OHEM(threshold=1.0, class_weights=[0.1, 0.2, 0.1]),
    "boundary": Boundary(),
    "boundary_background": Boundary(include_background=True),
}
SIZES = [(6, 7), (3, 5, 4)]


def batch(size, images=2, seed=0):
    """Logits of three classes, and labels of which some are ignored, more in one image than in another."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(images, 3, *size, generator=generator)
    labels = torch.randint(0, 3, (images, *size), generator=generator)
    for i, label_map in enumerate(labels):
        label_map[:, : 1 + i % 2] = 255
    return logits.requires_grad_(), labels


every_loss = pytest.mark.parametrize("name", LOSSES)


@every_loss
@pytest.mark.parametrize("size", SIZES)
def test_what_stands_at_ignored_pixels_changes_nothing(name, size):
    logits, labels = batch(size)
    loss = LOSSES[name](logits, labels)
    loss.backward()
    ignored = (labels == 255)[:, None].expand_as(logits)
    assert logits.grad[ignored].abs().max() == 0
    assert logits.grad[~ignored].abs().max() > 0
    other = torch.where(ignored, torch.randn(logits.shape), logits.detach())
    assert torch.allclose(LOSSES[name](other, labels), loss.detach(), rtol=1e-6)


@every_loss
def test_where_all_is_ignored_it_is_zero_with_finite_gradients(name):
    logits = torch.full((2, 3, 4, 5), 6e4, dtype=torch.float16).requires_grad_()
    value = LOSSES[name](logits, torch.full((2, 4, 5), 255))
    value.backward()
    assert value == 0
    assert torch.isfinite(logits.grad).all()


@every_loss
def test_sure_predictions_right_or_wrong_have_finite_gradients(name):
    labels = batch((6, 7))[1]
    for wrong in (0, 1):
        shown = (labels.clamp(max=2) + wrong) % 3
        logits = (1e4 * F.one_hot(shown, 3).movedim(-1, 1).float()).requires_grad_()
        value = LOSSES[name](logits, labels)
        value.backward()
        assert torch.isfinite(logits.grad).all()
        if not wrong and "boundary" not in name and "smoothed" not in name:
            assert value.item() == pytest.approx(0, abs=1e-6)


@every_loss
def test_permuted_axes_change_nothing(name):
    logits, labels = batch((3, 5, 4))
    turned = LOSSES[name](logits.permute(0, 1, 4, 2, 3), labels.permute(0, 3, 1, 2))
    assert torch.allclose(turned, LOSSES[name](logits, labels), rtol=1e-5)


@every_loss
def test_a_volume_of_one_slice_is_an_image(name):
    logits, labels = batch((6, 7))
    assert torch.allclose(LOSSES[name](logits[:, :, None], labels[:, None]), LOSSES[name](logits, labels))


@every_loss
def test_autocast_and_deterministic_algorithms_change_no_digit_and_inputs_stay(name):
    logits, labels = (tensor.detach() for tensor in batch((6, 7)))
    logits = logits.bfloat16()
    before = logits.clone(), labels.clone()
    expected = LOSSES[name](logits.float(), labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = LOSSES[name](logits, labels)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.allclose(LOSSES[name](logits, labels.int()), expected, rtol=1e-6)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(logits, before[0]) and torch.equal(labels, before[1])


@every_loss
def test_a_small_step_down_the_gradient_lowers_it(name):
    logits, labels = batch((6, 7))
    loss = LOSSES[name](logits, labels)
    (slope,) = torch.autograd.grad(loss, logits)
    step = 1e-3 / slope.norm()
    lower = LOSSES[name](logits.detach() - step * slope, labels)
    assert (loss - lower).item() == pytest.approx(1e-3 * float(slope.norm()), rel=0.05)


# Which pixels of a process are hard, and the order of all pixels of a batch, are its own affair.
SHARED = sorted(set(LOSSES) - {"ohem", "lovasz"})


def _gradients(first, last):
    """Return loss and gradient, of images ``first`` to ``last``, by name."""
    found = {}
    for name in SHARED:
        logits, labels = batch((6, 7), images=4)
        loss = LOSSES[name](logits[first:last], labels[first:last])
        loss.backward()
        found[name] = logits.grad[first:last].detach()
    return found


def _gradients_of_a_process():
    import torch.distributed as dist

    first, last = ((0, 1), (1, 4))[dist.get_rank()]  # unequal: means of means would differ
    return _gradients(first, last)


def test_two_processes_have_the_gradient_of_one_with_all_images():
    one, two = _gradients(0, 4), together(_gradients_of_a_process)
    for name in SHARED:
        joined = (
            torch.cat([two[rank][name] for rank in range(2)]) / 2
        )  # data-parallel training takes the mean
        torch.testing.assert_close(joined, one[name], rtol=1e-4, atol=1e-7, msg=name)


@every_loss
def test_a_label_that_is_no_class_is_refused(name):
    logits, labels = batch((6, 7))
    labels[0, 3, 3] = 3
    with pytest.raises(
        (ValueError, IndexError), match=r"labels \[3\] are none of the 3 classes|Target 3 is out of bounds"
    ):
        LOSSES[name](logits, labels)


@pytest.mark.parametrize("kind", [CrossEntropy, Dice, Focal, Lovasz, OHEM])
def test_class_weights_that_cannot_be_used_are_refused(kind):
    for weights in ([1.0, -1.0], [], [0.0, 0.0], [1.0, float("nan")]):
        with pytest.raises(ValueError, match="finite number from 0 up"):
            kind(class_weights=weights)
    with pytest.raises(ValueError, match="resolved by a training"):
        kind(class_weights="inverse")
    with pytest.raises(ValueError, match="2 numbers for 3 classes"):
        kind(class_weights=[1.0, 2.0])(*batch((6, 7)))


@pytest.mark.parametrize("kind", [CrossEntropy, Dice, Focal, Lovasz, OHEM])
def test_a_common_factor_of_class_weights_falls_out_and_unequal_ones_do_not(kind):
    logits, labels = batch((6, 7))
    plain = kind()(logits, labels)
    assert torch.allclose(kind(class_weights=[0.01] * 3)(logits, labels), plain)
    assert not torch.allclose(kind(class_weights=[1.0, 3.0, 9.0])(logits, labels), plain, rtol=1e-3)
    assert torch.allclose(kind(weight=0.5)(logits, labels), 0.5 * plain)


@pytest.mark.parametrize("size", [(5, 7), (3, 5, 7)])
def test_cross_entropy_leaves_ignored_pixels_out(size):
    logits, labels = batch(size)
    valid = labels != 255
    kept = logits.movedim(1, -1)[valid]
    expected = F.cross_entropy(kept, labels[valid], torch.tensor([1.0, 2.0, 0.5]))
    assert torch.allclose(CrossEntropy(class_weights=[1.0, 2.0, 0.5])(logits, labels), expected)


@pytest.mark.parametrize("size", [(9, 8), (4, 6, 5)])
def test_dice_equals_monais_when_all_classes_are_present(size):
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, *size), torch.randint(0, 3, (2, *size))
    options = {"to_onehot_y": True, "softmax": True, "batch": True, "smooth_nr": 1e-5, "smooth_dr": 1e-5}
    assert torch.allclose(Dice()(logits, labels), DiceLoss(**options)(logits, labels[:, None]), atol=1e-6)
    by_class = DiceLoss(**options, reduction="none")(logits, labels[:, None]).flatten()
    weights = torch.tensor([0.5, 1.0, 4.0])
    expected = (by_class * weights).sum() / weights.sum()
    assert torch.allclose(Dice(class_weights=weights.tolist())(logits, labels), expected, atol=1e-6)


def test_dice_of_a_certain_right_answer_is_zero_whatever_is_ignored():
    labels = torch.tensor([[[0, 1, 255], [1, 0, 255]]])
    logits = 50 * F.one_hot(labels.clamp(max=1), 3).movedim(-1, 1).float()
    assert float(Dice()(logits, labels)) == pytest.approx(0, abs=1e-5)


def test_more_pixels_than_float32_counts_are_added_up():
    """What is 2**24 already stays as it is when ones are added to it one by one."""
    values = torch.ones(2, 1000)
    values[0], values[0, 0] = 0, 2**24
    assert _sums_by_class(values, torch.zeros(2, 1000, dtype=torch.int64), 2).tolist() == [2**24 + 1000, 0]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("ignore_index", [255, -100, 0])
def test_overlaps_have_the_gradient_of_their_formula(size, ignore_index):
    logits, labels = batch(size)
    labels[labels == 255] = ignore_index
    valid = (labels != ignore_index)[:, None]
    probabilities = logits.softmax(1) * valid
    truth = F.one_hot(labels.clamp(0, 2), 3).movedim(-1, 1) * valid
    axes = [0, *range(2, logits.dim())]
    plain = torch.stack([(probabilities * truth).sum(axes), probabilities.sum(axes), truth.sum(axes)])
    found = class_overlaps(logits, labels, ignore_index)
    torch.testing.assert_close(found, plain)
    slopes = [
        torch.autograd.grad((sums * torch.arange(9.0).view(3, 3)).sum(), logits)[0] for sums in (found, plain)
    ]
    torch.testing.assert_close(*slopes)
