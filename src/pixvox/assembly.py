"""Build the parts of a run from its configuration: data, model, metrics, callbacks, trainer."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, open_dict

from pixvox.configuration import instantiate, resolved
from pixvox.distributed.world import world_size
from pixvox.errors import ConfigError
from pixvox.signatures import nearest
from pixvox.training.run_folder import RunFolder

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from pixvox.data.datamodule import DataModule
    from pixvox.data.metadata import Metadata
    from pixvox.heads.head import Head
    from pixvox.segmenter import Segmenter

HEADS = {"instance": "maskrcnn", "semantic": "fcn", "panoptic": "mask2former"}
"""The head to begin with, by task."""


def build_datamodule(config: DictConfig) -> DataModule:
    """Build the data, with what the short keys say."""
    datamodule: DataModule = instantiate(config.data, "data")
    if config.get("overfit_images"):
        from pixvox.data.overfit import overfit

        overfit(datamodule, config.overfit_images)
    return datamodule


def complete(config: DictConfig, metadata: Metadata) -> None:
    """Fill in what only the data tell; refuse what contradicts them.

    Raises:
        ConfigError: If the user gave another value.
    """
    known = {name: getattr(metadata, name) for name in ("spatial_dims", "in_channels", "num_classes")}
    known["task"] = metadata.task
    if metadata.is_thing is not None:
        known["is_thing"] = list(metadata.is_thing)
    for name, value in known.items():
        given = config.get(name)
        if given is not None and given != value:
            source = metadata.name or "the dataset"
            raise ConfigError(
                f"{name}={given}, but {source} has {name}={value}; leave {name} out, it is found by itself"
            )
    with open_dict(config):
        config.update(known)


def build_segmenter(config: DictConfig, metadata: Metadata) -> Segmenter:
    """Build the model that the configuration and the data describe."""
    from pixvox.inference.procedure import Procedure
    from pixvox.segmenter import PARTS, Segmenter

    plain = resolved(config)
    parts = {name: plain[name] for name in PARTS}
    facts = {name: plain[name] for name in ("spatial_dims", "in_channels", "num_classes")}
    names = list(metadata.class_names)
    own = {"class_names": names, "inference": inference(plain, metadata.unit), **_patch(plain)}
    model = Segmenter.from_config({**facts, **own, **parts})
    Procedure.of(model)  # a wrong option is refused before anything is trained
    return model


def _patch(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the patch of native resolution that the model learns from, if it does: the tile that suits it."""
    size = config.get("image_size")
    whole = (config.get("transforms") or {}).get("evaluation") is None
    return {"patch": size} if whole and size is not None else {}


def inference(config: Mapping[str, Any], unit: str = "um") -> dict[str, Any]:
    """Return how predict is to treat images: as the configuration says, else as they are evaluated.

    Args:
        config: A resolved configuration.
        unit: Of the spacing of the data.
    """
    from pixvox.inference.procedure import merged

    given = dict(config.get("inference") or {})
    transforms = config.get("transforms") or {}
    if given.get("spacing") is None and transforms.get("spacing") is not None:
        given.update(spacing=transforms["spacing"], spacing_unit=unit)
    steps = transforms.get("evaluation")
    if given.get("resize") is None and steps and str(steps.get("_target_", "")).endswith("resize.Resize"):
        given.update(resize=steps.get("mode", "fit"), size=steps["size"], max_size=steps.get("longest"))
    return merged({}, given)


def check_task(task: str, metadata: Metadata, known: Sequence[str] = ()) -> None:
    """Refuse data that are labelled for another task than the model's.

    Args:
        task: What the model does.
        metadata: Of the data.
        known: All tasks that its head can be built for.

    Raises:
        ConfigError: If they are.
    """
    if task != metadata.task:
        if metadata.task in known:
            raise ConfigError(
                f"this head does {task} segmentation, but {metadata.name or 'the dataset'} is labelled for "
                f"{metadata.task} segmentation; set head.task={metadata.task}"
            )
        raise ConfigError(
            f"this head is for {task} segmentation, but {metadata.name or 'the dataset'} is "
            f"labelled for {metadata.task} segmentation; choose head={HEADS[metadata.task]} (pixvox models "
            f"lists all), or read the data as data.options.task={task} where its format allows"
        )


