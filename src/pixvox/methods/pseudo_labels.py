"""From what a teacher predicts to what a student learns: which predictions count, and how well they fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pixvox.ops.mask_nms import mask_nms
from pixvox.ops.nms import nms
from pixvox.ranges import check_at_least, check_shares
from pixvox.structures import IGNORE_INDEX, Instances, Masks, Segmentation, Size, Targets


class ConfidenceThreshold(nn.Module):
    """The score from which a prediction teaches: fixed, rising, or a quantile of what the teacher is sure of.

    A module, as the running quantile belongs into a checkpoint.

    Args:
        value: The threshold, and where a rising one ends, in [0, 1].
        schedule: ``"fixed"``, or ``"rising"``: ``min(value, start + step / rise_steps)``, few labels at first being
            worse than wrong ones.
        start: Where a rising one begins.
        rise_steps: Steps in which a rising one would rise by 1.
        quantile: Instead of all this, the share of the teacher's scores (pixels of a class map) below the threshold, as
            a running mean over batches: for heads whose scores are small, or drift.
        classes: Thresholds of single classes, by index, that replace the one for all.

    Raises:
        ValueError: If a number makes no sense.

    Example:
        >>> rule = ConfidenceThreshold(0.7, "rising", start=0.2, rise_steps=20_000)
        >>> rule.at(0), rule.at(5_000), rule.at(50_000)
        (0.2, 0.45, 0.7)
    """

    running: Tensor
    seen: Tensor

    def __init__(
        self,
        value: float,
        schedule: Literal["fixed", "rising"] = "fixed",
        start: float = 0.2,
        rise_steps: int = 20_000,
        quantile: float | None = None,
        classes: Mapping[int, float] | None = None,
    ) -> None:
        super().__init__()
        check_shares(threshold=value, threshold_start=start)
        if schedule not in ("fixed", "rising"):
            raise ValueError(f"threshold_schedule takes fixed or rising, got {schedule!r}")
        check_at_least(1, threshold_rise_steps=rise_steps)
        if quantile is not None:
            check_shares(threshold_quantile=quantile)
        for label, threshold in (classes or {}).items():
            check_shares(**{f"class_thresholds[{label}]": threshold})
        self.value, self.schedule = value, schedule
        self.start, self.rise_steps = start, rise_steps
        self.quantile = quantile
        self.classes = dict(classes or {})
        self.register_buffer("running", torch.tensor(value))
        self.register_buffer("seen", torch.tensor(False))

    def at(self, step: int) -> float:
        """Return the threshold for classes without their own.

        Args:
            step: Steps since unlabelled images take part.
        """
        if self.quantile is not None:
            return float(self.running)
        return (
            self.value if self.schedule == "fixed" else min(self.value, self.start + step / self.rise_steps)
        )

    def of(self, labels: Tensor, step: int) -> Tensor:
        """Return the threshold of each label."""
        found = torch.full(labels.shape, self.at(step), device=labels.device)
        for label, threshold in self.classes.items():
            found[labels == label] = threshold
        return found

    def observe(self, scores: Sequence[Tensor], momentum: float = 0.9) -> None:
        """Move the running quantile towards that of a batch's scores."""
        found = torch.cat([each.detach().float().flatten() for each in scores])
        if self.quantile is None or not len(found):
            return
        found = found[:: max(1, len(found) // 100_000)]
        quantile = found.quantile(self.quantile).to(self.running.device)
        self.running.copy_(
            torch.where(self.seen, momentum * self.running + (1 - momentum) * quantile, quantile)
        )
        self.seen.fill_(True)


@dataclass
class PseudoLabels:
    """What a student learns from a batch of unlabelled images.

    Args:
        targets: In the input frame.
        kept: Instances per image, or the share of the pixels, that teach.
        threshold: From which score on.
    """

    targets: Targets
    kept: float
    threshold: float


class PseudoLabeler:
    """Turns predictions in the input frame into targets; it knows no head, only ``Segmentation``.

    Args:
        threshold: Which predictions count.
        ignore_above: Instances from this score up to the threshold are ignored instead of taken for background, but for
            doubles of those above it; None takes them for background.
        without_labels: ``"skip"`` lets an image without a pseudo-label teach nothing, ``"background"`` that it holds no
            object.
    """

    def __init__(
        self,
        threshold: ConfidenceThreshold,
        ignore_above: float | None = None,
        without_labels: Literal["skip", "background"] = "skip",
    ) -> None:
        if ignore_above is not None:
            check_shares(ignore_above=ignore_above)
        if without_labels not in ("skip", "background"):
            raise ValueError(f"without_labels takes skip or background, got {without_labels!r}")
        self.threshold = threshold
        self.ignore_above = ignore_above
        self.without_labels = without_labels

    def __call__(
        self, predictions: Sequence[Segmentation], size: Size, step: int, inside: Tensor | None = None
    ) -> PseudoLabels:
        """Return the labels of a batch.

        Args:
            predictions: Of the teacher, without padding.
            size: Padded size of the batch in array order.
            step: Steps since unlabelled images take part.
            inside: ``(batch, *size)``, True where the images show what is there. Other pixels have no class; of objects
                none is expected there.
        """
        if predictions[0].instances is not None:
            self.threshold.observe([_scores(prediction) for prediction in predictions])
            found = [self._instances(prediction, size, step) for prediction in predictions]
            kept = sum(int((~each.ignore).sum()) for each in found) / len(found)
            return PseudoLabels(found, kept, self.threshold.at(step))
        confident = [_probabilities(prediction).max(dim=0) for prediction in predictions]
        shown = [
            torch.ones_like(labels, dtype=torch.bool) if inside is None else inside[i][_region(labels)]
            for i, (_, labels) in enumerate(confident)
        ]
        self.threshold.observe([scores[seen] for (scores, _), seen in zip(confident, shown, strict=True)])
        maps, known, pixels = [], 0, 0
        for (scores, labels), seen in zip(confident, shown, strict=True):
            sure = (scores >= self.threshold.of(labels, step)) & seen
            known, pixels = known + int(sure.sum()), pixels + int(seen.sum())
            maps.append(_padded(torch.where(sure, labels, IGNORE_INDEX), size))
        return PseudoLabels(torch.stack(maps), known / max(pixels, 1), self.threshold.at(step))

    def _instances(self, prediction: Segmentation, size: Size, step: int) -> Instances:
        """Return the instances that one image teaches."""
        found, scores = prediction.instances, _scores(prediction)
        if found is None:
            raise ValueError("pseudo-labels need instances")
        sure = scores >= self.threshold.of(found.labels, step)
        if found.masks is not None:
            sure &= found.masks.areas() > 0
        ignored = torch.zeros_like(sure)
        if self.ignore_above is not None:
            ignored = _without_doubles(found, sure, ~sure & (scores >= self.ignore_above))
        if not sure.any() and self.without_labels == "skip":
            return _nothing_known(size, found.boxes.device)  # of boxes alone, too: its box is the image
        kept = found[sure | ignored]
        kept = Instances(kept.boxes, kept.labels, kept.masks, ignore=ignored[sure | ignored], size=kept.size)
        return kept.on_canvas(size)


def _scores(prediction: Segmentation) -> Tensor:
    if prediction.instances is None or prediction.instances.scores is None:
        raise ValueError("pseudo-labels need instances with scores")
    return prediction.instances.scores


def _probabilities(prediction: Segmentation) -> Tensor:
    if prediction.probabilities is None:
        raise ValueError(
            "pseudo-labels need probabilities of classes; set head.gives_probabilities of the teacher"
        )
    return prediction.probabilities


def _without_doubles(found: Instances, sure: Tensor, ignored: Tensor) -> Tensor:
    """Return which of the ignored are no doubles, of any class: around what is sure, everything else is background."""
    candidates = (sure | ignored).nonzero()[:, 0]
    few, rank = found[candidates], sure[candidates].float()  # what is sure comes first
    if few.masks is not None:
        kept = mask_nms(few.masks, rank, torch.zeros_like(few.labels), 0.5)
    else:
        kept = nms(few.boxes, rank, 0.5)
    single = torch.zeros_like(ignored)
    single[candidates[kept]] = True
    return ignored & single


def _nothing_known(size: Size, device: torch.device) -> Instances:
    """Return an image that is one ignored region: nothing in it is learned, not even that nothing is there."""
    whole = Masks.from_crops([torch.ones(size, dtype=torch.bool, device=device)], [[0] * len(size)], size)
    return Instances(masks=whole, ignore=torch.ones(1, dtype=torch.bool, device=device))


def _padded(labels: Tensor, size: Size) -> Tensor:
    """Return a label map padded at the far ends with what is ignored."""
    canvas = labels.new_full(size, IGNORE_INDEX)
    canvas[_region(labels)] = labels
    return canvas


def _region(labels: Tensor) -> tuple[slice, ...]:
    """Return where a label map lies on the canvas it is padded to."""
    return tuple(slice(0, length) for length in labels.shape)


def agreement(targets: Targets, hidden: Sequence[Instances | Tensor | None]) -> dict[str, float]:
    """Return how well pseudo-labels fit what is known of the images: precision and recall, or pixel accuracy.

    Instances agree at an IoU of one half or more within a class, one to one; ignored ones take no part.

    Args:
        targets: Pseudo-labels.
        hidden: What is known of each image; None where nothing is.
    """
    if isinstance(targets, Tensor):
        right = known = 0
        for labels, truth in zip(targets.cpu(), hidden, strict=True):
            if isinstance(truth, Tensor):
                judged = (labels != IGNORE_INDEX) & (truth.cpu() != IGNORE_INDEX)
                right += int((labels[judged] == truth.cpu()[judged]).sum())
                known += int(judged.sum())
        return {"accuracy": right / known} if known else {}
    matched = predicted = true = 0
    for labels, truth in zip(targets, hidden, strict=True):
        if isinstance(truth, Instances):
            ours, theirs = labels[~labels.ignore].to("cpu"), truth[~truth.ignore]
            matched += _matches(ours, theirs)
            predicted, true = predicted + len(ours), true + len(theirs)
    found = {"precision": matched / predicted} if predicted else {}
    return found | ({"recall": matched / true} if true else {})


def _matches(predicted: Instances, true: Instances) -> int:
    """Return how many instances have a counterpart of their class."""
    from pixvox.metrics.matching import match_pairs
    from pixvox.metrics.overlaps import element_overlaps, elements

    if predicted.masks is None or true.masks is None or not (len(predicted) and len(true)):
        return 0
    inside = elements(predicted.masks), elements(true.masks)
    table = element_overlaps(*inside, len(predicted), len(true), predicted.masks.size)
    iou = table.iou()
    labels, wanted = predicted.labels.numpy()[table.predicted], true.labels.numpy()[table.true]
    good = (iou >= 0.5) & (labels == wanted)
    return len(match_pairs(table.predicted[good], table.true[good], iou[good]))
