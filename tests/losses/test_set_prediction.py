"""The loss of query sets against transformers' losses, and what those do not do: ignored regions, groups in 3-D."""

import math
import os
from types import SimpleNamespace

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from transformers import Mask2FormerConfig
from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher, DeformableDetrImageLoss
from transformers.loss.loss_lw_detr import LwDetrHungarianMatcher, LwDetrImageLoss
from transformers.models.mask2former.modeling_mask2former import Mask2FormerLoss

from pixvox.errors import TrainingError
from pixvox.heads.query_predictions import DenoisingPredictions, QueryMasks, QueryPrediction
from pixvox.losses import mask_points
from pixvox.losses.query_classification import IoUAware, SigmoidFocal, SoftmaxWithNoObject
from pixvox.losses.set_prediction import SetCriterion
from pixvox.ops.boxes import box_convert
from pixvox.structures import Instances

CLASSES = 4
ALL = dict.fromkeys(("class", "box", "giou", "mask", "dice"), 1.0)


def _blocks(size, count, seed=0, ignored=()):
    """Instances that are boxes of random places and sides."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros((count, *size), dtype=torch.bool)
    for i in range(count):
        low = [int(torch.randint(0, n - n // 3, (), generator=generator)) for n in size]
        masks[i][tuple(slice(a, a + max(1, n // 4) + i) for a, n in zip(low, size, strict=True))] = True
    labels = torch.randint(0, CLASSES, (count,), generator=generator)
    found = Instances(masks=masks, labels=labels)
    found.ignore[list(ignored)] = True
    return found


def _prediction(batch, queries, logits, grid, seed=0, channels=6, boxes=True):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator).requires_grad_()

    masks = QueryMasks(draw(batch, queries, channels), draw(batch, channels, *grid))
    corners = (draw(batch, queries, 2 * len(grid)) * 0.7).sigmoid()
    return QueryPrediction(draw(batch, queries, logits), corners if boxes else None, masks)


def _outputs(predictions, size, valid=None, **more):
    batch = len(predictions[0].class_logits)
    return {
        "prediction": predictions[-1], "auxiliary": predictions[:-1], "proposals": None, "denoising": None,
        "generators": [torch.Generator().manual_seed(i) for i in range(batch)], "input_size": size,
        "padded_size": size, "valid_sizes": torch.tensor([valid or size] * batch), **more,
    }  # fmt: skip


def _theirs(targets, size):
    """Return targets as transformers takes them."""
    sides = torch.tensor(size[::-1] * 2, dtype=torch.float32)
    return [
        {"class_labels": t.labels, "boxes": box_convert(t.boxes, "xyxy", "cxcywh") / sides} for t in targets
    ]


def _record_pairs(criterion, found):
    match = criterion.match

    def recording(*arguments):
        pairs = match(*arguments)
        found.append([(rows.tolist(), columns.tolist()) for rows, columns in pairs[0]])
        return pairs

    criterion.match = recording


def _near(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("counts", [(3, 0), (0, 0), (5, 9)], ids=["an empty image", "nothing", "crowded"])
@pytest.mark.parametrize("kind", ["deformable_detr", "lw_detr"])
def test_classes_and_boxes_equal_transformers_in_value_gradient_and_pairs(kind, counts):
    size, groups = (40, 56), 3 if kind == "lw_detr" else 1
    targets = [_blocks(size, count, i) for i, count in enumerate(counts)]
    layers = [_prediction(2, 7 * groups, CLASSES, (10, 14), seed) for seed in range(3)]
    if kind == "lw_detr":
        matcher = LwDetrHungarianMatcher(class_cost=2, bbox_cost=5, giou_cost=2)
        reference = LwDetrImageLoss(matcher, CLASSES, 0.25, ["labels", "boxes"], groups)
        classification = IoUAware(least_target=0.01)
    else:
        matcher = DeformableDetrHungarianMatcher(class_cost=2, bbox_cost=5, giou_cost=2)
        reference = DeformableDetrImageLoss(matcher, CLASSES, 0.25, ["labels", "boxes"])
        classification = SigmoidFocal()
    dictionaries = [{"logits": layer.class_logits, "pred_boxes": layer.boxes} for layer in layers]
    whole = {**dictionaries[2], "auxiliary_outputs": dictionaries[:2]}
    if kind == "lw_detr":
        whole["enc_outputs"] = dictionaries[0]
    theirs = reference(whole, _theirs(targets, size))

    criterion = SetCriterion(
        classification, {"class": 2, "box": 5, "giou": 2}, {"class": 1, "box": 1, "giou": 1}
    )
    pairs = []
    _record_pairs(criterion, pairs)
    proposals = layers[0] if kind == "lw_detr" else None
    ours = criterion(_outputs(layers, size, groups=groups, proposals=proposals), targets)
    for name, their_name in (("class", "loss_ce"), ("box", "loss_bbox"), ("giou", "loss_giou")):
        _near(ours[name], theirs[their_name])
        _near(ours[f"auxiliary_{name}"], theirs[f"{their_name}_0"] + theirs[f"{their_name}_1"])
        if proposals:
            _near(ours[f"proposals_{name}"], theirs[f"{their_name}_enc"])
    arguments = (groups,) if kind == "lw_detr" else ()
    for found, layer in zip(pairs, [dictionaries[2], *dictionaries[:2]], strict=False):
        expected = matcher(layer, _theirs(targets, size), *arguments)
        assert found == [(rows.tolist(), columns.tolist()) for rows, columns in expected]
    leaves = [layers[1].class_logits]
    our_gradient = torch.autograd.grad(ours["auxiliary_class"], leaves)[0]
    _near(our_gradient, torch.autograd.grad(theirs["loss_ce_1"], leaves)[0])


class _Points:
    """Draws for both sides: for each image one set for matching, candidates, and further ones."""

    def __init__(self, batch, points, oversample, importance, seed=0):
        generator = torch.Generator().manual_seed(seed)
        rest = points - int(importance * points)
        self.lengths = [points, oversample * points, rest]
        self.drawn = [torch.rand(sum(self.lengths), 2, generator=generator) for _ in range(batch)]
        self.masks, self.image, self.their_image = [], 0, 0

    def ours(self, count, size, generator=None, device=None):
        self.image += 1
        return self.drawn[(self.image - 1) % len(self.drawn)] * size

    def theirs(self, *shape):
        """Answer transformers' draws: one image to match (one row), then candidates and the rest of each mask."""
        if shape[0] == 1:
            self.their_image += 1
            return self._part((self.their_image - 1) % len(self.drawn), 0)[None]
        which = 1 if shape[1] == self.lengths[1] else 2
        return torch.stack([self._part(image, which) for image in self.masks])

    def _part(self, image, which):
        return self.drawn[image].split(self.lengths)[which].flip(1)  # theirs are (x, y)


