"""Learn from labelled images, and from unlabelled ones what a teacher sees in them."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.optim.swa_utils import get_ema_multi_avg_fn

from pixvox.callbacks.ema import EMA
from pixvox.distributed.sharding import shard
from pixvox.errors import ConfigError
from pixvox.methods.pseudo_labels import ConfidenceThreshold, PseudoLabeler, PseudoLabels, agreement
from pixvox.methods.supervised import Supervised
from pixvox.ranges import check_at_least, check_shares
from pixvox.segmenter import Segmenter
from pixvox.structures import Batch, Features, Segmentation

log = logging.getLogger("pixvox")


class MeanTeacher(Supervised):
    """A student learns from labels, and from the confident predictions of a teacher: the average of its own past.

    "Mean teachers are better role models" (Tarvainen & Valpola, 2017, https://arxiv.org/abs/1703.01780), with
    pseudo-labels as "Unbiased Teacher for Semi-Supervised Object Detection" (Liu et al., 2021,
    https://arxiv.org/abs/2102.09480). The teacher sees a weak view of an unlabelled image, which was only moved, cut or
    mirrored; the student a strong view of the same pixels. The first ``warmup_steps`` steps are on labels alone; then
    the weight of unlabelled images rises to ``unsupervised_weight`` over ``rampup_steps``. After each step of the
    optimiser the teacher moves towards the student. The teacher is validated, saved and given out.

    Any head will do: it knows nothing of all this but ``postprocess`` and ``loss``. Logged under ``train/`` beside what
    ``Supervised`` logs: ``supervised_loss``, ``unsupervised_loss``, ``unsupervised_weight``, ``pseudo_threshold``,
    ``pseudo_instances`` per image (or ``pseudo_share`` of the pixels), and where the truth is known
    ``pseudo_precision`` and ``pseudo_recall`` (or ``pseudo_accuracy``).

    Args:
        segmenter: The student; the teacher begins as its copy.
        warmup_steps: Steps on labelled images alone.
        rampup_steps: Steps to the full weight of unlabelled images.
        unsupervised_weight: That weight.
        unsupervised_terms: Factors of single terms of the loss of unlabelled images, by the names under which they are
            logged; ``{"mask": 0.0}`` learns from labels alone how masks look, as Unbiased Teacher does for boxes.
        decay: Share of the teacher that each step keeps, in [0, 1).
        decay_warmup: Keep at most ``1 - 1 / (step + 1)``, so that the teacher forgets its random start.
        threshold: Score from which a prediction teaches; that of the head when None.
        threshold_schedule: ``"fixed"`` or ``"rising"``, see ``ConfidenceThreshold``.
        threshold_start: Where a rising one begins.
        threshold_rise_steps: Steps in which it would rise by 1.
        threshold_quantile: Instead, the share of the teacher's scores below the threshold.
        class_thresholds: Thresholds of single classes, by name or index.
        ignore_above: See ``PseudoLabeler``.
        without_labels: See ``PseudoLabeler``.
        options: Further arguments of ``Supervised``.

    Raises:
        ConfigError: If a number makes no sense, or a class is unknown.
    """

    strong_views = 1

    def __init__(
        self,
        segmenter: Segmenter,
        *args: Any,
        warmup_steps: int = 500,
        rampup_steps: int = 5000,
        unsupervised_weight: float = 1.0,
        unsupervised_terms: Mapping[str, float] | None = None,
        decay: float = 0.999,
        decay_warmup: bool = True,
        threshold: float | None = None,
        threshold_schedule: Literal["fixed", "rising"] = "fixed",
        threshold_start: float = 0.2,
        threshold_rise_steps: int = 20_000,
        threshold_quantile: float | None = None,
        class_thresholds: Mapping[str | int, float] | None = None,
        ignore_above: float | None = None,
        without_labels: Literal["skip", "background"] = "skip",
        **options: Any,
    ) -> None:
        super().__init__(segmenter, *args, **options)
        try:
            check_at_least(0, warmup_steps=warmup_steps, rampup_steps=rampup_steps)
            check_at_least(0, unsupervised_weight=unsupervised_weight)
            check_shares(decay=decay)
            if decay == 1:
                raise ValueError("decay=1 keeps the teacher as it is for ever; give less, such as 0.999")
            self.threshold = ConfidenceThreshold(
                segmenter.head.pseudo_label_threshold if threshold is None else threshold,
                threshold_schedule,
                threshold_start,
                threshold_rise_steps,
                threshold_quantile,
                _by_index(class_thresholds or {}, segmenter.class_names),
            )
            self.labeler = PseudoLabeler(self.threshold, ignore_above, without_labels)
        except ValueError as error:
            raise ConfigError(f"method: {error}") from error
        self.warmup_steps, self.rampup_steps = warmup_steps, rampup_steps
        self.unsupervised_weight = unsupervised_weight
        self.unsupervised_terms = dict(unsupervised_terms or {})
        self.decay, self.decay_warmup = decay, decay_warmup
        self.teacher = copy.deepcopy(segmenter).requires_grad_(False).eval()

    @property
    def evaluated(self) -> Segmenter:
        """The teacher."""
        return self.teacher

    def train(self, mode: bool = True) -> MeanTeacher:
        """Set the mode of the student; the teacher always predicts."""
        super().train(mode)
        self.teacher.eval()
        return self

    def configure_model(self) -> None:
        """Shard teacher and student alike."""
        super().configure_model()
        if self.device_mesh is not None:
            shard(self.teacher, self.device)

    def on_fit_start(self) -> None:
        """Refuse a second average of the weights."""
        if any(isinstance(callback, EMA) for callback in self.trainer.callbacks):  # type: ignore[attr-defined]
            raise ConfigError("ema_decay: this method averages weights itself; set method.decay instead")

    def on_train_start(self) -> None:
        """Say when the run is too short for the warm-up or the ramp."""
        super().on_train_start()
        last = (
            self._total_steps() - 1 if self.trainer.max_epochs != -1 or self.trainer.max_steps != -1 else None
        )
        if (
            last is not None
            and self.weight_at(last) < self.unsupervised_weight
            and self.trainer.is_global_zero
        ):
            log.warning(
                "the weight of unlabelled images ends at %.2f of %g: the run has %d steps, warmup_steps=%d and "
                "unsup_rampup_steps=%d",
                self.weight_at(last), self.unsupervised_weight, last + 1, self.warmup_steps, self.rampup_steps,
            )  # fmt: skip

    def training_step(self, batch: Mapping[str, Batch], batch_idx: int) -> Tensor:  # type: ignore[override]
        """Return the loss of labelled images plus, after the warm-up, the weighted one of unlabelled images."""
        labelled, unlabelled = batch["labelled"], batch["unlabelled"]
        loss, terms, _ = self._losses(self.segmenter, labelled)
        weight = self.weight_at(self.global_step)
        told: dict[str, Tensor | float] = {**terms, "supervised_loss": loss, "unsupervised_weight": weight}
        if self.global_step >= self.warmup_steps:
            further, facts = self.learn_from_teacher(unlabelled)
            told |= {"unsupervised_loss": further, **facts}
            loss = loss + weight * further
        self._log_terms({"loss": loss, **told}, len(labelled))
        return loss

    def weight_at(self, step: int) -> float:
        """Return the weight of unlabelled images at a step of the optimiser."""
        since = step - self.warmup_steps
        if since < 0:
            return 0.0
        return self.unsupervised_weight * (min(1.0, since / self.rampup_steps) if self.rampup_steps else 1.0)

    def learn_from_teacher(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Return the student's loss on the strong view of unlabelled images, and what to tell of their labels."""
        labels = self.pseudo_labels(batch)
        strong = replace(batch, images=batch.views[0], targets=labels.targets)
        return self.taught(strong), self._facts(labels, batch)

    def taught(self, batch: Batch, perturb: Callable[[Features], Features] | None = None) -> Tensor:
        """Return the student's loss on pseudo-labels, each term with its factor.

        Raises:
            ConfigError: If a factor names no term.
        """
        _, terms, _ = self._losses(self.segmenter, batch, perturb)
        unknown = [name for name in self.unsupervised_terms if name not in terms]
        if unknown:
            raise ConfigError(
                f"method.unsupervised_terms: the loss has no term {unknown[0]!r}; it has {', '.join(terms)}"
            )
        return torch.stack(
            [self.unsupervised_terms.get(name, 1.0) * term.float() for name, term in terms.items()]
        ).sum()

    @torch.no_grad()
    def pseudo_labels(self, batch: Batch) -> PseudoLabels:
        """Return what the teacher is sure of in the weak view of a batch, in the input frame."""
        size = tuple(batch.images.shape[2:])
        return self.labeler(self.teach(batch), size, self.global_step - self.warmup_steps, batch.inside)

    def teach(self, batch: Batch) -> list[Segmentation]:
        """Return the teacher's predictions for the weak view of a batch, without padding."""
        outputs = self.teacher.run(batch, memory_format=self.memory_format)
        frames = [geometry.input_frame() for geometry in batch.geometries]
        head = self.teacher.head
        head.gives_probabilities = self.teacher.task == "semantic"
        try:
            return self.teacher.postprocess(outputs, frames)
        finally:
            head.gives_probabilities = False

    def _facts(self, labels: PseudoLabels, batch: Batch) -> dict[str, float]:
        what = "share" if isinstance(labels.targets, Tensor) else "instances"
        facts = {"threshold": labels.threshold, what: labels.kept}
        # Matching waits for the device; steps that are not logged need it not.
        if batch.hidden is not None and (self.global_step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            facts |= agreement(labels.targets, batch.hidden)
        return {f"pseudo_{name}": value for name, value in facts.items()}

    def optimizer_step(self, *args: Any, **options: Any) -> None:
        """Step the student, then move the teacher towards it."""
        super().optimizer_step(*args, **options)
        self.update_teacher()

    @torch.no_grad()
    def update_teacher(self) -> None:
        """Average the weights of the teacher with those of the student, and copy its buffers."""
        if isinstance(self.teacher, FSDPModule):
            self.teacher.reshard()  # without a backward pass its root stays gathered
        step = self.global_step
        decay = min(self.decay, 1 - 1 / (step + 1)) if self.decay_warmup else self.decay
        update: Any = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        update(list(self.teacher.parameters()), list(self.segmenter.parameters()), step)
        for own, new in zip(self.teacher.buffers(), self.segmenter.buffers(), strict=True):
            own.copy_(new)


def _by_index(thresholds: Mapping[str | int, float], names: tuple[str, ...]) -> dict[int, float]:
    """Return thresholds by class index.

    Raises:
        ConfigError: If a class is unknown.
    """
    found = {}
    for key, value in thresholds.items():
        if key in names:
            found[names.index(str(key))] = value
        elif str(key).isdigit() and int(key) < len(names):
            found[int(key)] = value
        else:
            raise ConfigError(f"method.class_thresholds: {key!r} is no class; there are {', '.join(names)}")
    return found
