"""Mask DINO in 2-D and 3-D: axes, one slice, gradients, boxes of masks, padding, learning, and what may be missing."""

import numpy as np
import pytest
import torch

from pixvox.backbones.simple import Simple
from pixvox.data.fingerprint import Fingerprint
from pixvox.data.metadata import Metadata
from pixvox.heads import denoising
from pixvox.heads.maskdino import MaskDINO, mask_boxes
from pixvox.heads.query_head import QueryMasks
from pixvox.necks.pixel_decoder import PixelDecoder
from pixvox.segmenter import Segmenter
from pixvox.structures import Features, Geometry, Instances

PIXELS, CHANNELS, CLASSES = 6, 12, 3


def _head(dims, **options):
    torch.manual_seed(0)
    small = {
        "num_queries": 7,
        "num_layers": 2,
        "num_heads": 2,
        "feedforward": 16,
        "num_points": None,
        **options,
    }
    strides = ((4,) * dims, (8,) * dims, (16,) * dims)
    head = MaskDINO((PIXELS, CHANNELS, CHANNELS), strides, CLASSES, dims, **small)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():  # wide weights: contrast between scores, boxes that move, masks of a few cells
        for name, parameter in head.named_parameters():
            spread = 0.1 if parameter.dim() == 1 else parameter[0].numel() ** -0.5
            noise = torch.randn(parameter.shape, generator=generator) * spread
            parameter.copy_(noise + 1 if "norm" in name and name.endswith("weight") else noise)
    return head


