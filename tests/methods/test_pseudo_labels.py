"""Which predictions teach a student, worked by hand."""

import pytest
import torch

from pixvox.methods.pseudo_labels import ConfidenceThreshold, PseudoLabeler, agreement
from pixvox.structures import IGNORE_INDEX, Instances, Segmentation

SIZE = (6, 8)


def _squares(scores, labels=None, size=SIZE):
    masks = torch.zeros(len(scores), *size, dtype=torch.bool)
    for i, mask in enumerate(masks):
        mask[0:2, 2 * i : 2 * i + 2] = True
    labels = torch.zeros(len(scores), dtype=torch.int64) if labels is None else torch.tensor(labels)
    return Segmentation(instances=Instances(masks=masks, labels=labels, scores=torch.tensor(scores)))


def test_a_fixed_threshold_stays_and_a_rising_one_ends_there():
    assert ConfidenceThreshold(0.7).at(0) == ConfidenceThreshold(0.7).at(10**6) == 0.7
    rising = ConfidenceThreshold(0.7, "rising", start=0.2, rise_steps=20_000)
    assert [round(rising.at(step), 4) for step in (0, 2_000, 10_000, 10_001, 99_999)] == [
        0.2,
        0.3,
        0.7,
        0.7,
        0.7,
    ]


def test_classes_may_have_thresholds_of_their_own():
    rule = ConfidenceThreshold(0.7, classes={1: 0.3})
    assert rule.of(torch.tensor([0, 1, 2]), 0).tolist() == pytest.approx([0.7, 0.3, 0.7])


def test_a_quantile_follows_the_scores():
    rule = ConfidenceThreshold(0.7, quantile=0.5)
    rule.observe([torch.tensor([0.1, 0.2]), torch.tensor([0.3])])
    assert rule.at(0) == pytest.approx(0.2)
    rule.observe([torch.tensor([0.4])])
    assert rule.at(0) == pytest.approx(0.9 * 0.2 + 0.1 * 0.4)
    rule.observe([torch.zeros(0)])
    assert rule.at(0) == pytest.approx(0.22)
    again = ConfidenceThreshold(0.7, quantile=0.5)
    again.load_state_dict(rule.state_dict())
    assert again.at(0) == rule.at(0) and bool(again.seen)


def test_sure_instances_teach_in_the_padded_frame_and_others_do_not():
    labeler = PseudoLabeler(ConfidenceThreshold(0.6))
    labels = labeler([_squares([0.6, 0.59, 0.9], [2, 1, 0])], (8, 16), 0)
    (found,) = labels.targets
    assert found.size == (8, 16) and found.masks.dense().shape == (2, 8, 16)
    assert found.labels.tolist() == [2, 0] and not found.ignore.any()
    assert found.boxes.tolist() == [[0, 0, 2, 2], [4, 0, 6, 2]]
    assert found.scores is None
    assert labels.kept == 2 and labels.threshold == 0.6


def test_what_is_nearly_sure_may_be_ignored():
    labeler = PseudoLabeler(ConfidenceThreshold(0.6), ignore_above=0.3)
    (found,) = labeler([_squares([0.7, 0.5, 0.2])], SIZE, 0).targets
    assert found.ignore.tolist() == [False, True]


@pytest.mark.parametrize("masked", [True, False])
def test_doubles_of_what_is_sure_are_background(masked):
    labeler = PseudoLabeler(ConfidenceThreshold(0.6), ignore_above=0.3)
    masks = torch.zeros(4, *SIZE, dtype=torch.bool)
    masks[0, :4, :4] = masks[1, :4, :3] = masks[2, :4, :2] = masks[3, :4, 2:6] = True
    scores, labels = torch.tensor([0.5, 0.9, 0.4, 0.4]), torch.tensor([1, 0, 0, 0])
    instances = Instances(masks=masks, scores=scores, labels=labels)
    if not masked:
        instances = Instances(instances.boxes, labels, scores=scores, size=SIZE)
    (found,) = labeler([Segmentation(instances)], SIZE, 0).targets
    assert found.ignore.tolist() == [False, True]
    assert found.boxes.tolist() == [[0, 0, 3, 4], [2, 0, 6, 4]]