def build_metrics(config: DictConfig, metadata: Metadata, head: Head) -> Any:
    """Build the metrics for the data's task, with the rule of the best epoch when one is given.

    A ``score_threshold`` that is left open becomes the score from which the head is confident.
    """
    if "score_threshold" in config.metrics and config.metrics.score_threshold is None:
        with open_dict(config):
            config.metrics.score_threshold = head.confident_score
    metrics = instantiate(config.metrics, "metrics")
    best_by = config.get("best_by")
    arguments = {"metadata": metadata, **({"best_by": best_by} if best_by else {})}
    return metrics(**arguments) if callable(metrics) else metrics


def monitored(metrics: Any) -> tuple[str | None, str]:
    """Return the logged name and the mode of the score that tells the best epoch.

    Raises:
        ConfigError: If the metrics give no such score.
    """
    name, mode = getattr(metrics, "monitor", None), getattr(metrics, "mode", "max")
    if name is None:
        return None, mode
    _check_score(name, metrics, f"best_by={mode}:{name}")
    return logged_name(name), mode


def check_early_stopping(config: DictConfig, metrics: Any) -> None:
    """Refuse to watch a score that the metrics do not give, before anything is trained.

    Raises:
        ConfigError: If ``early_stopping.monitor`` or ``scheduler.monitor`` is such a score.
    """
    for group in ("early_stopping", "scheduler"):
        name = (config.get(group) or {}).get("monitor")
        if name and not name.startswith("train/"):
            _check_score(name, metrics, f"{group}.monitor={name}")


def _check_score(name: str, metrics: Any, shown: str) -> None:
    known = _score_names(metrics)
    if known and "loss" not in name and name.removeprefix("val/").removeprefix("val_") not in known:
        raise ConfigError(f"{shown}: there is no such score; {nearest(name, known)}")


def _score_names(metrics: Any) -> list[str]:
    """Ask metrics without images for the names of their scores; none when they cannot tell."""
    try:
        metrics.reset()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return list(metrics.compute())
    except Exception:  # any metric of a user's: it is asked again after the first validation
        return []


def logged_name(score: str) -> str:
    """Return the name under which a validation score is logged.

    Example:
        >>> logged_name("AP50"), logged_name("val_loss"), logged_name("val/AP")
        ('val/AP50', 'val/loss', 'val/AP')
    """
    return "val/" + score.removeprefix("val/").removeprefix("val_")


def run_name(config: DictConfig) -> str:
    """Return ``BACKBONE_HEAD`` by the chosen configurations, or by the classes' names."""
    choices = config.get("choices") or {}
    return "_".join(
        str(choices.get(part) or config[part]._target_.rpartition(".")[2].lower())
        for part in ("backbone", "head")
    )


