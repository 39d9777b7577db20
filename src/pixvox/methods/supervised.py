"""Learn from labelled images."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

from pixvox.callbacks.plateau import PlateauSteps
from pixvox.distributed.sharding import shard
from pixvox.distributed.world import apart
from pixvox.errors import ConfigError
from pixvox.gradient_checkpointing import recompute_blocks
from pixvox.inference.procedure import Procedure
from pixvox.layers import memory_format
from pixvox.methods.typing import OptimizerFactory, SchedulerFactory, Scores
from pixvox.metrics.metric import gather
from pixvox.optimizers.parameter_groups import parameter_groups
from pixvox.optimizers.schedules import lr_scheduler
from pixvox.segmenter import Segmenter
from pixvox.structures import Batch, Features, Segmentation, parts_of


class Supervised(pl.LightningModule):
    """Train a ``Segmenter`` on images with truth; training and validation share one body.

    Other methods extend it: they say what a training step is, and which model is evaluated.

    Logs ``train/loss``, each term as ``train/NAME``, the same under ``val/`` together with every score of the
    metrics, the learning rate and images per second.

    Args:
        segmenter: The model.
        optimizer: Called with parameter groups, each with its ``lr``: a partial of a ``torch.optim`` class.
        scheduler: Builds the schedule, see ``pixvox.optimizers.schedules.lr_scheduler``; None keeps the rate.
        metrics: Scores of the validation: ``update(predictions, truths)``, ``compute()`` and ``reset()``.
        learning_rate: Peak learning rate; by default the optimiser partial's own ``lr``.
        backbone_learning_rate_factor: The backbone's share of the learning rate.
        decay_norms_and_biases: Apply weight decay to every parameter.
        channels_last: Keep convolution weights and images channels-last in memory.
        layer_decay: Ratio of the learning rates of a block of the backbone and the next, in (0, 1].
        gradient_checkpointing: Compute blocks of backbone and head twice instead of keeping what is inside.

    Raises:
        ConfigError: If the backbone's factor is negative, or the model has no blocks to compute twice.
    """

    strong_views: int = 0
    """Strong views of unlabelled images that a training step needs; above 0 it gets pairs of batches."""

    def __init__(
        self,
        segmenter: Segmenter,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None = None,
        metrics: Scores | None = None,
        learning_rate: float | None = None,
        backbone_learning_rate_factor: float = 1.0,
        decay_norms_and_biases: bool = False,
        channels_last: bool = False,
        layer_decay: float = 1.0,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if backbone_learning_rate_factor < 0:
            raise ConfigError(
                f"method.backbone_learning_rate_factor={backbone_learning_rate_factor}: it is a share of the "
                "learning rate, 0 or more; freeze stages in the backbone's own options"
            )
        self.segmenter = segmenter
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.metrics = metrics
        self.learning_rate = _peak(optimizer) if learning_rate is None else learning_rate
        self.backbone_learning_rate_factor = backbone_learning_rate_factor
        self.decay_norms_and_biases = decay_norms_and_biases
        self.layer_decay = layer_decay
        if gradient_checkpointing:
            recompute_blocks(segmenter)
        self.memory_format = (
            memory_format(segmenter.spatial_dims) if channels_last else torch.contiguous_format
        )
        if channels_last:
            _to_memory_format(segmenter, self.memory_format, segmenter.spatial_dims + 2)
        self._since: tuple[float, int] | None = None
        self._validated: list[tuple[int, dict[str, float]]] = []

    def setup(self, stage: str) -> None:
        """Tell the data module how many strong views a training step needs."""
        datamodule = getattr(self.trainer, "datamodule", None)
        if datamodule is not None and hasattr(datamodule, "strong_views"):
            datamodule.strong_views = self.strong_views

    def configure_model(self) -> None:
        """Shard the model where the strategy says that weights are spread over processes."""
        if self.device_mesh is not None:
            shard(self.segmenter, self.device)

    def on_train_start(self) -> None:
        """Log at least once per epoch, also when an epoch has few batches."""
        trainer: Any = self.trainer  # the attribute is public, but not declared
        trainer.log_every_n_steps = max(1, min(trainer.log_every_n_steps, int(trainer.num_training_batches)))

    @property
    def evaluated(self) -> Segmenter:
        """The model that is validated and given out."""
        return self.segmenter

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        loss, terms, _ = self._losses(self.segmenter, batch)
        self._log_terms({"loss": loss, **terms}, len(batch))
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, list[Segmentation]]:
        """Score a batch and return its ``predictions`` in the original frame."""
        return self._score(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> dict[str, list[Segmentation]]:
        """Score a batch of the test split as one of the validation."""
        return self._score(batch)

    def _score(self, batch: Batch) -> dict[str, list[Segmentation]]:
        with apart():  # batches are validated one by one, whatever the other processes do
            loss, terms, outputs = self._losses(self.evaluated, batch)
        if not batch.repeated:
            self._validated.append(
                (len(batch), {name: float(term) for name, term in {"loss": loss, **terms}.items()})
            )
        predictions = Procedure.of(self.evaluated)(batch, outputs)
        if self.metrics is not None and batch.truths is not None and not batch.repeated:
            self.metrics.update(predictions, batch.truths)
        return {"predictions": predictions}

    def _losses(
        self, model: Segmenter, batch: Batch, perturb: Callable[[Features], Features] | None = None
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Any]]:
        """Normalise and run a model; return its loss, the terms of it, and all outputs."""
        if batch.targets is None:
            raise ConfigError("supervised learning needs labels, but this batch has none; check the dataset")
        outputs = model.run(batch, with_targets=True, memory_format=self.memory_format, perturb=perturb)
        terms: dict[str, Tensor] = outputs["losses"]
        loss = torch.stack([term.float() for term in terms.values()]).sum()
        return loss, terms, outputs

    def _log_terms(self, terms: Mapping[str, Tensor | float], images: int) -> None:
        """Log what a training step tells, under ``train/``."""
        named = {name: term.detach() if isinstance(term, Tensor) else term for name, term in terms.items()}
        self.log_dict({f"train/{name}": term for name, term in named.items()}, batch_size=images)

    def on_validation_epoch_start(self) -> None:
        """Forget the images of the validation before."""
        self._validated = []
        if self.metrics is not None:
            self.metrics.reset()

    def on_test_epoch_start(self) -> None:
        """Forget the images of the validation before."""
        self.on_validation_epoch_start()

    def on_validation_epoch_end(self) -> None:
        """Log the mean losses and every score; all processes join, since both gather from all."""
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        """Log the mean losses and every score under ``test/``."""
        self._log_scores("test")

    def _log_scores(self, stage: str) -> None:
        # Lightning's own mean over processes rounds the number of images of each.
        batches = gather(self._validated)
        images = sum(count for count, _ in batches)
        names = batches[0][1] if batches else ()
        means = {name: math.fsum(count * terms[name] for count, terms in batches) / images for name in names}
        self.log_dict({f"{stage}/{name}": value for name, value in means.items()})
        if self.metrics is not None:
            self.log_dict({f"{stage}/{name}": float(value) for name, value in self.metrics.compute().items()})

    def on_train_batch_end(self, outputs: Any, batch: Batch | Mapping[str, Batch], batch_idx: int) -> None:
        """Log the learning rate and the images per second since the last time they were logged."""
        now = time.perf_counter()
        count = sum(map(len, parts_of(batch)))
        start, images = self._since or (now, -count)  # the first batch pays for starting up
        images += count
        self._since = (start, images)
        trainer: Any = self.trainer
        if trainer.global_step % trainer.log_every_n_steps == 0:
            self.log("learning_rate", max(group["lr"] for group in trainer.optimizers[0].param_groups))
            if now > start:
                world = trainer.world_size
                self.log("images_per_second", images * world / (now - start), batch_size=len(batch))
                self._since = (now, 0)

    def on_validation_end(self) -> None:
        """Leave validation out of the images per second."""
        self._since = None

    def configure_optimizers(self) -> Any:
        """Build the optimiser over parameter groups, and its schedule."""
        groups = parameter_groups(
            self.segmenter,
            self.learning_rate,
            self.backbone_learning_rate_factor,
            self.decay_norms_and_biases,
            self.layer_decay,
        )
        try:
            optimizer = self.optimizer(groups)
        except (TypeError, ValueError) as error:  # an option out of its range
            raise ConfigError(f"optimizer: {error}") from error
        if self.scheduler is None:
            return optimizer
        schedule = lr_scheduler(self.scheduler, optimizer, self._total_steps(), self._steps_per_epoch())
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def configure_callbacks(self) -> list[pl.Callback]:
        """Add what steps a schedule that watches a score."""
        return [PlateauSteps()]

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Step a schedule; one that watches a score was stepped by ``PlateauSteps``."""
        if not isinstance(scheduler, ReduceLROnPlateau):
            super().lr_scheduler_step(scheduler, metric)

    def _total_steps(self) -> int:
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise ConfigError("a schedule needs an end: give epochs=N or max_steps=N")
        return max(1, int(steps))

    def _steps_per_epoch(self) -> int | None:
        batches, together = self.trainer.num_training_batches, self.trainer.accumulate_grad_batches
        return None if batches == float("inf") else max(1, math.ceil(batches / together))

    def transfer_batch_to_device(
        self, batch: Batch | Mapping[str, Batch], device: torch.device, dataloader_idx: int
    ) -> Batch | dict[str, Batch]:
        """Move a batch, or several by name, without waiting for pinned memory; truths stay on the CPU."""
        if isinstance(batch, Batch):
            return batch.to(device, non_blocking=True)
        return {name: part.to(device, non_blocking=True) for name, part in batch.items()}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what rebuilds the model without any configuration file."""
        from pixvox.weights.checkpoint import model_record

        checkpoint["pixvox"] = model_record(self.segmenter)


def _peak(optimizer: OptimizerFactory) -> float:
    keywords: Mapping[str, Any] = getattr(optimizer, "keywords", {})
    if "lr" not in keywords:
        raise ConfigError(
            "the optimiser has no learning rate: give learning_rate, or functools.partial(optimizer, lr=1e-4)"
        )
    return float(keywords["lr"])


def _to_memory_format(model: torch.nn.Module, memory_format: torch.memory_format, dims: int) -> None:
    """Reorder convolution weights; ``Module.to`` would fail where 4-D and 5-D weights are mixed."""
    for parameter in model.parameters():
        if parameter.dim() == dims:
            parameter.data = parameter.data.contiguous(memory_format=memory_format)