@pytest.mark.parametrize(("option", "ignored"), [("skip", 1), ("background", 0)])
def test_an_image_without_labels_teaches_nothing_or_that_it_is_empty(option, ignored):
    labeler = PseudoLabeler(ConfidenceThreshold(0.6), without_labels=option)
    empty, full = labeler([_squares([0.1]), _squares([0.9])], (8, 16), 0).targets
    assert len(empty) == ignored and (len(full), full.ignore.tolist()) == (1, [False])
    if ignored:
        assert empty.ignore.all() and empty.masks.dense().all() and empty.masks.size == (8, 16)


def test_sure_pixels_teach_and_padding_does_not():
    probabilities = torch.tensor([[[0.95, 0.5, 0.2]], [[0.05, 0.5, 0.8]]])
    prediction = Segmentation(class_map=probabilities.argmax(0), probabilities=probabilities)
    labels = PseudoLabeler(ConfidenceThreshold(0.75))([prediction], (2, 4), 0)
    nothing = IGNORE_INDEX
    assert labels.targets.tolist() == [[[0, nothing, 1, nothing], [nothing] * 4]]
    assert labels.kept == pytest.approx(2 / 3)


def test_a_class_map_without_probabilities_is_refused():
    with pytest.raises(ValueError, match=r"set head\.gives_probabilities"):
        PseudoLabeler(ConfidenceThreshold(0.5))([Segmentation(class_map=torch.zeros(2, 2).long())], (2, 2), 0)


def test_agreement_counts_pairs_of_one_class_at_half_an_overlap():
    masks = torch.zeros(3, *SIZE, dtype=torch.bool)
    masks[0, 0:4, 0:4], masks[1, 0:4, 4:8], masks[2, 4:6] = True, True, True
    truth = Instances(masks=masks, labels=torch.tensor([0, 1, 0]), ignore=torch.tensor([False, False, True]))
    half = masks[:2].clone()
    half[0, 0:2] = False  # half of it is left: an overlap of exactly one half
    half[1, 0:3] = False
    found = Instances(masks=torch.cat([half, masks[2:]]), labels=torch.tensor([0, 1, 1]))
    assert agreement([found], [truth]) == {"precision": 1 / 3, "recall": 1 / 2}
    wrong = Instances(masks=masks[:1], labels=torch.tensor([1]))
    assert agreement([wrong], [truth]) == {"precision": 0.0, "recall": 0.0}
    assert agreement([found], [None]) == {}
    assert agreement([Instances.empty(SIZE)], [truth]) == {"recall": 0.0}


def test_agreement_of_pixels_leaves_out_what_either_ignores():
    labels = torch.tensor([[[0, 1, IGNORE_INDEX, 1]]])
    truth = torch.tensor([[0, 0, 0, IGNORE_INDEX]])
    assert agreement(labels, [truth]) == {"accuracy": 0.5}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"value": 1.5}, "threshold must be from 0 to 1"),
        ({"value": 0.5, "quantile": -0.1}, "threshold_quantile must be from 0 to 1"),
        ({"value": 0.5, "rise_steps": 0}, "threshold_rise_steps must be at least 1"),
        ({"value": 0.5, "classes": {1: 2.0}}, r"class_thresholds\[1\] must be from 0 to 1"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        ConfidenceThreshold(**options)


def test_what_an_image_does_not_show_has_no_class():
    probabilities = torch.tensor([[[0.95, 0.9, 0.2]], [[0.05, 0.1, 0.8]]])
    prediction = Segmentation(class_map=probabilities.argmax(0), probabilities=probabilities)
    inside = torch.tensor([[[False, True, True, False], [False] * 4]])
    labels = PseudoLabeler(ConfidenceThreshold(0.75))([prediction], (2, 4), 0, inside)
    assert labels.targets.tolist() == [[[IGNORE_INDEX, 0, 1, IGNORE_INDEX], [IGNORE_INDEX] * 4]]
    assert labels.kept == 1
