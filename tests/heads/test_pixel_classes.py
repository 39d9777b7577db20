"""Classes told by every cell: equal to a sum over dense masks, and no part of what predicts."""

import pytest
import torch
import torch.nn.functional as F

from pixvox import create_model, list_heads
from pixvox.heads.pixel_classes import PixelClasses, pixel_class_loss
from pixvox.heads.query_head import QueryHead
from pixvox.models import part_class
from pixvox.structures import Instances
from small_heads import small

CLASSES = 3
CASES = {  # canvas, valid part, cells per axis: whole pixels per cell, so that plain averages are exact
    2: ((16, 24), (12, 20), (4, 6)),
    3: ((4, 8, 12), (4, 8, 10), (2, 4, 6)),
}
HEADS = [name for name in list_heads(task="instance") if issubclass(part_class("head", name), QueryHead)]


def _instances(size, seed, ignored=()):
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(4, *size, generator=generator) > 0.6
    found = Instances(masks=masks, labels=torch.tensor([0, 2, 2, 1]))
    found.ignore[list(ignored)] = True
    return found, masks


def _average(maps, cells, canvas):
    """Average each cell of a canvas, behind whose given part there is nothing."""
    padded = maps.new_zeros(*maps.shape[: -len(canvas)], *canvas)
    padded[(..., *(slice(0, n) for n in maps.shape[-len(canvas) :]))] = maps
    pool = F.avg_pool2d if len(canvas) == 2 else F.avg_pool3d
    return pool(padded[None], [n // c for n, c in zip(canvas, cells, strict=True)])[0]


@pytest.mark.parametrize("dims", [2, 3])
def test_loss_is_that_of_dense_masks_without_padding_and_ignored_parts(dims):
    canvas, valid, cells = CASES[dims]
    logits = torch.randn(2, CLASSES, *cells, generator=torch.Generator().manual_seed(3))
    targets, total, weights = [], 0.0, 0.0
    for i, ignored in enumerate([(), (1,)]):
        instances, masks = _instances(valid, i, ignored)
        targets.append(instances)
        inside = _average(torch.ones(1, *valid), cells, canvas)
        shares = _average(masks.float(), cells, canvas) / inside.clamp(min=1e-6)
        truth = torch.zeros(CLASSES, *cells)
        for share, label, ignore in zip(shares, instances.labels, instances.ignore, strict=True):
            if not ignore:
                truth[label] += share
        weight = inside[0] * (1 - shares[1] if ignored else 1)
        p = logits[i].sigmoid()
        t = truth.clamp(max=1)
        total += (-(t * p.log() + (1 - t) * (1 - p).log()).sum(0) * weight).sum()
        weights += weight.sum()
    found = pixel_class_loss(logits, targets, torch.tensor([valid] * 2), canvas)
    torch.testing.assert_close(found, total / weights)


def test_an_image_without_objects_teaches_that_nothing_is_there():
    teacher = PixelClasses(4, CLASSES)
    level = torch.ones(1, 4, 2, 2, requires_grad=True)
    pixel_class_loss(teacher(level), [Instances.empty((8, 8))], torch.tensor([[8, 8]]), (8, 8)).backward()
    assert (teacher.classifier.bias.grad > 0).all()
    assert level.grad.abs().sum() > 0


def test_boxes_alone_are_refused():
    instances = Instances(boxes=torch.tensor([[0.0, 0.0, 4.0, 4.0]]), labels=torch.tensor([0]), size=(8, 8))
    with pytest.raises(ValueError, match="pixel_class needs masks"):
        pixel_class_loss(torch.zeros(1, CLASSES, 2, 2), [instances], torch.tensor([[8, 8]]), (8, 8))


@pytest.mark.parametrize("head", HEADS)
def test_it_teaches_in_training_and_changes_nothing_else(head):
    backbone = {"backbone__channels": [8, 8, 16], "backbone__strides": [2, 4, 8], "backbone__norm": "group"}
    given = {"backbone": "simple", "num_classes": 2, "in_channels": 1, **backbone}
    plain = create_model(head=head, **small(head, **given)).train()
    weights = {**plain.head.criterion.weights, "pixel_class": 7.0}
    taught = create_model(head=head, **small(head, **given, weights=weights)).train()
    missing, unexpected = taught.load_state_dict(plain.state_dict(), strict=False)
    assert unexpected == []
    assert sorted(missing) == [f"head.pixel_classes.classifier.{name}" for name in ("bias", "weight")]

    torch.manual_seed(0)
    images = torch.randn(2, 1, 64, 96)
    masks = torch.zeros(1, 64, 96, dtype=torch.bool)
    masks[:, 8:40, 16:60] = True
    targets = [Instances(masks=masks, labels=torch.tensor([1])), Instances.empty((64, 96))]
    losses = []
    for model in (plain, taught):
        torch.manual_seed(1)
        losses.append(model.loss(images, targets))
    extra = losses[1].pop("pixel_class")
    assert extra > 0
    assert losses[0].keys() == losses[1].keys()
    for name, value in losses[0].items():
        torch.testing.assert_close(losses[1][name], value)
    extra.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in taught.backbone.parameters())
    assert "pixel_class" not in taught.eval().loss(images, targets)


def test_semantic_mask2former_takes_it_too():
    model = create_model(
        head="mask2former", task="semantic", num_classes=2, in_channels=1,
        **small("mask2former", backbone="simple", weights={"class": 1.0, "pixel_class": 1.0, "dice": 1.0}),
    ).train()  # fmt: skip
    label_maps = torch.zeros(1, 64, 96, dtype=torch.int64)
    label_maps[:, 8:40] = 1
    assert model.loss(torch.randn(1, 1, 64, 96), label_maps)["pixel_class"] > 0
