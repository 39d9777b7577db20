"""Mask2Former in 2-D and 3-D: axes, one slice, padding, its three tasks; and it learns."""

import pytest
import torch

import pixvox
from parity import assert_near, randomise
from pixvox.heads.mask2former import Mask2Former
from pixvox.structures import Features, Geometry, Instances
from pixvox.transformer.positions import SinePositionalEncoding

CLASSES = 3


def _head(dims=2, levels=3, width=8, wide=True, **options):
    torch.manual_seed(0)
    small = {
        "num_queries": 6, "channels": 8, "num_layers": 4, "num_heads": 2, "feedforward": 12, "num_points": None,
        **options,
    }  # fmt: skip
    channels = (6, *(width,) * (levels - 1)) if levels > 1 else (6,)
    strides = tuple((4 * 2**i,) * dims for i in range(levels))
    head = Mask2Former(channels, strides, CLASSES, dims, **small)
    return (randomise(head, wide=2.0) if wide else head).eval()


def _features(size, levels=3, width=8, batch=2, seed=1, valid=None):
    generator = torch.Generator().manual_seed(seed)
    strides = [4 * 2**i for i in range(levels)]
    maps = tuple(
        torch.randn(batch, width if i else 6, *(-(-n // stride) for n in size), generator=generator)
        for i, stride in enumerate(strides)
    )
    sizes = torch.tensor(valid or [size] * batch)
    return Features(maps, tuple((s,) * len(size) for s in strides), torch.zeros(batch, 1, *size), size, sizes)


def _same(outputs, expected, turn=lambda masks: masks):
    """Compare every layer's classes and masks."""
    layers = [*outputs["auxiliary"], outputs["prediction"]], [*expected["auxiliary"], expected["prediction"]]
    for own, other in zip(*layers, strict=True):
        assert_near(own.class_logits, other.class_logits, relative=2e-5)
        assert_near(own.masks.logits(), turn(other.masks.logits()), relative=2e-5)


@pytest.mark.parametrize("order", [(1, 2, 0), (0, 2, 1)])
def test_permuting_the_axes_permutes_the_masks(order, monkeypatch):
    # Encodings have depth apart from the plane: they are taken out. Nothing else knows an axis.
    monkeypatch.setattr(
        SinePositionalEncoding, "forward", lambda self, x, valid=None: torch.zeros_like(x[:, :8])
    )
    head, size = _head(3), (32, 64, 48)
    features = _features(size)
    axes = (0, 1, *(2 + axis for axis in order))
    turned_size = tuple(size[axis] for axis in order)
    turned = Features(
        tuple(level.permute(axes) for level in features.levels), features.strides,
        features.images.permute(axes), turned_size, torch.tensor([turned_size] * 2),
    )  # fmt: skip
    with torch.no_grad():
        expected, outputs = head(features), head(turned)
    _same(outputs, expected, lambda masks: masks.permute(axes))


def test_one_slice_gives_what_2d_gives_in_outputs_losses_and_results(monkeypatch):
    # Depth's encoding of the one slice is a constant: it is taken out.
    encode = SinePositionalEncoding._encode
    monkeypatch.setattr(
        SinePositionalEncoding,
        "_encode",
        lambda self, axis, *rest: encode(self, axis, *rest) * (0.0 if axis == -3 else 1.0),
    )
    flat, deep = _head(2, width=12), _head(3, width=12)
    state = deep.state_dict()
    lifted = {
        key: value[..., None, :, :] if value.shape != state[key].shape else value
        for key, value in flat.state_dict().items()
    }
    deep.load_state_dict(lifted)
    deep.strides = tuple((1, *stride) for stride in flat.strides)
    features = _features((32, 48), width=12)
    volume = Features(
        tuple(level[:, :, None] for level in features.levels), deep.strides, features.images[:, :, None], (1, 32, 48),
        torch.tensor([[1, 32, 48]] * 2),
    )  # fmt: skip
    label_map = torch.zeros(32, 48, dtype=torch.int64)
    label_map[3:12, 5:17], label_map[15:24, 20:41] = 1, 2
    labels = torch.tensor([2, 0])
    targets = [Instances(masks=label_map, labels=labels), Instances.empty((32, 48))]
    deep_targets = [Instances(masks=label_map[None], labels=labels), Instances.empty((1, 32, 48))]
    with torch.no_grad():
        expected, outputs = flat(features, targets), deep(volume, deep_targets)
        _same(outputs, expected, lambda masks: masks[:, :, None])
        for name, term in flat.loss(expected, targets).items():
            assert deep.loss(outputs, deep_targets)[name].item() == pytest.approx(term.item(), rel=1e-5), name
        for task in Mask2Former.tasks:
            flat.task = deep.task = task
            flat.segment_threshold = deep.segment_threshold = 0.2
            flats = flat.postprocess(expected, [Geometry.identity((32, 48))] * 2)
            deeps = deep.postprocess(outputs, [Geometry.identity((1, 32, 48))] * 2)
            for own, other in zip(deeps, flats, strict=True):
                if task == "semantic":
                    assert torch.equal(own.class_map[0], other.class_map)
                else:
                    assert len(other.instances) > 0
                    assert torch.equal(own.instances.labels, other.instances.labels)
                    assert torch.equal(own.instances.masks.dense()[:, 0], other.instances.masks.dense())
                    assert own.segments == other.segments or task == "panoptic"


@pytest.mark.parametrize("dims", [2, 3])
def test_what_lies_in_padding_changes_no_query(dims):
    size, valid = (64, 96, 64)[:dims], (40, 64, 64)[:dims]
    head = _head(dims)
    first, second = (_features(size, batch=1, valid=[valid]) for _ in range(2))
    for level, stride in zip(second.levels, (4, 8, 16), strict=True):
        level[:, :, -(-valid[0] // stride) :] = 9.0
    # Masks of the finest level are resized to the coarser ones and reach one cell over the border: kept equal.
    second.levels[0][:, :, 10:12] = first.levels[0][:, :, 10:12]
    with torch.no_grad():
        expected, outputs = head(first), head(second)
    assert_near(outputs["class_logits"], expected["class_logits"])
    assert not torch.equal(outputs["mask_logits"], expected["mask_logits"])


@pytest.mark.parametrize(("size", "levels"), [((32, 48), 3), ((32, 48), 1), ((16, 32, 48), 2)])
@pytest.mark.parametrize("task", ["instance", "semantic"])
def test_every_parameter_gets_a_finite_gradient(size, levels, task):
    head = _head(len(size), levels, wide=False, task=task).train()
    label_map = torch.zeros(2, *size, dtype=torch.int64)
    label_map[0, 3:12, 5:17], label_map[0, :, 20:] = 1, 2
    targets = [Instances(masks=part, labels=torch.arange(int(part.max()))) for part in label_map]
    features = _features(size, levels)
    losses = head.loss(head(features, targets), label_map if task == "semantic" else targets)
    assert set(losses) == {"class", "mask", "dice", "auxiliary_class", "auxiliary_mask", "auxiliary_dice"}
    sum(losses.values()).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), name
        assert float(parameter.grad.abs().max()) > 0 or name.endswith("key.bias"), name


def test_a_list_of_things_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="is_thing has 2 entries for 3 classes"):
        _head(is_thing=[True, False])


def test_targets_of_another_task_are_refused_with_the_repair():
    features, label_maps = _features((32, 48)), torch.zeros(2, 32, 48, dtype=torch.int64)
    head = _head(task="semantic")
    with pytest.raises(ValueError, match=r"head\.task=instance"):
        head.loss(head(features), [Instances.empty((32, 48))] * 2)
    head = _head()
    with pytest.raises(ValueError, match="learns from instances"):
        head.loss(head(features), label_maps)


def test_it_is_listed_for_its_three_tasks():
    for task in ("instance", "semantic", "panoptic"):
        assert "mask2former" in pixvox.list_heads(task)


def _scene(size, seed):
    """Bright boxes of two kinds on a dark ground, as label map and labels."""
    generator = torch.Generator().manual_seed(seed)
    image, label_map = 0.2 * torch.randn(1, *size, generator=generator), torch.zeros(size, dtype=torch.int64)
    for number in (1, 2):
        sides = [int(torch.randint(n // 4, n // 2, (), generator=generator)) for n in size]
        corner = [
            int(torch.randint(0, n - s, (), generator=generator)) for n, s in zip(size, sides, strict=True)
        ]
        region = tuple(slice(c, c + s) for c, s in zip(corner, sides, strict=True))
        image[(0, *region)], label_map[region] = float(number), number
    return image, label_map


@pytest.mark.parametrize(
    ("size", "task"), [((48, 64), "instance"), ((16, 32, 24), "instance"), ((48, 64), "semantic")], ids=str
)
def test_it_learns(size, task):
    torch.manual_seed(0)
    model = pixvox.create_model(
        head="mask2former", backbone="simple", num_classes=3 if task == "semantic" else 2, spatial_dims=len(size),
        in_channels=1, backbone__channels=[16, 24, 32], backbone__strides=[4, 8, 16], backbone__norm="group",
        neck__channels=32, neck__mask_channels=16, neck__num_layers=1, neck__num_heads=4, neck__feedforward=32,
        num_queries=8, channels=32, num_layers=2, num_heads=4, feedforward=32, num_points=None, task=task,
    ).train()  # fmt: skip
    images, label_maps = (
        torch.stack(parts) for parts in zip(*(_scene(size, i) for i in range(4)), strict=True)
    )
    instances = [Instances(masks=part, labels=part.unique()[1:] - 1) for part in label_maps]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    totals = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = sum(model.loss(images, label_maps if task == "semantic" else instances).values())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        totals.append(loss.item())
    assert min(totals[-5:]) < totals[0] / 2


def test_half_precision_and_computing_twice_change_nothing_that_matters():
    from pixvox.gradient_checkpointing import recompute_blocks

    model = pixvox.create_model(
        head="mask2former", backbone="simple", num_classes=2, in_channels=1, backbone__channels=[8, 8],
        backbone__strides=[4, 8], neck__channels=8, neck__mask_channels=8, neck__num_layers=1, neck__num_heads=2,
        num_queries=4, channels=8, num_layers=2, num_heads=2, feedforward=12, num_points=30,
    ).train()  # fmt: skip
    image, label_map = _scene((32, 48), 0)
    targets = [Instances(masks=label_map, labels=label_map.unique()[1:] - 1)]

    def learn():
        model.zero_grad()
        losses = model(image[None], targets, seeds=[1])["losses"]
        sum(losses.values()).backward()
        return losses, {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    losses, gradients = learn()
    with torch.autocast("cpu", torch.bfloat16):
        halves = model(image[None], targets, seeds=[1])["losses"]
    for name, value in halves.items():
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(losses[name].item(), rel=0.1)
    assert len(recompute_blocks(model)) == 2 + 1 + 2
    for name, gradient in learn()[1].items():
        assert torch.equal(gradient, gradients[name]), name