def build_trainer(
    config: DictConfig, run: RunFolder, monitor: str | None, mode: str, further: Sequence[pl.Callback] = ()
) -> pl.Trainer:
    """Build Lightning's trainer with the callbacks and loggers of a run folder.

    Args:
        config: A complete configuration.
        run: The folder.
        monitor: Logged name of the score that tells the best epoch.
        mode: ``"max"`` or ``"min"``.
        further: Callbacks that act before the others.
    """
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch.callbacks import ProgressBar

    from pixvox.callbacks.checkpoints import keep_sums
    from pixvox.callbacks.metrics_table import MetricsTable
    from pixvox.distributed.sync_batch_norm import SyncBatchNorms

    loggers = [MetricsTable(run.metrics), *(instantiate(config.logger, "logger") or {}).values()]
    changed: dict[str, Any] = {}
    if config.fast_dev_run:
        batches = int(config.fast_dev_run)
        changed = {
            "limit_train_batches": batches,
            "limit_val_batches": batches,
            "limit_test_batches": batches,
            "max_epochs": 1,
            "max_steps": -1,
        }
    callbacks = [*further, *build_callbacks(config, run, monitor, mode)]
    if config.trainer.get("sync_batchnorm"):
        own = instantiate(config.trainer.get("plugins") or [], "trainer.plugins")
        plugins = [*(own if isinstance(own, list) else [own]), SyncBatchNorms()]
        changed |= {"sync_batchnorm": False, "plugins": plugins}
    try:
        trainer: pl.Trainer = instantiate(
            config.trainer,
            "trainer",
            callbacks=callbacks,
            enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
            logger=loggers,
            default_root_dir=str(run.path),
            **changed,
        )
    except MisconfigurationException as error:
        raise ConfigError(f"trainer: {error}") from error
    keep_sums(trainer, config.on_save_error)
    return trainer


def _own_callbacks(config: DictConfig) -> list[pl.Callback]:
    """Return the user's callbacks.

    Raises:
        ConfigError: If one of them is something else.
    """
    from lightning.pytorch import Callback

    built = instantiate(config.callbacks, "callbacks") or {}
    for name, callback in built.items():
        if not isinstance(callback, Callback):
            raise ConfigError(
                f"callbacks.{name} is no callback but {type(callback).__name__}: callbacks.{name}._target_ names a "
                "class of Lightning's Callback or pixvox.callbacks.hooks.Hooks"
            )
    return list(built.values())


def build_callbacks(config: DictConfig, run: RunFolder, monitor: str | None, mode: str) -> list[pl.Callback]:
    """Return what watches a run, the order in which they act."""
    from pixvox.callbacks.checkpoints import checkpoint_callbacks
    from pixvox.callbacks.ema import EMA
    from pixvox.callbacks.final_validation import FinalValidation
    from pixvox.callbacks.nan_guard import NaNGuard
    from pixvox.callbacks.pictures import Pictures
    from pixvox.callbacks.profiler import Profiler
    from pixvox.callbacks.progress import progress_callbacks
    from pixvox.callbacks.step_timer import StepTimer
    from pixvox.callbacks.stop_early import StopEarly
    from pixvox.callbacks.summary import Summary
    from pixvox.callbacks.tracking import Tracking
    from pixvox.callbacks.train_samples import TrainSamples
    from pixvox.callbacks.training_state import TrainingState
    from pixvox.distributed.stopping import StopTogether

    timer = StepTimer(exact=bool(config.profile))
    callbacks: list[pl.Callback] = [
        TrainingState(),  # first: it remembers the generators before anyone draws from them
        *([StopTogether()] if world_size() > 1 else []),
        NaNGuard(run.last, config.skip_nan_steps),
        *([EMA(config.ema_decay)] if config.ema_decay is not None else []),
        FinalValidation(),
        Summary(run, monitor, mode),
        Pictures(run, monitor, mode),
        timer,  # before what draws and prints at the end of a step
        TrainSamples(run.path, timer=timer),
        *progress_callbacks(),
        *([Profiler(run, 10 if config.profile is True else config.profile, timer)] if config.profile else []),
        Tracking(run, resolved(config), resumed=config.resume is not None),
        *_own_callbacks(config),
    ]
    stopping = config.early_stopping
    if stopping.patience is not None:
        watched = logged_name(stopping.monitor) if stopping.monitor else monitor
        if watched is None:
            raise ConfigError(
                "early_stopping.patience needs early_stopping.monitor: the metrics have no main score"
            )
        callbacks.append(
            StopEarly(
                watched,
                patience=stopping.patience,
                mode=stopping.mode or mode,
                check_on_train_epoch_end=watched.startswith("train/"),  # a score is judged where it is fresh
            )
        )
    return callbacks + checkpoint_callbacks(
        run, monitor, mode, config.checkpoint_every_n_steps, config.keep_checkpoints_every
    )
