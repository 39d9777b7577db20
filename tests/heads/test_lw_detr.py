"""LW-DETR with masks: groups, volumes, few tokens, many objects, and that it learns."""

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from parity import assert_near, randomise
from pixvox.heads.lw_detr import LWDETR
from pixvox.losses.mask_points import PixelsAtPoints
from pixvox.structures import Features, Geometry, Instances

CHANNELS, CLASSES, QUERIES, GROUPS = 8, 2, 6, 2


def _head(dims=2, strides=(4, 8), seed=0, **options):
    small = {
        "num_queries": QUERIES, "groups": GROUPS, "num_layers": 2, "num_heads": 2, "num_cross_heads": 4,
        "feedforward": 16, "mask_feedforward": 16, "num_points": None, **options,
    }  # fmt: skip
    strides = [s if isinstance(s, tuple) else (s,) * dims for s in strides]
    head = LWDETR((CHANNELS,) * len(strides), strides, CLASSES, dims, **small)
    return randomise(head, seed, wide=0.5)


def _features(size, strides=(4, 8), batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    strides = tuple(s if isinstance(s, tuple) else (s,) * len(size) for s in strides)
    maps = tuple(
        torch.randn(
            batch, CHANNELS, *(n // s for n, s in zip(size, stride, strict=True)), generator=generator
        )
        for stride in strides
    )
    return Features(maps, strides, torch.zeros(batch, 1, *size), size, torch.tensor([size] * batch))


def _targets(size):
    label_map = torch.zeros(size[-2:], dtype=torch.int64)
    label_map[3:12, 5:17], label_map[15:24, 20:31] = 1, 2
    label_map = label_map.expand(size)
    return [Instances(masks=label_map, labels=torch.tensor([1, 0])), Instances.empty(size)]


def _layers(outputs):
    return [*outputs["auxiliary"], outputs["prediction"], outputs["proposals"]]


# --- Groups


def test_the_first_group_alone_answers_after_training():
    head, features = _head(), _features((32, 48))
    targets = _targets((32, 48))
    both = head.train()(features, targets)
    first = head.eval()(features, targets)
    for learned, answered in zip(_layers(both), _layers(first), strict=True):
        assert learned.boxes.shape[1] == GROUPS * QUERIES and answered.boxes.shape[1] == QUERIES
        torch.testing.assert_close(learned.class_logits[:, :QUERIES], answered.class_logits)
        torch.testing.assert_close(learned.boxes[:, :QUERIES], answered.boxes)
        torch.testing.assert_close(learned.masks.logits()[:, :QUERIES], answered.masks.logits())


def test_groups_neither_see_nor_touch_each_other():
    head, features = _head().train(), _features((32, 48))
    before = head(features, _targets((32, 48)))
    with torch.no_grad():
        head.queries.weight[QUERIES:] += 1.0
        head.proposals[1].projection.weight.mul_(2.0)
    after = head(features, _targets((32, 48)))
    for old, new in zip(_layers(before), _layers(after), strict=True):
        assert torch.equal(old.boxes[:, :QUERIES], new.boxes[:, :QUERIES])
        assert not torch.equal(old.boxes[:, QUERIES:], new.boxes[:, QUERIES:])


def test_each_group_is_matched_to_every_object():
    head, size = _head().train(), (32, 48)
    targets = _targets(size)
    outputs = head(_features(size), targets)
    truths = head.criterion._truths(outputs, targets)
    sampler = PixelsAtPoints([truth.points for truth in truths], outputs["padded_size"])
    (queries, objects), (none, _) = head.criterion.match(outputs["prediction"], truths, sampler, GROUPS)[0]
    assert sorted(objects.tolist()) == [0, 0, 1, 1] and len(none) == 0
    assert sorted((queries // QUERIES).tolist()) == [0, 0, 1, 1]


# --- Images and volumes


def _lift(name, value, like):
    """Put a 2-D parameter into its 3-D shape with everything that depends on z neutral."""
    if value.shape == like.shape:
        return value
    lifted = torch.zeros_like(like)
    plane = torch.tensor([0, 1, 3, 4])  # x, y, w, h among x, y, z, w, h, d
    if "boxes.layers.2" in name or ("proposal_boxes" in name and ".layers.2." in name):
        lifted[plane] = value
        if "proposal" in name and value.dim() == 1:
            lifted[5] = math.log(20)  # proposals begin 1/20 deep: fill the one slice
    elif name == "references.weight":
        lifted[:, plane] = value
    elif name == "positions.mlp.layers.0.weight":
        lifted.view(len(like), 6, -1)[:, plane] = value.view(len(like), 4, -1)
    elif "sampling_offsets" in name:
        lifted.view(-1, 3, *like.shape[1:])[:, :2] = value.view(-1, 2, *value.shape[1:])
    else:
        lifted[:, :, like.shape[2] // 2] = value
    return lifted


def _pair():
    flat, deep = _head(2), _head(3, ((1, 4, 4), (1, 8, 8)))
    own = deep.state_dict()
    deep.load_state_dict({name: _lift(name, v, own[name]) for name, v in flat.state_dict().items()})
    return flat, deep


def _volume(features):
    size = (1, *features.input_size)
    maps = tuple(level[:, :, None] for level in features.levels)
    strides = tuple((1, *stride) for stride in features.strides)
    return Features(
        maps, strides, features.images[:, :, None], size, torch.tensor([size] * len(features.images))
    )


def test_one_slice_equals_2d_in_outputs_and_losses():
    (flat, deep), size = _pair(), (32, 48)
    targets, deep_targets = _targets(size), _targets((1, *size))
    features = _features(size)
    expected, outputs = flat.train()(features, targets), deep.train()(_volume(features), deep_targets)
    for layer, wanted in zip(_layers(outputs), _layers(expected), strict=True):
        assert_near(layer.class_logits, wanted.class_logits)
        assert_near(layer.boxes[..., [0, 1, 3, 4]], wanted.boxes)
        assert_near(layer.boxes[..., [2, 5]], torch.tensor([0.5, 1.0]).expand_as(layer.boxes[..., [2, 5]]))
        assert_near(layer.masks.logits()[:, :, 0], wanted.masks.logits())
    losses, wanted = deep.loss(outputs, deep_targets), flat.loss(expected, targets)
    for name in wanted:
        assert_near(losses[name], wanted[name])


def test_instances_on_one_slice_equal_2d():
    (flat, deep), size = _pair(), (32, 48)
    features = _features(size)
    with torch.no_grad():
        expected = flat.eval().postprocess(flat(features), [Geometry.identity(size)] * 2)
        results = deep.eval().postprocess(deep(_volume(features)), [Geometry.identity((1, *size))] * 2)
    for result, other in zip(results, expected, strict=True):
        assert len(other.instances) > 2
        assert torch.equal(result.instances.labels, other.instances.labels)
        assert_near(result.instances.scores, other.instances.scores)
        assert (result.instances.masks.dense()[:, 0] != other.instances.masks.dense()).float().mean() < 1e-3


def _permute(name, value, order):
    xyz = [2 - o for o in reversed(order)]
    sides = [*xyz, *(3 + i for i in xyz)]
    if value.dim() == 5:
        return value.permute(0, 1, *(2 + o for o in order))
    if "boxes" in name and ".layers.2." in name:
        return value[sides]
    if name == "references.weight":
        return value[:, sides]
    if name == "positions.mlp.layers.0.weight":
        return value.unflatten(1, (6, -1))[:, sides].flatten(1)
    if "sampling_offsets" in name:
        return value.unflatten(0, (-1, 3))[:, xyz].flatten(0, 1)
    return value


@pytest.mark.parametrize("order", [(2, 1, 0), (1, 2, 0)])
def test_permuting_the_axes_permutes_the_predictions(order):
    size, strides = (16, 24, 32), ((2, 4, 4), (4, 4, 8))
    turned_size = tuple(size[o] for o in order)
    turned_strides = tuple(tuple(stride[o] for o in order) for stride in strides)
    axes = (0, 1, *(2 + o for o in order))
    head, turned = _head(3, strides).eval(), _head(3, turned_strides).eval()
    turned.load_state_dict({name: _permute(name, v, order) for name, v in head.state_dict().items()})
    features = _features(size, strides, batch=1)
    maps = tuple(level.permute(axes).contiguous() for level in features.levels)
    rotated = Features(
        maps, turned_strides, torch.zeros(1, 1, *turned_size), turned_size, torch.tensor([turned_size])
    )
    with torch.no_grad():
        expected, outputs = head(features), turned(rotated)
    xyz = [2 - o for o in reversed(order)]
    assert_near(outputs["class_logits"], expected["class_logits"])
    assert_near(outputs["boxes"], expected["boxes"][..., [*xyz, *(3 + i for i in xyz)]])
    assert_near(outputs["mask_logits"], expected["mask_logits"].permute(axes))


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("masks", [True, False])
def test_every_parameter_learns(dims, masks):
    head, size = _head(dims, masks=masks).train(), (8, 32, 48)[-dims:]
    targets = _targets(size)
    sum(
        head(_features(size), targets) and head.loss(head(_features(size), targets), targets).values()
    ).backward()
    assert [name for name, p in head.named_parameters() if p.grad is None or not p.grad.any()] == []


# --- What may be missing or much


def test_fewer_tokens_than_queries_give_fewer_predictions():
    head, size = _head(num_queries=100, strides=(8,)).train(), (16, 24)
    targets = [Instances.empty(size)] * 2
    outputs = head(_features(size, (8,)), targets)
    assert outputs["prediction"].boxes.shape == (2, GROUPS * 6, 4)
    assert all(torch.isfinite(value) for value in head.loss(outputs, targets).values())
    assert head.eval()(_features(size, (8,)))["class_logits"].shape == (2, 6, CLASSES)


def test_masks_lie_on_the_grid_that_is_asked_for():
    features = _features((32, 48))
    assert _head(strides=(2, 4)).mask_stride == (2, 2) and _head(strides=(16,)).mask_stride == (4, 4)
    assert _head(mask_stride=(8, 16)).eval()(features)["mask_logits"].shape == (2, QUERIES, 4, 3)


def test_boxes_are_moved_as_shares_of_the_proposals():
    head, features = _head().eval(), _features((32, 48))
    with torch.no_grad():
        head.references.weight.zero_()
        for branch in (head.boxes, *head.proposal_boxes):
            branch.layers[-1].weight.zero_()
            branch.layers[-1].bias.copy_(torch.tensor([1.0, 0.0, math.log(2), 0.0]))
    outputs = head(features, _targets((32, 48)))
    start, moved = outputs["proposals"].boxes, outputs["prediction"].boxes
    torch.testing.assert_close(moved[..., 0], start[..., 0] + start[..., 2])
    torch.testing.assert_close(moved[..., 2], 2 * start[..., 2])
    torch.testing.assert_close(moved[..., [1, 3]], start[..., [1, 3]])
    assert sorted(set(start[0, :, 3].tolist())) == pytest.approx([0.05, 0.1])


def test_levels_of_different_channels_are_refused():
    with pytest.raises(ValueError, match="put neck=multi_scale_projector before this head"):
        LWDETR((8, 16), ((4, 4), (8, 8)), 1)


def _squares(side=64, seed=0):
    """An image with bright squares of two sizes, their classes."""
    generator = torch.Generator().manual_seed(seed)
    image, label_map, labels = (
        torch.randn(1, side, side, generator=generator) * 0.1,
        torch.zeros(side, side),
        [],
    )
    for number, (y, x) in enumerate([(6, 8), (10, 40), (36, 12), (40, 44)], 1):
        length = 8 if number % 2 else 14
        label_map[y : y + length, x : x + length] = number
        image[:, y : y + length, x : x + length] += 1.0
        labels.append(number % 2)
    return image, Instances(masks=label_map.long(), labels=torch.tensor(labels))


def test_the_loss_halves_in_dozens_of_steps():
    from pixvox.backbones.simple import Simple
    from pixvox.necks.multi_scale_projector import MultiScaleProjector
    from pixvox.segmenter import Segmenter

    torch.manual_seed(0)
    backbone = Simple(2, 1, (16, 24), (4, 8), norm="group")
    neck = MultiScaleProjector(
        backbone.channels, backbone.strides, out_channels=32, num_blocks=1, norm="group"
    )
    head = LWDETR(
        neck.channels, neck.strides, CLASSES, num_queries=10, groups=2, num_layers=2, num_heads=4, num_cross_heads=4,
        feedforward=64, mask_feedforward=64, num_points=None,
    )  # fmt: skip
    model = Segmenter(backbone, neck, head).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    image, target = _squares()
    totals = []
    for _ in range(40):
        losses = model.loss(image[None], [target])
        total = sum(losses.values())
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        totals.append(float(total.detach()))
    assert totals[-1] < 0.5 * totals[0], (totals[0], totals[-1])


def _grid_of_cells(number, side):
    """A label map with so many small cells, row by row."""
    columns = math.ceil(number**0.5)
    step = side // columns
    label_map = torch.zeros(side, side, dtype=torch.int64)
    for cell in range(number):
        y, x = cell // columns * step, cell % columns * step
        label_map[y : y + step - 2, x : x + step - 1] = cell + 1
    return label_map


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc"
)
def test_a_step_with_1200_objects_in_one_image_needs_less_than_700_mib():
    from pixvox.configuration import compose, resolved
    from pixvox.segmenter import PARTS, Segmenter

    plain = ["spatial_dims=2", "in_channels=1", "num_classes=1"]
    quick = ["backbone.channels=[8,16,16,32]", "head.num_points=1024"]
    config = resolved(compose("train", ["experiment=nuclei_dense", *plain, *quick]))
    model = Segmenter.from_config({part: config[part] for part in PARTS}).train()
    nothing = model.loss(torch.zeros(1, 1, 32, 32), [Instances.empty((32, 32))])
    sum(nothing.values()).backward()  # what is compiled at first use is not of this step
    label_map = _grid_of_cells(1200, 280)
    before = _new_peak()
    losses = model.loss((label_map > 0).float()[None, None], [Instances(masks=label_map)])
    sum(losses.values()).backward()
    assert model.head.num_queries == 1500 and all(torch.isfinite(value) for value in losses.values())
    # The maps of 1,500 queries in 3 layers, of the proposals, and their gradients alone would be 900 MiB.
    assert _peak() - before < 700


def _new_peak():
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak():
    """Return the peak resident memory of this process in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def test_half_precision_and_recomputed_blocks_give_the_losses_of_plain_training():
    head, features = _head().train(), _features((32, 48))
    targets = _targets((32, 48))
    expected = sum(head.loss(head(features, targets), targets).values())
    with torch.autocast("cpu", torch.bfloat16):
        halved = sum(head.loss(head(features, targets), targets).values())
    assert float(halved) == pytest.approx(float(expected), rel=0.03)
    for block in head.blocks():
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    assert torch.equal(sum(head.loss(head(features, targets), targets).values()), expected)
