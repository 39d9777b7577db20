"""The SOLO heads in volumes, with ignored regions, padding and little memory."""

import pytest
import torch

from pixvox.heads.decoupled_solo import DecoupledSOLO
from pixvox.heads.solo import SOLO
from pixvox.heads.solov2 import SOLOv2
from pixvox.structures import Features, Geometry, Instances

IN, CLASSES = 6, 3
KINDS = {"solo": SOLO, "decoupled_solo": DecoupledSOLO, "solov2": SOLOv2}
EVERYWHERE = [(0, 1e9)] * 3


def _head(kind, dims, grids, seed=0, **options):
    """A small head whose weights are far from where training begins: nothing hides behind zeros."""
    small = {"channels": 8, "num_convs": 1, "candidate_threshold": 0.4, "num_candidates": 12, **options}
    if kind == "solov2":
        small |= {"mask_channels": 8, "kernel_channels": 5}
    strides = tuple((step,) * dims for step in (4, 8, 16))
    head = KINDS[kind]((IN,) * 3, strides, CLASSES, dims, num_grids=grids, **small).eval()
    generator = torch.Generator().manual_seed(seed)
    state = head.state_dict()
    for name, value in state.items():
        state[name] = torch.randn(value.shape, generator=generator) * (0.5 if value.dim() == 1 else 0.25)
    head.load_state_dict(state)
    return head