@pytest.mark.parametrize("counts", [(3, 2), (0, 4)])
@pytest.mark.parametrize("importance", [0.75, 0.0])
def test_masks_at_points_equal_transformers_mask2former(monkeypatch, counts, importance):
    size, grid, number, oversample = (24, 40), (6, 10), 40, 3
    targets = [_blocks(size, count, i) for i, count in enumerate(counts)]
    layers = [_prediction(2, 6, CLASSES + 1, grid, seed, boxes=False) for seed in range(2)]
    config = Mask2FormerConfig(
        num_labels=CLASSES, train_num_points=number, oversample_ratio=float(oversample),
        importance_sample_ratio=importance, no_object_weight=0.1, class_weight=2.0, mask_weight=5.0, dice_weight=5.0,
    )  # fmt: skip
    reference = Mask2FormerLoss(config, {})
    points = _Points(2, number, oversample, importance)
    points.masks = [image for image, count in enumerate(counts) for _ in range(count)]
    their_pairs = []
    matcher = reference.matcher.forward
    reference.matcher.forward = lambda *inputs: their_pairs.append(matcher(*inputs)) or their_pairs[-1]
    real = torch.rand
    monkeypatch.setattr(torch, "rand", lambda *shape, **options: points.theirs(*shape))
    theirs = reference(
        layers[1].masks.logits(), layers[1].class_logits,
        [target.masks.dense().float() for target in targets], [target.labels for target in targets],
        [{"masks_queries_logits": layers[0].masks.logits(), "class_queries_logits": layers[0].class_logits}],
    )  # fmt: skip
    monkeypatch.setattr(torch, "rand", real)

    monkeypatch.setattr(mask_points, "random_points", points.ours)
    weights = {"class": 2.0, "mask": 5.0, "dice": 5.0}
    criterion = SetCriterion(
        SoftmaxWithNoObject(), weights, dict.fromkeys(weights, 1.0), number, oversample, importance
    )
    pairs = []
    _record_pairs(criterion, pairs)
    ours = criterion(_outputs(layers, size), targets)
    for name, their_name in (("class", "cross_entropy"), ("mask", "mask"), ("dice", "dice")):
        _near(ours[name], theirs[f"loss_{their_name}"])
        _near(ours[f"auxiliary_{name}"], theirs[f"loss_{their_name}_0"])
    for found, expected in zip(pairs, their_pairs, strict=True):
        assert found == [(rows.tolist(), columns.tolist()) for rows, columns in expected]
    leaves = [layers[1].masks.embeddings, layers[1].masks.pixels, layers[1].class_logits]
    our_gradients = torch.autograd.grad(sum(ours[name] for name in weights), leaves, retain_graph=True)
    their_total = sum(theirs[f"loss_{name}"] for name in ("cross_entropy", "mask", "dice"))
    for our, their in zip(our_gradients, torch.autograd.grad(their_total, leaves), strict=True):
        torch.testing.assert_close(our, their, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [(24, 40), (8, 12, 20)], ids=["2-D", "3-D"])
