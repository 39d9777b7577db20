"""Mask R-CNN in 3-D: one slice gives the 2-D results, permuted axes permuted results; and what may be missing."""

import pytest
import torch

from pixvox.heads.maskrcnn import MaskRCNN
from pixvox.structures import Features, Geometry, Instances

CHANNELS, CLASSES = 6, 2


def _head(dims, **options):
    torch.manual_seed(0)
    small = {
        "anchor_sizes": [[8.0]], "box_size": 3, "box_features": 16, "mask_size": 4, "mask_channels": 6, "mask_convs": 1,
        "rpn_samples": 32, "box_samples": 16, "score_threshold": 0.0, "detections_per_image": 20,
        "num_proposals": (50, 50), "aspect_ratios": (1.0,), **options,
    }  # fmt: skip
    head = MaskRCNN((CHANNELS,), ((4,) * dims,), CLASSES, spatial_dims=dims, **small)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():  # contrast between scores, and boxes that move
        for name, parameter in head.named_parameters():
            if parameter.dim() > 1:
                parameter.copy_(
                    torch.randn(parameter.shape, generator=generator) * parameter[0].numel() ** -0.5
                )
                parameter.mul_(0.3 if "deltas" in name else 1.0)
    return head


def _features(size, levels=1, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    grid = tuple(-(-n // 4) for n in size)
    maps = tuple(torch.randn(batch, CHANNELS, *grid, generator=generator) for _ in range(levels))
    images = torch.zeros(batch, 1, *size)
    return Features(maps, ((4,) * len(size),) * levels, images, size, torch.tensor([size] * batch))


def _lift(value, like, name):
    """Put a 2-D parameter into its 3-D shape with z neutral."""
    if value.shape == like.shape:
        return value
    lifted = torch.zeros_like(like)
    if "deltas" in name:  # (x, y, w, h) among (x, y, z, w, h, d)
        rows = torch.tensor([0, 1, 3, 4])
        flat, target = value.reshape(-1, 4, *value.shape[1:]), lifted.reshape(-1, 6, *like.shape[1:])
        target[:, rows] = flat[..., None, :, :] if "rpn" in name and value.dim() == 4 else flat
        return target.reshape(like.shape)
    if name == "box_branch.linears.0.weight":  # the first of three equal slices of a region's features
        lifted.view(like.shape[0], CHANNELS, 3, 9)[:, :, 0] = value.view(like.shape[0], CHANNELS, 9)
    elif name == "mask_branch.2.weight":  # the transposed convolution repeats its slice
        lifted[:] = value[:, :, None]
    else:
        lifted[:, :, like.shape[2] // 2] = value
    return lifted


@pytest.fixture
def pair(monkeypatch):
    flat, deep = _head(2), _head(3)
    state = deep.state_dict()
    deep.load_state_dict({k: _lift(v, state[k], k) for k, v in flat.state_dict().items()})
    # Neutral depth: anchors of exactly the one slice.
    cells = torch.tensor([[-4.0, -4.0, 0.0, 4.0, 4.0, 1.0]])
    monkeypatch.setattr(deep.rpn.anchors, "cell_anchors", lambda level, dims: cells)
    return flat, deep


def _volume(features):
    size = (1, *features.images.shape[2:])
    maps = tuple(level[:, :, None] for level in features.levels)
    return Features(
        maps, ((1, 4, 4),), features.images[:, :, None], size, torch.tensor([size] * len(features.images))
    )


def test_detections_on_one_slice_equal_2d(pair):
    flat, deep = (head.eval() for head in pair)
    deep.strides = ((1, 4, 4),)
    features = _features((28, 40))
    size = (28, 40)
    with torch.no_grad():
        expected = flat.postprocess(flat(features), [Geometry.identity(size)] * 2)
        results = deep.postprocess(deep(_volume(features)), [Geometry.identity((1, *size))] * 2)
    for result, other in zip(results, expected, strict=True):
        assert len(other.instances) > 5
        boxes = result.instances.boxes
        assert torch.allclose(boxes[:, [0, 1, 3, 4]], other.instances.boxes, atol=1e-4)
        assert torch.equal(boxes[:, [2, 5]], torch.tensor([[0.0, 1.0]]).expand(len(boxes), 2))
        assert torch.allclose(result.instances.scores, other.instances.scores, atol=1e-5)
        masks, flat_masks = result.instances.masks.dense()[:, 0], other.instances.masks.dense()
        assert (masks != flat_masks).float().mean() < 1e-3


def test_losses_on_one_slice_equal_2d_up_to_the_box_terms_of_depth(pair):
    flat, deep = (head.train() for head in pair)
    deep.strides = ((1, 4, 4),)
    features = _features((28, 40))
    label_map = torch.zeros(28, 40, dtype=torch.int64)
    label_map[3:12, 5:17], label_map[15:24, 20:31] = 1, 2
    labels = torch.tensor([1, 0])
    targets = [Instances(masks=label_map, labels=labels), Instances.empty((28, 40))]
    deep_targets = [Instances(masks=label_map[None], labels=labels), Instances.empty((1, 28, 40))]
    torch.manual_seed(5)
    expected = flat.loss(flat(features, targets), targets)
    torch.manual_seed(5)
    losses = deep.loss(deep(_volume(features), deep_targets), deep_targets)
    for name in expected:
        # Depth is the same for anchors, regions and objects, so its box terms are zero.
        assert losses[name].item() == pytest.approx(expected[name].item(), rel=1e-4), name


def _permute(value, name, order):
    """Permute the spatial axes of a parameter, and the coordinates of box shifts."""
    if value.dim() == 5:
        value = value.permute(0, 1, *(2 + o for o in order))
    if name == "box_branch.linears.0.weight":
        cubes = value.view(-1, CHANNELS, 3, 3, 3).permute(0, 1, *(2 + o for o in order))
        return cubes.reshape(value.shape)
    if "deltas" in name:
        xyz = [2 - o for o in reversed(order)]
        rows = torch.tensor([*xyz, *(3 + i for i in xyz)])
        return value.unflatten(0, (-1, 6))[:, rows].flatten(0, 1)
    return value


@pytest.mark.parametrize("order", [(2, 1, 0), (1, 2, 0)])
def test_permuting_the_axes_permutes_the_detections(order):
    head, turned = _head(3).eval(), _head(3).eval()
    turned.load_state_dict({k: _permute(v, k, order) for k, v in head.state_dict().items()})
    size = (16, 24, 32)
    features = _features(size, batch=1)
    turned_size = tuple(size[o] for o in order)
    axes = (0, 1, *(2 + o for o in order))
    maps = tuple(level.permute(axes).contiguous() for level in features.levels)
    rotated = Features(
        maps, ((4, 4, 4),), torch.zeros(1, 1, *turned_size), turned_size, torch.tensor([turned_size])
    )
    with torch.no_grad():
        (expected,) = head.postprocess(head(features), [Geometry.identity(size)])
        (result,) = turned.postprocess(turned(rotated), [Geometry.identity(turned_size)])
    xyz = [2 - o for o in reversed(order)]
    boxes = expected.instances.boxes[:, [*xyz, *(3 + i for i in xyz)]]
    assert torch.allclose(result.instances.boxes, boxes, atol=1e-3)
    masks = expected.instances.masks.dense().permute(0, *(1 + o for o in order))
    assert (result.instances.masks.dense() != masks).float().mean() < 1e-3


@pytest.mark.parametrize("size", [(28, 40), (12, 20, 28)])
def test_a_batch_without_objects_gives_finite_gradients_to_every_parameter(size):
    head = _head(len(size)).train()
    targets = [Instances.empty(size)] * 2
    losses = head.loss(head(_features(size), targets), targets)
    sum(losses.values()).backward()
    assert losses["mask"] == 0
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in head.parameters())


def test_no_proposal_at_all_gives_typed_empty_results():
    head = _head(2, score_threshold=0.999999).eval()
    size = (28, 40)
    with torch.no_grad():
        head.rpn.objectness.bias.fill_(0)
        outputs = head(_features(size))
        results = head.postprocess(outputs, [Geometry.identity(size)] * 2)
    for result in results:
        assert len(result.instances) == 0
        assert result.label_map().shape == size
        assert result.instances.boxes.shape == (0, 4)


def test_crowds_are_neither_learned_nor_negative():
    head = _head(2, rpn_samples=10_000).train()
    size = (28, 40)
    label_map = torch.zeros(size, dtype=torch.int64)
    label_map[:, 20:] = 1
    crowd = [Instances(masks=label_map, ignore=torch.tensor([True]))] * 2
    features = _features(size)
    anchors = head.rpn(features, crowd)["anchors"]
    sample = head.rpn.sample(anchors, crowd)[0]
    assert len(sample["positives"]) == 0
    inside = (anchors[:, :2] >= 0).all(1) & (anchors[:, 2] <= 40) & (anchors[:, 3] <= 28)
    negatives = anchors[sample["negatives"]][inside[sample["negatives"]]]
    assert ((negatives[:, 0] + negatives[:, 2]) / 2).max() <= 20
    everything = head.rpn.sample(anchors, [Instances.empty(size)] * 2)[0]
    assert len(everything["negatives"]) == len(anchors) > len(sample["negatives"])


def test_eval_mode_with_targets_gives_losses_and_detections():
    head = _head(2).eval()
    targets = [Instances(masks=torch.ones(28, 40, dtype=torch.int64))] * 2
    outputs = head(_features((28, 40)), targets)
    assert head.loss(outputs, targets).keys() == {"rpn_objectness", "rpn_box", "class", "box", "mask"}
    assert outputs["boxes"].shape[0] == outputs["roi_mask_logits"].shape[0] == 2
    assert outputs["class_logits"].shape[-1] == CLASSES + 1


def test_label_maps_of_classes_are_refused_with_the_repair():
    with pytest.raises(ValueError, match="use a semantic head such as head=fcn"):
        _head(2)(_features((28, 40)), torch.zeros(2, 28, 40, dtype=torch.int64))


def test_levels_of_different_channels_are_refused_with_the_repair():
    with pytest.raises(ValueError, match=r"neck=fpn"):
        MaskRCNN((4, 8), ((4, 4), (8, 8)), 1)


def test_anchor_sizes_must_fit_the_levels():
    with pytest.raises(ValueError, match="anchor_sizes has 1 lists for 2 levels"):
        MaskRCNN((4, 4), ((4, 4), (8, 8)), 1, anchor_sizes=[[8.0]])


def test_masks_of_many_detections_are_computed_some_at_a_time(monkeypatch):
    head, features, widths = _head(2).eval(), _features((28, 40)), []
    with torch.no_grad():
        together = head(features)
        monkeypatch.setattr("pixvox.heads.maskrcnn._MASK_ELEMENTS", 3 * 6 * 8**2)
        head.mask_branch.register_forward_hook(lambda _, given, made: widths.append(len(made)))
        apart = head(features)
    assert len(widths) > 4
    assert max(widths) == 3
    torch.testing.assert_close(apart["roi_mask_logits"], together["roi_mask_logits"])
