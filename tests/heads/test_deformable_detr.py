"""Deformable DETR in both dimensions: axes, one slice, gradients, padding, options; and that it learns."""

import pytest
import torch
from torch import nn

import pixvox
from pixvox.heads.deformable_detr import DeformableDETR
from pixvox.losses.query_classification import IoUAware, SoftmaxWithNoObject
from pixvox.structures import Features, Geometry, Instances

CHANNELS, PIXELS, CLASSES = 8, 6, 3
VARIANTS = [{}, {"refine": True}, {"two_stage": True}]
STRIDES = (4, 8, 16)


def _head(dims, seed=0, wide=True, **options):
    torch.manual_seed(seed)
    small = {"num_queries": 7, "num_layers": 2, "num_heads": 2, "points_per_head": 3, "feedforward": 12,
             "dropout": 0.0, "num_points": None, **options}  # fmt: skip
    widths = (PIXELS, CHANNELS, CHANNELS) if options.get("masks", True) else (CHANNELS,) * 3
    head = DeformableDETR(widths, [(s,) * dims for s in STRIDES], CLASSES, dims, **small)
    if wide:  # contrast between queries, and boxes that move
        for _, parameter in sorted(head.named_parameters()):
            nn.init.normal_(parameter, std=0.3)
    return head.eval()