@pytest.mark.parametrize("num_points", [60, None], ids=["points", "grid"])
def test_what_is_ignored_teaches_nothing(size, num_points):
    grid = tuple(n // 4 for n in size)
    masks = torch.zeros((2, *size), dtype=torch.bool)
    masks[0, ..., : size[-1] // 4] = True
    masks[1, ..., size[-1] // 2 :] = True  # a crowd on the right half
    targets = Instances(masks=masks, labels=torch.tensor([1, 0]), ignore=torch.tensor([False, True]))
    prediction = _prediction(1, 4, CLASSES, grid)
    boxes = torch.full((1, 4, 2 * len(size)), 0.5)
    boxes[0, :, len(size) :] = 0.2
    boxes[0, :, 0] = torch.tensor([0.1, 0.8, 0.4, 0.45])  # fits; on the crowd; beside it; 40 % on it
    prediction.boxes = boxes.requires_grad_()
    criterion = SetCriterion(SigmoidFocal(), {"box": 1.0}, ALL, num_points)
    terms = criterion(_outputs([prediction], size), [targets])
    leaves = [prediction.class_logits, prediction.masks.pixels]
    logits, pixels = torch.autograd.grad(sum(terms.values()), leaves)
    learned = logits.abs().sum(dim=2)[0] > 0
    assert learned.tolist() == [True, False, True, True]
    taught = pixels.abs().sum(dim=1)[0].flatten(0, -2).sum(dim=0) > 0
    first = math.ceil(size[-1] / 2 / 4)
    assert taught[:first].any()
    # A point beside the crowd also reaches its first column of cells.
    assert not taught[first + (num_points is not None) :].any()


def test_queries_without_boxes_on_an_ignored_region_learn_nothing_by_their_masks():
    size, grid = (16, 32), (4, 8)
    masks = torch.zeros((2, *size), dtype=torch.bool)
    masks[0, :, :8], masks[1, :, 18:] = True, True
    targets = Instances(masks=masks, ignore=torch.tensor([False, True]))
    prediction = _prediction(1, 3, CLASSES + 1, grid, channels=2, boxes=False)
    pixels = torch.zeros(1, 2, *grid)
    pixels[:, 0], pixels[:, 1] = 1.0, torch.linspace(-1, 1, 8)
    # Positive on the left, on the right, and nearly everywhere.
    prediction.masks = QueryMasks(torch.tensor([[[-0.1, -9.0], [-0.1, 9.0], [9.0, -1.0]]]), pixels)
    for num_points in (400, None):
        criterion = SetCriterion(SoftmaxWithNoObject(), {"mask": 1.0}, ALL, num_points)
        terms = criterion(_outputs([prediction], size), [targets])
        gradient = torch.autograd.grad(terms["class"], prediction.class_logits)[0][0]
        assert (gradient.abs().sum(dim=1) > 0).tolist() == [True, False, True]


def test_an_object_inside_an_ignored_region_is_learned_by_the_query_that_is_matched_to_it():
    size = (16, 32)
    boxes = torch.tensor([[8.0, 4, 16, 12], [0, 0, 32, 16]])
    targets = Instances(
        boxes=boxes, labels=torch.tensor([2, 0]), ignore=torch.tensor([False, True]), size=size
    )
    prediction = _prediction(1, 2, CLASSES, (4, 8))
    prediction.boxes = torch.tensor([[[0.8, 0.5, 0.1, 0.1], [0.375, 0.5, 0.25, 0.5]]])  # both on the crowd
    terms = SetCriterion(SigmoidFocal(), {"box": 1.0}, {"class": 1.0})(
        _outputs([prediction], size), [targets]
    )
    gradient = torch.autograd.grad(terms["class"], prediction.class_logits)[0][0]
    assert (gradient.abs().sum(dim=1) > 0).tolist() == [False, True]
    assert gradient[1, 2] < 0


def test_proposals_may_be_taught_as_if_there_were_one_class():
    size = (24, 40)
    targets, layer = [_blocks(size, 3)], _prediction(1, 5, CLASSES, (6, 10))
    assert targets[0].labels.unique().tolist() != [0]
    names = ("class", "box")
    weights = dict.fromkeys(names, 1.0)
    criterion = SetCriterion(SigmoidFocal(), weights, weights, class_agnostic_proposals=True)
    found = criterion(_outputs([layer], size, proposals=layer), targets)
    targets[0].labels[:] = 0
    expected = criterion(_outputs([layer], size), targets)
    for name in names:
        _near(found[f"proposals_{name}"], expected[name])
    assert found["class"] != expected["class"]


@pytest.mark.parametrize("size", [(24, 40), (8, 12, 20)], ids=["2-D", "3-D"])
def test_the_whole_grid_learns_from_pooled_masks_within_the_valid_part(size):
    grid, valid = tuple(n // 4 for n in size), tuple(n - 4 for n in size)
    targets = _blocks(valid, 2)
    prediction = _prediction(1, 2, CLASSES, grid)
    criterion = SetCriterion(SigmoidFocal(), {"class": 1.0}, {"mask": 1.0}, num_points=None)
    pairs = []
    _record_pairs(criterion, pairs)
    value = criterion(_outputs([prediction], size, valid), [targets])["mask"]
    rows, columns = pairs[0][0]
    pool = torch.nn.functional.avg_pool2d if len(size) == 2 else torch.nn.functional.avg_pool3d
    truth = pool(targets.masks.dense()[columns].float(), 4)
    inner = tuple(slice(n // 4) for n in valid)
    logits = prediction.masks.logits()[0, rows][(slice(None), *inner)]
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    _near(value, expected.flatten(1).mean(dim=1).sum() / 2)


@pytest.mark.parametrize("size", [(24, 40), (8, 12, 20)], ids=["2-D", "3-D"])
@pytest.mark.parametrize("num_points", [60, None], ids=["points", "grid"])
def test_permuted_axes_give_the_same_loss(monkeypatch, size, num_points):
    order = (1, 0) if len(size) == 2 else (2, 0, 1)
    grid = tuple(n // 4 for n in size)
    targets, prediction = _blocks(size, 3), _prediction(1, 5, CLASSES, grid)
    drawn = torch.rand(500, len(size), generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(mask_points, "random_points", lambda count, size, *_: drawn[:count] * size)
    criterion = SetCriterion(IoUAware(), ALL, ALL, num_points)
    before = criterion(_outputs([prediction], size), [targets])

    drawn = drawn[:, list(order)]
    places = [1 + axis for axis in order]
    turned = Instances(masks=targets.masks.dense().permute(0, *places), labels=targets.labels)
    columns = [len(order) - 1 - order[len(order) - 1 - i] for i in range(len(order))]
    corners = prediction.boxes[..., columns + [len(order) + column for column in columns]]
    pixels = prediction.masks.pixels.permute(0, 1, *(1 + place for place in places))
    masks = QueryMasks(prediction.masks.embeddings, pixels)
    outputs = _outputs(
        [QueryPrediction(prediction.class_logits, corners, masks)], tuple(size[i] for i in order)
    )
    after = criterion(outputs, [turned])
    for name, value in before.items():
        _near(after[name], value)


def test_depth_one_gives_the_loss_of_the_image_where_depth_adds_nothing():
    size, grid = (16, 24), (4, 6)
    flat, prediction = _blocks(size, 2), _prediction(1, 4, CLASSES, grid)
    criterion = SetCriterion(IoUAware(), ALL, ALL, num_points=None)
    expected = criterion(_outputs([prediction], size), [flat])
    deep = Instances(masks=flat.masks.dense()[:, None], labels=flat.labels)
    filled = torch.tensor([0.5, 1.0]).expand(1, 4, 2)  # every box fills the depth, as every object does
    boxes = torch.cat(
        [prediction.boxes[..., :2], filled[..., :1], prediction.boxes[..., 2:], filled[..., 1:]], -1
    )
    masks = QueryMasks(prediction.masks.embeddings, prediction.masks.pixels[:, :, None])
    found = criterion(_outputs([QueryPrediction(prediction.class_logits, boxes, masks)], (1, *size)), [deep])
    for name, value in expected.items():
        _near(found[name], value)


def test_each_group_finds_every_object():
    size = (24, 40)
    layer = _prediction(1, 8, CLASSES, (6, 10))
    criterion = SetCriterion(SigmoidFocal(), {"class": 2.0, "box": 5.0}, ALL, num_points=20)
    pairs = []
    _record_pairs(criterion, pairs)
    criterion(_outputs([layer], size, groups=2), [_blocks(size, 3)])
    rows, columns = pairs[0][0]
    assert sorted(columns[:3]) == sorted(columns[3:]) == [0, 1, 2]
    assert max(rows[:3]) < 4 <= min(rows[3:])


def test_denoising_queries_learn_the_object_they_come_from_and_padding_nothing():
    size = (24, 40)
    targets = [_blocks(size, 3, ignored=[0]), Instances.empty(size)]
    layer, noised = _prediction(2, 5, CLASSES, (6, 10)), _prediction(2, 4, CLASSES, (6, 10), seed=1)
    objects = torch.tensor([[1, 0, -1, 0], [-1, -1, -1, -1]])
    valid = torch.tensor([[True, True, True, False], [False] * 4])
    criterion = SetCriterion(SigmoidFocal(), ALL, ALL, num_points=30)
    denoising = DenoisingPredictions([noised, noised], objects, valid)
    terms = criterion(_outputs([layer], size, denoising=denoising), targets)
    wanted = _theirs([targets[0][[1, 2]]], size)[0]["boxes"][[1, 0]]
    expected = 2 * (noised.boxes[0, :2] - wanted).abs().sum() / 2
    _near(terms["denoising_box"], expected)
    gradient = torch.autograd.grad(terms["denoising_class"], noised.class_logits)[0].abs().sum(dim=2) > 0
    assert gradient.tolist() == valid.tolist()


def test_nothing_to_find_leaves_finite_zero_gradients_to_masks_and_boxes():
    size = (16, 24)
    layer = _prediction(2, 3, CLASSES + 1, (4, 6))
    for num_points in (20, None):
        criterion = SetCriterion(SoftmaxWithNoObject(), ALL, ALL, num_points)
        terms = criterion(_outputs([layer, layer], size), [Instances.empty(size)] * 2)
        assert terms["class"] > 0
        assert all(terms[name] == 0 for name in ("box", "giou", "mask", "dice", "auxiliary_mask"))
        leaves = [layer.class_logits, layer.masks.embeddings, layer.masks.pixels]
        gradients = torch.autograd.grad(sum(terms.values()), leaves, retain_graph=True)
        assert gradients[0].abs().sum() > 0
        assert gradients[1].abs().sum() == gradients[2].abs().sum() == 0


def test_draws_of_an_image_depend_on_its_own_generator_alone():
    size, grid = (24, 40), (6, 10)
    targets = [_blocks(size, 2, seed) for seed in range(3)]
    whole = _prediction(3, 5, CLASSES, grid, boxes=False)
    criterion = SetCriterion(SigmoidFocal(), {"mask": 1.0}, {"mask": 1.0}, num_points=20)

    def value(images, seeds):
        masks = QueryMasks(whole.masks.embeddings[images], whole.masks.pixels[images])
        outputs = _outputs([QueryPrediction(whole.class_logits[images], None, masks)], size)
        outputs["generators"] = [torch.Generator().manual_seed(seed) for seed in seeds]
        return criterion(outputs, [targets[i] for i in images])["mask"] * len(images)

    together = value([0, 1, 2], [5, 6, 7])
    apart = value([0], [5]) + value([1], [6]) + value([2], [7])
    _near(together, apart)
    assert abs(together - value([0, 1, 2], [5, 6, 8])) > 1e-3


def test_a_cost_that_is_nan_names_the_image():
    size = (16, 24)
    layer = _prediction(2, 3, CLASSES, (4, 6))
    with torch.no_grad():
        layer.boxes[1, 2] = float("nan")
    criterion = SetCriterion(SigmoidFocal(), ALL, ALL, num_points=20)
    with pytest.raises(TrainingError, match="matching costs of image 1 of the batch are NaN"):
        criterion(_outputs([layer], size), [_blocks(size, 2), _blocks(size, 2)])


def test_losses_are_float32_under_autocast():
    size = (16, 24)
    layer = _prediction(1, 3, CLASSES, (4, 6))
    criterion = SetCriterion(IoUAware(), ALL, ALL, num_points=None)
    expected = criterion(_outputs([layer], size), [_blocks(size, 2)])
    with torch.autocast("cpu", torch.bfloat16):
        found = criterion(_outputs([layer], size), [_blocks(size, 2)])
    for name, value in expected.items():
        assert found[name].dtype == torch.float32
        _near(found[name], value)


@pytest.mark.parametrize("num_points", [70, 10, None], ids=["maps first", "features first", "grid"])
def test_comparing_a_few_pairs_at_a_time_changes_no_loss_and_no_gradient(monkeypatch, num_points):
    size = (24, 40)
    targets = [_blocks(size, 5, ignored=[4]), _blocks(size, 1)]
    layer = _prediction(2, 6, CLASSES, (6, 10))
    criterion = SetCriterion(SigmoidFocal(), {"class": 1.0}, ALL, num_points)
    leaves = [layer.masks.embeddings, layer.masks.pixels]

    def learn():
        terms = criterion(_outputs([layer, layer], size), targets)
        return terms, torch.autograd.grad(terms["mask"] + terms["auxiliary_dice"], leaves)

    expected, gradients = learn()
    monkeypatch.setattr(mask_points, "_CHUNK", 150)
    called = []
    real = mask_points.checkpoint
    monkeypatch.setattr(mask_points, "checkpoint", lambda *a, **k: called.append(1) or real(*a, **k))
    found, few = learn()
    assert called
    for name, value in expected.items():
        _near(found[name], value)
    for gradient, wanted in zip(few, gradients, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-6)


def test_maps_first_and_features_first_learn_the_same(monkeypatch):
    size = (24, 40)
    layer = _prediction(1, 6, CLASSES, (6, 10))
    criterion = SetCriterion(SigmoidFocal(), {"class": 1.0}, ALL, num_points=40)
    leaves = [layer.masks.embeddings, layer.masks.pixels]

    def learn():
        terms = criterion(_outputs([layer], size), [_blocks(size, 3)])
        return terms["mask"], *torch.autograd.grad(terms["mask"] + terms["dice"], leaves)

    expected = learn()
    sampled = []
    real = mask_points.sample_at_points
    monkeypatch.setattr(mask_points, "sample_at_points", lambda *a: sampled.append(len(a[1])) or real(*a))
    monkeypatch.setattr(mask_points, "math", SimpleNamespace(prod=lambda grid: 10**9))
    for found, wanted in zip(learn(), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
    assert sampled == [130]


def test_what_does_not_fit_is_an_error_that_says_so():
    size = (16, 24)
    with pytest.raises(ValueError, match=r"unknown loss weights \['boxes'\]"):
        SetCriterion(SigmoidFocal(), {"class": 1.0}, {"boxes": 1.0})
    with pytest.raises(ValueError, match="num_points must be at least 1"):
        SetCriterion(SigmoidFocal(), {"class": 1.0}, ALL, num_points=0)
    criterion = SetCriterion(SigmoidFocal(), {"class": 1.0}, ALL)
    layer = _prediction(2, 3, CLASSES, (4, 6))
    with pytest.raises(ValueError, match="1 targets for 2 images"):
        criterion(_outputs([layer], size), [_blocks(size, 2)])
    boxes_only = Instances(boxes=torch.tensor([[1.0, 1, 5, 5]]), size=size)
    with pytest.raises(ValueError, match="boxes only"):
        criterion(_outputs([layer], size), [boxes_only, boxes_only])
    layer.masks = None
    with pytest.raises(ValueError, match="predicts no masks"):
        criterion(_outputs([layer], size), [_blocks(size, 2)] * 2)
