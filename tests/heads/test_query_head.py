"""What heads with queries share, on a head whose predictions are written down."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pixvox.data.fingerprint import Fingerprint
from pixvox.data.metadata import Metadata
from pixvox.heads import query_crops
from pixvox.heads.query_head import QueryHead, QueryMasks, QueryPrediction
from pixvox.losses.query_classification import SigmoidFocal, SoftmaxWithNoObject
from pixvox.ops.boxes import masks_to_boxes
from pixvox.structures import Features, Geometry, Instances

CLASSES = 3
WEIGHTS = {"class": 1.0, "mask": 1.0}


class Told(QueryHead):
    """A head that predicts what it is told."""

    def __init__(self, prediction, spatial_dims=2, classification=None, **options):
        super().__init__(
            (4,), spatial_dims, CLASSES, classification or SigmoidFocal(), WEIGHTS, WEIGHTS, **options
        )
        self.prediction = prediction

    def forward(self, features, targets=None):
        return self.outputs(features, [self.prediction, self.prediction], targets=targets)


def _smooth(queries, grid, seed=0):
    """Logits of blobs that cross zero between cells."""
    coarse = torch.randn(
        1, queries, *(max(2, n // 3) for n in grid), generator=torch.Generator().manual_seed(seed)
    )
    return 4 * F.interpolate(coarse, grid, mode="bilinear" if len(grid) == 2 else "trilinear") - 0.5


def _prediction(maps, class_logits=None, boxes=None):
    """Return a prediction with these maps, as one channel per query."""
    queries = maps.shape[1]
    if class_logits is None:
        class_logits = torch.randn(1, queries, CLASSES, generator=torch.Generator().manual_seed(1))
    return QueryPrediction(class_logits, boxes, QueryMasks(torch.eye(queries)[None], maps))


def _features(size, padded, valid=None):
    batch_valid = torch.tensor([valid or size])
    return Features((), (), torch.zeros(1, 1, *padded), size, batch_valid)


def _segment(head, geometry, padded):
    features = _features(geometry.input_size, padded, geometry.valid_size)
    return head.eval().postprocess(head(features), [geometry])[0].instances


def _whole_maps(maps, padded, geometry):
    """Interpolate whole maps to the original frame at once."""
    axes = [
        ((torch.arange(o) + 0.5) * v / o / p * 2 - 1)
        for o, v, p in zip(geometry.original_size, geometry.valid_size, padded, strict=True)
    ]
    places = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], dim=-1)
    return F.grid_sample(maps, places[None], padding_mode="border", align_corners=False)[0]


FRAMES = [
    ((24, 36), Geometry((24, 36), (24, 36), (24, 36)), (6, 9)),
    ((24, 36), Geometry((22, 35), (20, 31), (53, 70)), (6, 9)),
    ((24, 36), Geometry((22, 35), (20, 31), (11, 40)), (12, 9)),  # strides 2 and 4; one axis shrinks
    ((8, 16, 24), Geometry((8, 15, 24), (7, 13, 20), (9, 30, 25)), (8, 4, 6)),  # strides 1, 4 and 4
]


@pytest.mark.parametrize(("padded", "geometry", "grid"), FRAMES)
def test_masks_equal_whole_maps_interpolated_once(padded, geometry, grid):
    maps = _smooth(7, grid)
    head = Told(_prediction(maps), len(padded), detections_per_image=7 * CLASSES)
    found = _segment(head, geometry, padded)
    whole = _whole_maps(maps, padded, geometry) > 0
    scores = head.prediction.class_logits[0].sigmoid()
    order = scores.flatten().argsort(descending=True)
    order = order[whole.flatten(1).any(dim=1)[order // CLASSES]]
    assert torch.equal(found.masks.dense(), whole[order // CLASSES])
    assert torch.equal(found.labels, order % CLASSES)
    torch.testing.assert_close(found.scores, scores.flatten()[order])
    assert torch.equal(found.boxes, masks_to_boxes(whole)[order // CLASSES])


def test_on_the_input_frame_masks_are_those_of_interpolate():
    maps = _smooth(4, (6, 9))
    found = _segment(Told(_prediction(maps)), Geometry.identity((24, 36)), (24, 36))
    expected = F.interpolate(maps, (24, 36), mode="bilinear", align_corners=False)[0] > 0
    masks = found.masks.dense()
    assert len(masks) > 0
    assert all(any(torch.equal(mask, wanted) for wanted in expected) for mask in masks)


def test_maps_are_made_a_few_queries_at_a_time_and_only_of_kept_ones(monkeypatch):
    maps, geometry = _smooth(9, (6, 9)), Geometry.identity((24, 36))
    head = Told(_prediction(maps), score_threshold=0.5)
    expected = _segment(head, geometry, (24, 36))
    made = []
    of_image = QueryMasks.of_image
    monkeypatch.setattr(
        QueryMasks, "of_image", lambda *inputs: made.append(len(inputs[2])) or of_image(*inputs)
    )
    monkeypatch.setattr(query_crops, "_CHUNK", 3 * 54)
    found = _segment(head, geometry, (24, 36))
    assert torch.equal(found.masks.dense(), expected.masks.dense())
    kept = (head.prediction.class_logits[0].sigmoid() > 0.5).any(dim=1).sum()
    assert max(made) == 3
    assert sum(made) <= kept < 9


def test_scores_may_count_how_sure_the_mask_is():
    maps, geometry = _smooth(5, (6, 9)), Geometry.identity((24, 36))
    head = Told(_prediction(maps), mask_score=True, detections_per_image=15)
    found = _segment(head, geometry, (24, 36))
    whole = _whole_maps(maps, (24, 36), geometry)
    sure = torch.stack([logits[logits > 0].sigmoid().mean() for logits in whole])
    expected = (head.prediction.class_logits[0].sigmoid() * sure[:, None]).flatten()
    torch.testing.assert_close(found.scores, expected.sort(descending=True).values)


def test_as_many_instances_as_queries_unless_told_otherwise():
    maps, geometry = _smooth(5, (6, 9)).abs() + 1, Geometry.identity((24, 36))
    logits = torch.zeros(1, 5, CLASSES)
    logits[0, 2] = torch.tensor([3.0, 2.0, 1.0])
    assert len(_segment(Told(_prediction(maps, logits)), geometry, (24, 36))) == 5
    two = _segment(Told(_prediction(maps, logits), detections_per_image=2), geometry, (24, 36))
    assert two.labels.tolist() == [0, 1]  # one query, two classes, one mask
    assert torch.equal(two.masks.dense()[0], two.masks.dense()[1])
    assert len(_segment(Told(_prediction(maps, logits), score_threshold=0.8), geometry, (24, 36))) == 2
    with pytest.raises(ValueError, match="detections_per_image must be at least 1"):
        Told(_prediction(maps), detections_per_image=0)


def test_no_object_is_never_given_out():
    logits = torch.tensor([[[0.0, 1.0, 0.0, 9.0], [2.0, 0.0, 0.0, 0.0]]])
    head = Told(_prediction(_smooth(2, (6, 9)).abs() + 1, logits), classification=SoftmaxWithNoObject())
    found = _segment(head, Geometry.identity((24, 36)), (24, 36))
    assert found.labels.tolist()[0] == 0
    assert found.labels.max() < CLASSES
    torch.testing.assert_close(found.scores[0], logits[0, 1].softmax(0)[0])


def test_empty_masks_are_dropped_and_nothing_at_all_is_a_result():
    maps = _smooth(3, (6, 9))
    maps[0, 1] = -5.0
    geometry = Geometry.identity((24, 36))
    found = _segment(Told(_prediction(maps), detections_per_image=9), geometry, (24, 36))
    assert len(found) == 6
    for head in (Told(_prediction(maps * 0 - 1)), Told(_prediction(maps), score_threshold=1.0)):
        found = _segment(head, geometry, (24, 36))
        assert len(found) == len(found.masks) == len(found.scores) == 0
        assert found.size == (24, 36)


def test_boxes_are_relative_to_the_valid_part_and_clipped_to_the_original():
    maps = torch.ones(1, 2, 6, 9)
    boxes = torch.tensor([[[0.5, 0.25, 0.5, 0.5], [0.9, 0.5, 0.4, 2.0]]])
    logits = torch.tensor([[[2.0, -9, -9], [1.0, -9, -9]]])
    head = Told(_prediction(maps, logits, boxes))
    geometry = Geometry((22, 35), (20, 30), (40, 120))
    found = _segment(head, geometry, (24, 36))
    torch.testing.assert_close(found.boxes, torch.tensor([[30.0, 0, 90, 20], [84, 0, 120, 40]]))
    assert torch.equal(head(_features((22, 35), (24, 36), (20, 30)))["boxes"], boxes)


def test_boxes_alone_make_instances_too():
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.2]]])
    prediction = QueryPrediction(torch.ones(1, 1, CLASSES), boxes)
    found = _segment(Told(prediction), Geometry.identity((20, 40)), (20, 40))
    assert found.masks is None
    torch.testing.assert_close(found.boxes, torch.tensor([[16.0, 8, 24, 12]]))


def test_doubles_of_a_mask_go_on_request():
    maps = torch.full((1, 3, 6, 9), -1.0)
    maps[0, 0, :, :5] = maps[0, 1, :, :6] = maps[0, 2, :, 7:] = 1.0
    logits = torch.tensor([[[1.0, -9, -9], [2.0, -9, -9], [-1.0, -9, -9]]])
    geometry = Geometry.identity((24, 36))
    assert len(_segment(Told(_prediction(maps, logits)), geometry, (24, 36))) == 3
    few = _segment(Told(_prediction(maps, logits), mask_nms_threshold=0.5), geometry, (24, 36))
    torch.testing.assert_close(few.scores, torch.tensor([2.0, -1.0]).sigmoid())


def test_public_tensors_are_there_unless_training_with_targets():
    maps = _smooth(3, (6, 9))
    head, features = Told(_prediction(maps)), _features((24, 36), (24, 36))
    targets = [Instances.empty((24, 36))]
    public = {"class_logits", "mask_logits"}
    assert not public & set(head.train()(features, targets))
    assert public <= set(head(features))
    outputs = head.eval()(features, targets)
    assert public <= set(outputs)
    torch.testing.assert_close(outputs["mask_logits"], maps)
    assert set(head.loss(outputs, targets)) == {"class", "mask", "auxiliary_class", "auxiliary_mask"}


def test_label_maps_are_refused_with_what_would_be_right():
    head = Told(_prediction(_smooth(3, (6, 9))))
    outputs = head(_features((24, 36), (24, 36)))
    with pytest.raises(ValueError, match="Told learns from instances, but was given label maps"):
        head.loss(outputs, torch.zeros(1, 24, 36, dtype=torch.int64))


def test_the_most_crowded_image_decides_on_the_number_of_queries():
    metadata = Metadata("instance", 2, ("cell",), 1)
    facts = Fingerprint(metadata, 3, np.array([[64, 64]] * 3), objects_per_image=np.array([3, 400, 8]))
    (suggestion,) = Told.suggest(facts, {}, [(4, 4)], (64, 64))
    assert (suggestion.key, suggestion.value) == ("num_queries", 600)
    nothing = Fingerprint(metadata, 3, np.array([[64, 64]] * 3))
    assert Told.suggest(nothing, {}, [(4, 4)], (64, 64)) == []