def _features(size, seed=1, batch=2):
    generator = torch.Generator().manual_seed(seed)
    levels = tuple(
        torch.randn(batch, IN, *(n // step for n in size), generator=generator) for step in (4, 8, 16)
    )
    strides = tuple((step,) * len(size) for step in (4, 8, 16))
    return Features(levels, strides, torch.zeros(batch, 1, *size), size, torch.tensor([size] * batch))


def _targets(size):
    label_map = torch.zeros(size, dtype=torch.int64)
    label_map[tuple(slice(n // 8, n // 2) for n in size)] = 1
    label_map[tuple(slice(n // 2, n - 3 - i) for i, n in enumerate(size))] = 2
    return [Instances(masks=label_map, labels=torch.tensor([0, 2])), Instances.empty(size)]


def _results(head, outputs, size):
    return [each.instances for each in head.postprocess(outputs, [Geometry.identity(size)] * 2)]


def _turned_state(head, kind, order):
    """Return the weights of a head that sees the axes in another order."""
    turned = {}
    channels = [2 - order[2 - i] for i in range(3)]  # coordinates stand x first
    for name, value in head.state_dict().items():
        if value.dim() == 5:
            value = value.permute(0, 1, *(2 + axis for axis in order))
            extra = value.shape[1] - IN
            if extra == 3 and "mask_layers" not in name:
                value = torch.cat([value[:, :IN], value[:, IN:][:, channels]], dim=1)
        parts = name.split(".")
        if kind == "solo" and parts[0] == "mask_layers":
            grid = head.rule.num_grids[int(parts[1])]
            value = value.unflatten(0, grid).permute(*order, *range(3, value.dim() + 2)).flatten(0, 2)
        if kind == "decoupled_solo" and parts[0] == "mask_layers":
            parts[2] = str(order.index(int(parts[2])))
        if kind == "decoupled_solo" and parts[0] == "mask_convs":
            parts[1] = str(order.index(int(parts[1])))
        turned[".".join(parts)] = value
    return turned


@pytest.mark.parametrize("order", [(2, 0, 1), (1, 0, 2)])
@pytest.mark.parametrize("kind", KINDS)
def test_permuting_the_axes_permutes_the_answers(kind, order):
    grids, size = [(3, 4, 5), (2, 3, 3), (2, 2, 1)], (32, 48, 64)
    head = _head(kind, 3, grids)
    turned_head = _head(kind, 3, [tuple(grid[axis] for axis in order) for grid in grids])
    turned_head.load_state_dict(_turned_state(head, kind, order))
    features, targets = _features(size), _targets(size)
    turned_size = tuple(size[axis] for axis in order)
    axes = (0, 1, *(2 + axis for axis in order))
    turned = Features(
        tuple(level.permute(axes) for level in features.levels), features.strides,
        features.images.permute(axes), turned_size, torch.tensor([turned_size] * 2),
    )  # fmt: skip
    turned_targets = [
        Instances(masks=each.masks.dense().permute(0, *(1 + axis for axis in order)), labels=each.labels)
        if len(each) else Instances.empty(turned_size)
        for each in targets
    ]  # fmt: skip
    with torch.no_grad():
        outputs, turned_outputs = head(features), turned_head(turned)
        losses, turned_losses = head.loss(outputs, targets), turned_head.loss(turned_outputs, turned_targets)
    assert losses["dice"] > 0.1
    for name, term in losses.items():
        torch.testing.assert_close(turned_losses[name], term, rtol=1e-4, atol=1e-5)
    start = 0
    for grid in grids:
        span = slice(start, start + grid[0] * grid[1] * grid[2])
        start = span.stop
        expected = outputs["class_logits"][:, span].unflatten(1, grid).permute(0, *(1 + a for a in order), 4)
        torch.testing.assert_close(
            turned_outputs["class_logits"][:, span], expected.flatten(1, 3), rtol=1e-4, atol=1e-4
        )
    for expected, found in zip(
        _results(head, outputs, size), _results(turned_head, turned_outputs, turned_size), strict=True
    ):
        assert len(found) == len(expected) >= 2
        torch.testing.assert_close(found.scores, expected.scores, rtol=1e-4, atol=1e-5)
        dense = expected.masks.dense().permute(0, *(1 + axis for axis in order))
        assert (found.masks.dense() != dense).float().mean() < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_one_slice_gives_what_2d_gives_in_classes_losses_and_results(kind):
    # Sides are square roots in images and cube roots in volumes: every level takes all objects. The least area of a
    # mask is the mean stride: it is set alike. A coordinate, and a branch, along depth are taken out.
    grids = [5, 4, 3]
    flat = _head(kind, 2, grids, scale_ranges=EVERYWHERE)
    deep = _head(kind, 3, [(1, grid, grid) for grid in grids], scale_ranges=EVERYWHERE)
    copies = 1 if kind == "solov2" else 2  # slices of the grid of masks
    deep.strides = [(copies * step[0],) * 3 for step in flat.strides]
    state = deep.state_dict()
    for name, value in flat.state_dict().items():
        parts = name.split(".")
        if kind == "decoupled_solo" and parts[0] in ("mask_convs", "mask_layers"):
            place = 1 if parts[0] == "mask_convs" else 2
            parts[place] = str(int(parts[place]) + 1)  # depth comes first
        wanted = state[".".join(parts)]
        if value.dim() == 4:
            lifted = torch.zeros_like(wanted)
            lifted[:, : value.shape[1], wanted.shape[2] // 2] = value
            value = lifted
        state[".".join(parts)] = value
    if kind == "decoupled_solo":
        for name in state:
            if name.startswith("mask_layers.") and name.split(".")[2] == "0":
                state[name] = torch.full_like(state[name], 0.0 if name.endswith("weight") else 100.0)
    deep.load_state_dict(state)
    features, targets = _features((32, 48)), _targets((32, 48))
    volume = Features(
        tuple(level[:, :, None] for level in features.levels), tuple((1, *s) for s in features.strides),
        features.images[:, :, None], (1, 32, 48), torch.tensor([[1, 32, 48]] * 2),
    )  # fmt: skip
    deep_targets = [
        Instances(masks=each.masks.dense()[:, None], labels=each.labels)
        if len(each)
        else Instances.empty((1, 32, 48))
        for each in targets
    ]
    with torch.no_grad():
        expected, outputs = flat(features), deep(volume)
        torch.testing.assert_close(outputs["class_logits"], expected["class_logits"], rtol=1e-4, atol=1e-4)
        losses = deep.loss(outputs, deep_targets)
        for name, term in flat.loss(expected, targets).items():
            torch.testing.assert_close(losses[name], term, rtol=1e-4, atol=1e-4)
    for wanted, found in zip(
        _results(flat, expected, (32, 48)), _results(deep, outputs, (1, 32, 48)), strict=True
    ):
        assert len(found) == len(wanted) > 2
        torch.testing.assert_close(found.scores, wanted.scores, rtol=1e-4, atol=1e-5)
        assert (found.masks.dense()[:, 0] != wanted.masks.dense()).float().mean() < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_with_little_memory_losses_gradients_and_results_are_the_same(kind, monkeypatch):
    head, size = _head(kind, 2, [5, 4, 3]), (32, 48)

    def run():
        features = _features(size)
        for level in features.levels:
            level.requires_grad_()
        outputs = head(features)
        sum(head.loss(outputs, _targets(size)).values()).backward()
        return [level.grad for level in features.levels], _results(head, outputs, size)

    gradients, results = run()
    monkeypatch.setattr("pixvox.heads.location_head._CHUNK", 200)
    few, same = run()
    for one, other in zip(gradients, few, strict=True):
        torch.testing.assert_close(one, other)
    for one, other in zip(results, same, strict=True):
        assert torch.equal(one.scores, other.scores) and torch.equal(one.masks.dense(), other.masks.dense())


def test_two_objects_of_one_cell_both_teach_solov2_and_the_last_alone_teaches_solo():
    size = (32, 48)
    first, second = torch.zeros(2, *size, dtype=torch.bool)
    first[8:24, 16:32], second[10:22, 18:30] = True, True
    both = Instances(masks=torch.stack([first, second]), labels=torch.tensor([0, 1]))
    last = Instances(masks=second[None], labels=torch.tensor([1]))
    empty = Instances.empty(size)
    for kind, alike in (("solo", True), ("decoupled_solo", True), ("solov2", False)):
        head = _head(kind, 2, [1, 1, 1], scale_ranges=EVERYWHERE)
        outputs = head(_features(size))
        losses = [head.loss(outputs, [each, empty]) for each in (both, last)]
        assert torch.equal(losses[0]["class"], losses[1]["class"])
        assert torch.equal(losses[0]["dice"], losses[1]["dice"]) == alike


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_ignored_teaches_neither_class_nor_mask(kind):
    head, size = _head(kind, 2, [6, 4, 3], scale_ranges=EVERYWHERE), (32, 48)
    masks = torch.zeros(2, *size, dtype=torch.bool)
    masks[0, 4:12, 4:16], masks[1, 16:, 24:] = True, True
    crowd = Instances(masks=masks, labels=torch.tensor([0, 1]), ignore=torch.tensor([False, True]))
    features = _features(size)
    outputs = head(features)
    logits = outputs["class_logits"].detach().requires_grad_()
    head.loss({**outputs, "class_logits": logits}, [crowd, Instances.empty(size)])["class"].backward()
    teaches = (logits.grad != 0).any(dim=2)
    assert teaches[1].all()
    first = teaches[0, :36].view(6, 6)
    assert not first[3:, 3:].any() and first[:3].all()
    alone = Instances(masks=masks[:1], labels=torch.tensor([0]))
    wider = masks.clone()
    wider[1] = True
    wide = Instances(masks=wider, labels=crowd.labels, ignore=crowd.ignore)
    dice = [head.loss(outputs, [each, Instances.empty(size)])["dice"] for each in (alone, crowd, wide)]
    assert not torch.equal(dice[0], dice[1]) and not torch.equal(dice[1], dice[2])


@pytest.mark.parametrize("kind", KINDS)
def test_an_object_is_known_even_where_a_region_is_ignored(kind):
    head, size = _head(kind, 2, [6, 4, 3], scale_ranges=EVERYWHERE), (32, 48)
    masks = torch.zeros(1, *size, dtype=torch.bool)
    masks[0, 4:28, 4:36] = True
    alone = Instances(masks=masks, labels=torch.tensor([0]))
    double = Instances(
        masks=masks.repeat(2, 1, 1), labels=torch.tensor([0, 1]), ignore=torch.tensor([False, True])
    )
    outputs = head(_features(size))
    losses = [head.loss(outputs, [each, Instances.empty(size)]) for each in (alone, double)]
    assert losses[0].keys() == losses[1].keys()
    for name, value in losses[0].items():
        assert torch.equal(value, losses[1][name]), name


def test_maps_that_would_take_too_much_memory_are_refused_with_the_arithmetic():
    head = _head("solo", 3, [16, 8, 4], memory_limit=0.01)
    message = r"16 x 16 x 16 cells has 4,096 maps; .* 2 x 4,096 x 1,536 x 4 bytes, and .* 0.0\d GiB, .*solo \(48 maps"
    with pytest.raises(ValueError, match=message):
        head(_features((32, 48, 64)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_grids": [8, 4]}, "num_grids has 2 entries for the 3 levels"),
        ({"scale_ranges": [[1, 2]]}, "scale_ranges has 1 entries for the 3 levels"),
        ({"scale_ranges": [[1, 2], [5, 4], [3, 9]]}, r"least side, greatest side\] in pixels, got \[5, 4\]"),
        ({"level_sizes": [0, 1, 3]}, r"numbers of levels from 0 to 2, got \[0, 1, 3\]"),
        ({"candidate_threshold": 1.5}, "candidate_threshold must be from 0 to 1"),
        ({"num_candidates": 0}, "num_candidates must be at least 1"),
        ({"weights": {"dice": -1.0}}, "weight of the loss dice"),
    ],
)
def test_mistakes_are_named(options, message):
    strides = tuple((step, step) for step in (4, 8, 16))
    with pytest.raises(ValueError, match=message):
        SOLOv2((IN,) * 3, strides, CLASSES, **options)


def test_levels_of_unequal_channels_are_refused():
    with pytest.raises(ValueError, match=r"have \[6, 8\] channels; choose a neck"):
        SOLOv2((6, 8), ((4, 4), (8, 8)), CLASSES)


def test_automatic_grids_and_ranges_are_the_papers_on_five_levels():
    strides = tuple((step, step) for step in (4, 8, 16, 32, 64))
    head = DecoupledSOLO((IN,) * 5, strides, CLASSES, channels=8, num_convs=1)
    assert [grid[0] for grid in head.rule.num_grids] == [40, 36, 24, 16, 12]
    assert head.rule.scale_ranges == [(0, 96), (48, 192), (96, 384), (192, 768), (384, float("inf"))]
    assert head.strides == [(8, 8), (8, 8), (16, 16), (32, 32), (32, 32)]


def test_doubles_go_where_hard_suppression_is_asked_for():
    size = (32, 48)
    soft = _head("solov2", 2, [5, 4, 3], matrix_kernel=None, score_threshold=0.0)
    outputs = soft(_features(size))
    many = _results(soft, outputs, size)[0]
    soft.mask_nms_threshold = 0.3
    few = _results(soft, outputs, size)[0]
    assert 0 < len(few) < len(many)
    assert few.scores[0] == many.scores[0]


def test_a_cap_counts_what_suppression_leaves():
    size = (32, 48)
    head = _head("solov2", 2, [5, 4, 3], matrix_kernel=None, score_threshold=0.0, mask_nms_threshold=0.3)
    outputs = head(_features(size))
    everything = _results(head, outputs, size)[0]
    head.detections_per_image = len(everything) - 1
    assert torch.equal(_results(head, outputs, size)[0].scores, everything.scores[:-1])