def _features(size, batch=2, valid=None):
    generator = torch.Generator().manual_seed(1)
    maps = tuple(
        torch.randn(batch, width, *(-(-n // stride) for n in size), generator=generator)
        for width, stride in ((PIXELS, 4), (CHANNELS, 8), (CHANNELS, 16))
    )
    strides = tuple((stride,) * len(size) for stride in (4, 8, 16))
    sizes = torch.tensor([valid or size] * batch)
    return Features(maps, strides, torch.zeros(batch, 1, *size), size, sizes)


def _targets(size, counts=(2, 1)):
    targets = []
    for count in counts:
        label_map = torch.zeros(size, dtype=torch.int64)
        for i in range(count):
            part = tuple(slice(n // 8 + i * n // 3, n // 8 + i * n // 3 + n // 4) for n in size)
            label_map[part] = i + 1
        targets.append(Instances(masks=label_map, labels=torch.arange(count) % CLASSES))
    return targets


def _columns(value, order):
    """Reorder the blocks of a matrix's columns, one per coordinate of a box."""
    return torch.cat([value.chunk(len(order), dim=1)[i] for i in order], dim=1)


# One slice equals 2-D.


def _lift(value, like, name):
    """Put a 2-D parameter into its 3-D shape with z neutral."""
    if value.shape == like.shape:
        return value
    lifted = torch.zeros_like(like)
    if "sampling_offsets" in name:
        lifted.unflatten(0, (-1, 3))[:, :2] = value.unflatten(0, (-1, 2))
    elif "box_branch" in name:
        lifted[[0, 1, 3, 4]] = value
    else:  # the encoding of a box: one block of columns per coordinate
        blocks, deep = value.chunk(4, dim=1), lifted.chunk(6, dim=1)
        for place, block in zip((0, 1, 3, 4), blocks, strict=True):
            deep[place].copy_(block)
    return lifted


def _volume(features):
    size = (1, *features.images.shape[2:])
    maps = tuple(level[:, :, None] for level in features.levels)
    strides = tuple((1, *stride) for stride in features.strides)
    sizes = torch.tensor([size] * len(features.images))
    return Features(maps, strides, features.images[:, :, None], size, sizes)


@pytest.mark.parametrize("initial_boxes", ["masks", "tokens"])
def test_one_slice_gives_the_predictions_of_2d(initial_boxes):
    """Neutral: offsets, box changes and encoding of z are zero; boxes keep the depth that they start with."""
    flat, deep = (_head(dims, initial_boxes=initial_boxes).eval() for dims in (2, 3))
    state = deep.state_dict()
    deep.load_state_dict({k: _lift(v, state[k], k) for k, v in flat.state_dict().items()})
    features = _features((32, 48))
    with torch.no_grad():
        expected, outputs = flat(features), deep(_volume(features))
    assert torch.allclose(outputs["class_logits"], expected["class_logits"], atol=1e-5)
    assert torch.allclose(outputs["mask_logits"][:, :, 0], expected["mask_logits"], atol=1e-4)
    assert torch.allclose(outputs["boxes"][..., [0, 1, 3, 4]], expected["boxes"], atol=1e-5)
    assert torch.allclose(outputs["boxes"][..., 2], torch.tensor(0.5), atol=1e-4)
    # Masks of one slice are as deep as the volume (or empty), boxes of tokens a share that grows with the stride.
    depths = outputs["boxes"][..., 5].unique()
    wanted = torch.tensor([0.0, 1.0] if initial_boxes == "masks" else [0.05, 0.1])
    assert ((depths[:, None] - wanted).abs() < 1e-4).any(dim=1).all()


# Permuted axes.


def _permute(value, name, order):
    """Permute what a parameter says of x, y and z."""
    xyz = [2 - o for o in reversed(order)]
    box = [*xyz, *(3 + i for i in xyz)]
    if "sampling_offsets" in name:
        return value.unflatten(0, (-1, 3))[:, xyz].flatten(0, 1)
    if name.startswith("box_branch.layers.2"):
        return value[box]
    if name == "positions.mlp.layers.0.weight":
        return _columns(value, box)
    return value


@pytest.mark.parametrize("order", [(2, 1, 0), (1, 2, 0)])
def test_permuting_the_axes_permutes_the_predictions(order):
    head, turned = _head(3).eval(), _head(3).eval()
    turned.load_state_dict({k: _permute(v, k, order) for k, v in head.state_dict().items()})
    features = _features((16, 32, 48), batch=1)
    axes = (0, 1, *(2 + o for o in order))
    size = tuple(features.input_size[o] for o in order)
    maps = tuple(level.permute(axes).contiguous() for level in features.levels)
    rotated = Features(maps, features.strides, torch.zeros(1, 1, *size), size, torch.tensor([size]))
    with torch.no_grad():
        expected, outputs = head(features), turned(rotated)
    xyz = [2 - o for o in reversed(order)]
    assert torch.allclose(outputs["class_logits"], expected["class_logits"], atol=1e-4)
    assert torch.allclose(outputs["boxes"], expected["boxes"][..., [*xyz, *(3 + i for i in xyz)]], atol=1e-5)
    assert torch.allclose(outputs["mask_logits"], expected["mask_logits"].permute(axes), atol=1e-3)


# Gradients and losses.


@pytest.mark.parametrize("size", [(32, 48), (16, 24, 32)])
@pytest.mark.parametrize("counts", [(2, 1), (0, 0)])
def test_every_parameter_gets_a_finite_gradient_with_objects_and_without(size, counts):
    head, features = _head(len(size)).train(), _features(size)
    targets = _targets(size, counts)
    losses = head.loss(head(features, targets), targets)
    sum(losses.values()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in head.parameters())
    kinds = {"", "auxiliary_", "proposals_"} | ({"denoising_"} if sum(counts) else set())
    assert losses.keys() == {
        kind + term for kind in kinds for term in ("class", "box", "giou", "mask", "dice")
    }


def test_denoising_queries_do_not_change_what_the_others_predict():
    head, features = _head(2).train(), _features((32, 48))
    with_noise = head(features, _targets((32, 48)))
    head.denoising.number = 0
    without = head(features, _targets((32, 48)))
    assert with_noise["denoising"].predictions[0].boxes.shape[1] == 100
    ours, theirs = with_noise["prediction"], without["prediction"]
    assert torch.allclose(ours.class_logits, theirs.class_logits, atol=1e-5)
    assert torch.allclose(ours.boxes, theirs.boxes, atol=1e-5)
    assert without["denoising"] is None


def test_undisturbed_queries_start_from_the_objects_they_denoise(monkeypatch):
    monkeypatch.setattr(
        denoising, "draw_noise",
        lambda groups, objects, sides, *rest: denoising.Noise(
            torch.ones(groups, objects), torch.zeros(groups, objects, dtype=torch.int64),
            torch.full((groups, objects, sides), 0.5),
        ),
    )  # fmt: skip
    head, targets = _head(2).train(), _targets((32, 48))
    first = head(_features((32, 48)), targets)["denoising"].predictions[0]
    boxes = targets[0].boxes / torch.tensor([48.0, 32, 48, 32])
    centre, side = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    assert torch.allclose(first.boxes[0, :2], torch.cat([centre, side], dim=1), atol=1e-5)


def test_contrastive_denoising_is_learned_too():
    size = (16, 24, 32)
    head, targets = _head(3, denoising_queries=9, contrastive=True).train(), _targets(size)
    outputs = head(_features(size), targets)
    assert outputs["denoising"].objects.tolist() == [[0, 1, -1, -1] * 2, [0, -1, -1, -1] * 2]
    assert all(value.isfinite() for value in head.loss(outputs, targets).values())


def test_ignored_objects_are_neither_denoised_nor_need_a_class():
    size = (32, 48)
    head, targets = _head(2, denoising_queries=5).train(), _targets(size)
    crowd = targets[0]
    targets[0] = Instances(
        masks=crowd.masks, labels=torch.tensor([1, -1]), ignore=torch.tensor([False, True])
    )
    outputs = head(_features(size), targets)
    assert outputs["denoising"].objects.tolist() == [[0] * 5] * 2
    assert all(value.isfinite() for value in head.loss(outputs, targets).values())


def test_eval_mode_with_targets_gives_losses_and_predictions_without_denoising():
    head, targets = _head(2).eval(), _targets((32, 48))
    outputs = head(_features((32, 48)), targets)
    assert not any(name.startswith("denoising") for name in head.loss(outputs, targets))
    assert outputs["class_logits"].shape == (2, 7, CLASSES) and outputs["mask_logits"].shape == (2, 7, 8, 12)


def test_more_queries_than_tokens_are_as_many_as_tokens():
    outputs = _head(2, num_queries=500).eval()(_features((32, 48)))
    assert outputs["class_logits"].shape[1] == 4 * 6 + 2 * 3


def test_the_most_crowded_image_decides_on_the_number_of_denoising_queries():
    metadata = Metadata("instance", 2, ("cell",), 1)
    facts = Fingerprint(metadata, 3, np.array([[64, 64]] * 3), objects_per_image=np.array([3, 410, 8]))
    found = {s.key: s.value for s in MaskDINO.suggest(facts, {}, [(4, 4)], (64, 64))}
    assert found == {"num_queries": 650, "denoising_queries": 450}


# Boxes of masks.


def _masks(dense):
    """Return masks whose logits are 1 inside and -1 outside, one channel per query."""
    logits = dense.float() * 2 - 1
    return QueryMasks(torch.eye(dense.shape[1]).expand(dense.shape[0], -1, -1), logits)


@pytest.mark.parametrize("size", [(5, 7), (3, 5, 7)])
@pytest.mark.parametrize("chunk", [2, None])
def test_boxes_of_masks_are_those_of_instances(size, chunk):
    dense = torch.rand(2, 5, *size, generator=torch.Generator().manual_seed(0)) > 0.93
    dense[:, 0].flatten(1)[:, 0] = True
    dense[1, 4] = False
    extent = torch.tensor(size[::-1], dtype=torch.float32)
    found = mask_boxes(_masks(dense), extent.expand(2, -1), chunk)
    for image in range(2):
        boxes = Instances(masks=dense[image]).boxes / extent.repeat(2)
        low, high = boxes.chunk(2, dim=1)
        expected = torch.cat([(low + high) / 2, high - low], dim=1)
        some = dense[image].flatten(1).any(dim=1)
        assert torch.allclose(found[image, some], expected[some], atol=1e-4)
        assert (found[image, ~some] < 1e-4).all()
    assert (found[1, 4] < 1e-4).all()


def test_boxes_of_masks_are_relative_to_the_valid_part():
    dense = torch.zeros(1, 1, 4, 8, dtype=torch.bool)
    dense[..., 1:3, 2:8] = True
    box = mask_boxes(_masks(dense), torch.tensor([[5.0, 4.0]]))[0, 0]
    # From x = 2 / 5 to the end of the valid part; what lies beyond does not count.
    assert torch.allclose(box, torch.tensor([0.7, 0.5, 0.6, 0.5]), atol=1e-4)


# Errors.


def test_levels_of_different_channels_are_refused_with_the_repair():
    with pytest.raises(ValueError, match="put neck=pixel_decoder before this head"):
        MaskDINO((6, 8, 16), ((4, 4), (8, 8), (16, 16)), 2)
    with pytest.raises(ValueError, match="put neck=pixel_decoder before this head"):
        MaskDINO((6,), ((4, 4),), 2)


def test_sides_of_proposals_must_fit_the_levels():
    with pytest.raises(ValueError, match="proposal_sides has 1 values for 2 levels"):
        _head(2, proposal_sides=[0.1])


def test_a_label_that_is_no_class_is_refused():
    targets = _targets((32, 48))
    targets[0].labels[1] = CLASSES
    with pytest.raises(ValueError, match="labels run from 0 to 3, but the head has 3 classes"):
        _head(2).train()(_features((32, 48)), targets)


# It learns, and reads what it should.


def _model(dims, levels=3):
    torch.manual_seed(0)
    strides = (4, 8, 16)[:levels]
    backbone = Simple(dims, 1, channels=(8, 16, 24)[:levels], strides=strides, norm="group")
    neck = PixelDecoder(
        backbone.channels, backbone.strides, dims, 24, 16, num_layers=1, num_heads=4, feedforward=48,
        extra_levels=int(levels == 1),
    )  # fmt: skip
    head = MaskDINO(
        neck.channels, neck.strides, CLASSES, dims, num_queries=10, num_layers=2, num_heads=4, feedforward=48,
        denoising_queries=12, num_points=None,
    )  # fmt: skip
    return Segmenter(backbone, neck, head)


def _scene(size, seed):
    """Return an image of bright and dark blocks on whole cells of the mask grid, and the blocks."""
    label_map = torch.zeros(size, dtype=torch.int64)
    for i in range(2):
        start = [(0 if (i + axis + seed) % 2 else n // 8 * 4) for axis, n in enumerate(size)]
        part = tuple(slice(first, first + n // 16 * 4 + 4) for first, n in zip(start, size, strict=True))
        label_map[part] = i + 1
    labels = torch.tensor([0, 1])
    value = torch.tensor([0.0, 1.0, -1.0])[label_map]
    return value[None], Instances(masks=label_map, labels=labels)


@pytest.mark.parametrize("size", [(32, 48), (16, 24, 32)])
def test_it_learns_a_few_scenes(size):
    model = _model(len(size)).train()
    images, targets = zip(*(_scene(size, seed) for seed in range(2)), strict=True)
    images = torch.stack(images)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    history = []
    for _ in range(24):
        losses = model.loss(images, targets)
        total = sum(value for name, value in losses.items() if not name.startswith("denoising"))
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append(total.item())
    assert sum(history[-3:]) < 0.5 * sum(history[:3])


@pytest.mark.parametrize("levels", [1, 3])
def test_single_maps_and_pyramids_are_read(levels):
    model = _model(2, levels).eval()
    with torch.no_grad():
        outputs = model(torch.randn(1, 1, 37, 50))
    results = model.postprocess(outputs, [Geometry.identity((37, 50))])
    assert outputs["class_logits"].shape == (1, 10, CLASSES)
    assert results[0].size == (37, 50)


def test_padding_changes_no_prediction():
    model = _model(2).eval()
    image = torch.randn(1, 1, 32, 48, generator=torch.Generator().manual_seed(0))
    padded = torch.zeros(1, 1, 64, 64)
    padded[..., :32, :48] = image
    model.backbone.eval()
    with torch.no_grad():
        alone = model.features(image)
        levels = tuple(
            torch.nn.functional.pad(level, (0, 16 // s, 0, 32 // s))
            for level, s in zip(alone.levels, (4, 8, 16), strict=True)
        )
        inside = Features(levels, alone.strides, padded, (64, 64), torch.tensor([[32, 48]]))
        expected, outputs = model.head(alone)["prediction"], model.head(inside)["prediction"]
    assert torch.allclose(outputs.class_logits, expected.class_logits, atol=1e-4)
    assert torch.allclose(outputs.boxes, expected.boxes, atol=1e-5)
