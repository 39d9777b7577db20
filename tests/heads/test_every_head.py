"""What must hold for every head for instances, in images and volumes: mixed precision, and gradients everywhere."""

import pytest
import torch

from pixvox import create_model, list_heads
from pixvox.errors import ConfigError
from pixvox.heads.hybrid import Hybrid
from pixvox.heads.mask2former import Mask2Former
from pixvox.heads.query_head import QueryHead
from pixvox.losses.query_classification import IoUAware
from pixvox.models import part_class
from pixvox.structures import Geometry, Instances
from small_heads import small

SIZES = {2: (64, 96), 3: (16, 32, 48)}
HEADS = list_heads(task="instance")
CASES = [(head, dims) for dims in (2, 3) for head in list_heads(task="instance", spatial_dims=dims)]


def _case(head, dims):
    torch.manual_seed(0)
    queries = issubclass(part_class("head", head), QueryHead)
    backbone = {"backbone__channels": [8, 8, 16], "backbone__strides": [2, 4, 8], "backbone__norm": "group"}
    model = create_model(
        head=head,
        backbone="simple",
        num_classes=2,
        spatial_dims=dims,
        in_channels=1,
        **small(head, **backbone, **({"coordinates": True} if queries else {})),
    )
    size = SIZES[dims]
    label_map = torch.zeros(size, dtype=torch.int64)
    label_map[(..., slice(4, 20), slice(6, 26))] = 1
    label_map[(..., slice(18, 30), slice(28, 40))] = 2
    objects = Instances(masks=label_map, labels=torch.tensor([1, 0]))
    return model, torch.randn(2, 1, *size), [objects, Instances.empty(size)]


@pytest.mark.parametrize(("head", "dims"), CASES)
def test_learns_and_answers_in_bfloat16(head, dims):
    model, images, targets = _case(head, dims)
    with torch.autocast("cpu", torch.bfloat16):
        losses = model.train().loss(images, targets)
        sum(losses.values()).backward()
        with torch.no_grad():
            results = model.eval().postprocess(model(images), [Geometry.identity(SIZES[dims])] * 2)
    assert all(loss.isfinite() for loss in losses.values())
    for result in results:
        assert len(result.instances) == len(result.instances.masks) == len(result.instances.scores)
        assert result.instances.boxes.isfinite().all()


@pytest.mark.parametrize("head", HEADS)
def test_every_parameter_gets_a_gradient_even_when_no_image_has_objects(head):
    model, images, targets = _case(head, 2)
    for truth in (targets, [targets[1]] * 2):
        model.train().zero_grad()
        sum(model.loss(images, truth).values()).backward()
        assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize("head", sorted(set(HEADS) - {"maskrcnn", "lw_detr"}))
def test_heads_without_groups_of_queries_do_not_pretend_to_have_them(head):
    with pytest.raises(ConfigError, match="groups"):
        create_model(head=head, backbone="simple", num_classes=2, in_channels=1, **small(head, groups=3))


@pytest.mark.parametrize("head", [Mask2Former, Hybrid])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"costs": {"class": 1.0, "giou": 2.0}}, "costs has \\['giou'\\]"),
        ({"weights": {"class": 1.0, "box": 2.0, "giou": 0.0}}, "weights has \\['box'\\]"),
        ({"classification": IoUAware()}, "IoUAware learns how well"),
    ],
)
def test_heads_without_boxes_refuse_what_needs_them(head, options, message):
    with pytest.raises(ValueError, match=message):
        head((6, 8), ((4, 4), (8, 8)), 3, channels=8, num_heads=2, num_layers=1, **options)