def _features(size, batch=2, seed=1, valid=None, first=PIXELS):
    generator = torch.Generator().manual_seed(seed)
    strides = tuple((s,) * len(size) for s in STRIDES)
    levels = tuple(
        torch.randn(batch, c, *(-(-n // s) for n in size), generator=generator)
        for c, s in zip((first, CHANNELS, CHANNELS), STRIDES, strict=True)
    )
    valid = torch.tensor([size] * batch if valid is None else valid)
    return Features(levels, strides, torch.zeros(batch, 1, *size), size, valid)


def _turn(values, order):
    """Permute coordinates (x, y, z) or (x, y, z, w, h, d) as the axes (z, y, x) are permuted."""
    xyz = [2 - o for o in reversed(order)]
    return values[..., [*xyz, *(3 + i for i in xyz)][: values.shape[-1]]]


def _turned(state, order):
    """Permute what has axes: offsets, points, changes of boxes, and the encoding of proposals."""
    turned = {}
    for name, value in state.items():
        if "sampling_offsets" in name:
            value = _turn(value.unflatten(0, (-1, 3)).movedim(1, -1), order).movedim(-1, 1).flatten(0, 1)
        elif ".points." in name or (".layers.2." in name and "box_branch" in name):
            value = _turn(value.movedim(0, -1), order).movedim(-1, 0)
        elif name == "two_stage.queries.linear.weight":
            value = _turn(value.unflatten(1, (6, -1)).movedim(1, -1), order).movedim(-1, 1).flatten(1)
        turned[name] = value
    return turned


@pytest.mark.parametrize("options", VARIANTS, ids=str)
@pytest.mark.parametrize("order", [(2, 1, 0), (1, 2, 0)])
def test_permuting_the_axes_permutes_the_predictions(options, order):
    head, other = _head(3, **options), _head(3, **options)
    other.load_state_dict(_turned(head.state_dict(), order))
    size = (16, 24, 32)
    features = _features(size)
    axes = (0, 1, *(2 + o for o in order))
    turned_size = tuple(size[o] for o in order)
    turned = Features(
        tuple(level.permute(axes).contiguous() for level in features.levels), features.strides,
        torch.zeros(2, 1, *turned_size), turned_size, torch.tensor([turned_size] * 2),
    )  # fmt: skip
    with torch.no_grad():
        expected, result = head(features), other(turned)
    assert torch.allclose(result["class_logits"], expected["class_logits"], atol=1e-4)
    assert torch.allclose(result["boxes"], _turn(expected["boxes"], order), atol=1e-5)
    assert torch.allclose(result["mask_logits"], expected["mask_logits"].permute(axes), atol=1e-4)


def _lifted(flat, deep):
    """Put the weights of a head for images into one for volumes, with everything of z at zero."""
    state = deep.state_dict()
    for name, value in flat.state_dict().items():
        if value.shape == state[name].shape:
            state[name] = value
            continue
        lifted = torch.zeros_like(state[name])
        if "sampling_offsets" in name:
            lifted.unflatten(0, (-1, 3))[:, :2] = value.unflatten(0, (-1, 2))
        elif name == "two_stage.queries.linear.weight":
            lifted.unflatten(1, (6, -1))[:, [0, 1, 3, 4]] = value.unflatten(1, (4, -1))
        else:
            lifted[[0, 1] if len(value) == 2 else [0, 1, 3, 4]] = value
        state[name] = lifted
    deep.load_state_dict(state)


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_one_slice_gives_what_2d_gives(options):
    """Neutral: offsets and changes along z are zero, so that queries stay mid-slice; the losses do not see z."""
    terms = {"class": 2.0, "mask": 5.0, "dice": 5.0}
    flat, deep = (_head(dims, costs=terms, weights=terms, **options) for dims in (2, 3))
    _lifted(flat, deep)
    deep.strides = tuple((1, *stride[1:]) for stride in deep.strides)
    size = (32, 48)
    features = _features(size)
    volume = Features(
        tuple(level[:, :, None] for level in features.levels), ((1, 4, 4), (1, 8, 8), (1, 16, 16)),
        torch.zeros(2, 1, 1, *size), (1, *size), torch.tensor([[1, *size]] * 2),
    )  # fmt: skip
    expected, result = flat(features), deep(volume)
    assert torch.allclose(result["class_logits"], expected["class_logits"], atol=1e-4)
    assert torch.allclose(result["boxes"][..., [0, 1, 3, 4]], expected["boxes"], atol=1e-5)
    assert torch.equal(result["boxes"][..., 2], torch.full((2, 7), 0.5))
    assert torch.allclose(result["mask_logits"][:, :, 0], expected["mask_logits"], atol=1e-4)
    label_map = torch.zeros(size, dtype=torch.int64)
    label_map[3:12, 5:17], label_map[15:24, 20:31] = 1, 2
    labels = torch.tensor([1, 0])
    truth = [Instances(masks=label_map, labels=labels), Instances.empty(size)]
    deep_truth = [Instances(masks=label_map[None], labels=labels), Instances.empty((1, *size))]
    wanted, losses = flat.loss(expected, truth), deep.loss(result, deep_truth)
    for name, value in wanted.items():
        if not name.startswith("proposals_"):
            assert losses[name].item() == pytest.approx(value.item(), rel=1e-4), name


@pytest.mark.parametrize("options", [*VARIANTS, {"masks": False}], ids=str)
@pytest.mark.parametrize("size", [(32, 48), (16, 24, 32)])
@pytest.mark.parametrize("empty", [False, True])
def test_every_parameter_gets_a_finite_gradient(options, size, empty):
    head = _head(len(size), wide=False, **options).train()
    features = _features(size, first=PIXELS if options.get("masks", True) else CHANNELS)
    label_map = torch.zeros(size, dtype=torch.int64)
    label_map[..., 3:12], label_map[..., 15:24] = 1, 2
    targets = [Instances.empty(size) if empty else Instances(masks=label_map)] * 2
    losses = head.loss(head(features, targets), targets)
    sum(losses.values()).backward()
    without = [n for n, p in head.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert without == []


@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_what_lies_in_padding_changes_no_query(options):
    head = _head(2, **options)
    features = _features((32, 48), valid=[(32, 48), (16, 24)])
    noisy = _features((32, 48), valid=[(32, 48), (16, 24)])
    for level, (stride, *_) in zip(noisy.levels, noisy.strides, strict=True):
        level[1, :, -(-16 // stride) :] = 9.0
        level[1, :, :, -(-24 // stride) :] = 9.0
    with torch.no_grad():
        expected, result = head(features), head(noisy)
    assert torch.allclose(result["class_logits"], expected["class_logits"], atol=1e-5)
    assert torch.allclose(result["boxes"], expected["boxes"], atol=1e-6)


def test_refined_boxes_move_from_layer_to_layer_and_plain_ones_start_afresh():
    for options, starts in (({}, "point"), ({"refine": True}, "box")):
        head = _head(2, **options)
        outputs = head(_features((32, 48)))
        first, second = outputs["auxiliary"][0].boxes, outputs["prediction"].boxes
        for branch in head.box_branches:
            nn.init.zeros_(branch.layers[-1].weight)
            nn.init.zeros_(branch.layers[-1].bias)
        still = head(_features((32, 48)))
        assert not torch.allclose(first, second, atol=1e-3)
        assert torch.allclose(still["auxiliary"][0].boxes, still["prediction"].boxes, atol=1e-4), starts


def test_fewer_tokens_than_queries_give_a_query_each():
    head = _head(2, two_stage=True, num_queries=500)
    outputs = head(_features((32, 48)))
    assert outputs["boxes"].shape == (2, 4 * 6 + 2 * 3, 4)
    (first, _) = head.postprocess(outputs, [Geometry.identity((32, 48))] * 2)
    assert torch.isfinite(first.instances.boxes).all()


def test_proposals_learn_that_there_is_an_object_whatever_its_class():
    head = _head(2, two_stage=True).train()
    label_map = torch.zeros(32, 48, dtype=torch.int64)
    label_map[3:12, 5:17] = 1
    truths = [[Instances(masks=label_map, labels=torch.tensor([label]))] * 2 for label in (0, 2)]
    features = _features((32, 48))
    outputs = head(features, truths[0])
    assert outputs["proposals"].class_logits.shape == (2, 7, 1)
    first, second = (head.loss(outputs, truth) for truth in truths)
    for name in ("proposals_class", "proposals_box", "proposals_giou"):
        assert torch.equal(first[name], second[name])
    assert not torch.equal(first["class"], second["class"])


@pytest.mark.parametrize(
    "classification", [SoftmaxWithNoObject(), IoUAware()], ids=lambda c: type(c).__name__
)
def test_any_classification_serves_both_stages(classification):
    head = _head(2, two_stage=True, classification=classification).train()
    label_map = torch.zeros(32, 48, dtype=torch.int64)
    label_map[3:12, 5:17] = 1
    truths = [Instances(masks=label_map, labels=torch.tensor([2]))] * 2
    outputs = head(_features((32, 48)), truths)
    proposed = outputs["proposals"].class_logits
    assert proposed.shape[-1] == classification.num_logits(1)
    scores = classification.scores(proposed)[..., 0]
    assert (scores[:, :-1] >= scores[:, 1:]).all()  # best first, whatever a logit means
    assert all(torch.isfinite(loss) for loss in head.loss(outputs, truths).values())


def test_levels_of_different_channels_are_refused_with_the_repair():
    with pytest.raises(
        ValueError, match="all levels but the finest need the same channels.*neck=pixel_decoder"
    ):
        DeformableDETR((4, 8, 16), ((4, 4), (8, 8), (16, 16)), 1)
    with pytest.raises(ValueError, match="neck.mask_channels=null"):
        DeformableDETR((4, 8), ((4, 4), (8, 8)), 1, masks=False)


def test_one_level_cannot_serve_masks_and_queries():
    with pytest.raises(ValueError, match="none for the queries; put neck=pixel_decoder"):
        DeformableDETR((8,), ((4, 4),), 1)


def _scene(size, seed):
    """Bright boxes on a dark ground, with their instances."""
    generator = torch.Generator().manual_seed(seed)
    image, label_map = 0.2 * torch.randn(1, *size, generator=generator), torch.zeros(size, dtype=torch.int64)
    for number in (1, 2):
        sides = [int(torch.randint(n // 4, n // 2, (), generator=generator)) for n in size]
        corner = [
            int(torch.randint(0, n - s, (), generator=generator)) for n, s in zip(size, sides, strict=True)
        ]
        region = tuple(slice(c, c + s) for c, s in zip(corner, sides, strict=True))
        image[(0, *region)], label_map[region] = float(number), number
    present = label_map.unique()[1:]
    return image, Instances(masks=label_map, labels=present - 1)


@pytest.mark.parametrize(("size", "options"), [((48, 64), {"two_stage": True}), ((16, 32, 24), {})], ids=str)
def test_it_learns(size, options):
    torch.manual_seed(0)
    model = pixvox.create_model(
        head="deformable_detr", backbone="simple", num_classes=2, spatial_dims=len(size), in_channels=1,
        backbone__channels=[16, 24, 32], backbone__strides=[4, 8, 16], backbone__norm="group",
        neck__channels=32, neck__mask_channels=16, neck__num_layers=1, neck__num_heads=4, neck__feedforward=32,
        neck__extra_levels=0, neck__dropout=0.0, num_queries=8, num_layers=2, num_heads=4, feedforward=32,
        dropout=0.0, num_points=None, **options,
    ).train()  # fmt: skip
    scenes = [_scene(size, seed) for seed in range(4)]
    images, targets = torch.stack([image for image, _ in scenes]), [truth for _, truth in scenes]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    totals = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = sum(model.loss(images, targets).values())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        totals.append(loss.item())
    assert min(totals[-5:]) < totals[0] / 2
