"""Train: compose, build data and model, fit, and leave a run folder behind."""

from __future__ import annotations

import contextlib
import json
import logging
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf, open_dict

from pixvox.assembly import (
    build_datamodule,
    build_metrics,
    build_segmenter,
    build_trainer,
    check_early_stopping,
    check_task,
    complete,
    monitored,
    run_name,
)
from pixvox.configuration import compose, instantiate, resolved
from pixvox.console import logging_to, quiet_lightning
from pixvox.distributed.launch import (
    from_first,
    join_world,
    process_count,
    run_together,
    started_from_outside,
)
from pixvox.distributed.strategies import check_support
from pixvox.distributed.world import process_rank, world_size
from pixvox.errors import ConfigError, TrainingError
from pixvox.overrides import data_overrides, override, overrides_from
from pixvox.training.class_weights import PIXELS_FILE, resolve_class_weights
from pixvox.training.held_out import check_test_split, score_best
from pixvox.training.run_folder import RunFolder, environment, find_run, readable_checkpoint
from pixvox.weights.transfer import transfer

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from pixvox.data.datamodule import DataModule
    from pixvox.methods.supervised import Supervised
    from pixvox.segmenter import Segmenter
    from pixvox.training.automatic import Suggestions
    from pixvox.training.interruption import Interruption

log = logging.getLogger("pixvox")


@dataclass(frozen=True)
class Run:
    """A finished training.

    Args:
        dir: The run folder.
        metrics: Scores of the best epoch by name, without the prefix ``val/``.
        summary: What ``summary.json`` holds.
    """

    dir: Path
    metrics: dict[str, float]
    summary: dict[str, Any] = field(default_factory=dict)

    def model(self) -> Segmenter:
        """Load the best model of the run."""
        from pixvox.weights import load

        return load(self.dir)


def train(
    config: DictConfig | Sequence[str] | None = None,
    *,
    data: str | Path | None = None,
    config_dir: str | Path | None = None,
    resume: str | Path | bool | None = None,
    **options: Any,
) -> Run:
    """Train a model and return its run.

    Args:
        config: A composed configuration, or a list of overrides such as ``["head=fcn", "epochs=3"]``.
        data: A path, whose layout is found, or the name of a data configuration.
        config_dir: Folder of further configurations.
        resume: A run folder or checkpoint to continue; True continues the newest run.
        **options: Overrides by short key or group: ``head="maskrcnn", epochs=20, image_size=[256, 320]``; a
            mapping sets several values below a key: ``head={"dropout": 0.2}``.

    Raises:
        ConfigError: If the configuration is wrong or does not suit the data.
        DataError: If the data cannot be used.

    Example:
        >>> run = pixvox.train(data="my_dataset/", head="maskrcnn", backbone="resnet18")  # doctest: +SKIP
        >>> run.metrics["AP50"]  # doctest: +SKIP
    """
    overrides: list[str] = []
    run: RunFolder | None = None
    suggestions: Suggestions | None = None
    if not isinstance(config, DictConfig):
        chosen = data_overrides(data, config or ()) if data is not None else []
        overrides = [*chosen, *(config or ()), *overrides_from(options)]
        overrides, run = _continued(overrides, resume)
        config = compose("train", overrides, config_dir)
        if config.auto:
            from pixvox.training.automatic import suggestions_of

            suggestions = suggestions_of(run, overrides, config_dir)
            config = compose("train", [*suggestions.overrides, *overrides], config_dir)
    elif options or data is not None:
        raise ConfigError(
            "give either a composed configuration or options, not both; compose() takes overrides"
        )
    elif config.get("auto"):
        raise ConfigError(
            "auto=true takes overrides: give train() a list of them instead of what compose() made"
        )
    origin = {"overrides": overrides, "config_dir": config_dir and str(config_dir)}
    return _train(config, run, origin, suggestions)


def _continued(overrides: list[str], resume: str | Path | bool | None) -> tuple[list[str], RunFolder | None]:
    """Put the overrides of a resumed run before the new ones; return its folder too."""
    given = dict(line.partition("=")[::2] for line in overrides)
    if resume is None and "resume" in given:
        text = given["resume"].strip("'\"")
        resume = {"true": True, "false": None, "null": None}.get(text.lower(), text)
    overrides = [line for line in overrides if not line.startswith("resume=")]
    if resume is None or resume is False:
        return overrides, None
    run = find_run(Path(given.get("runs_dir", "runs")) / "last" if resume is True else resume)
    try:
        earlier = json.loads(run.environment.read_text()).get("overrides") or []
    except (OSError, json.JSONDecodeError) as error:
        raise ConfigError(f"{run.environment} cannot be read: {error}; this run cannot be resumed") from error
    earlier = [line for line in earlier if not line.startswith("resume=")]
    return [*earlier, *overrides, override("resume", str(run.path))], run


def _train(
    config: DictConfig, run: RunFolder | None, origin: dict[str, Any], suggestions: Suggestions | None = None
) -> Run:
    """Train here, or in one process per device."""
    check_support(config)
    processes, nodes = process_count(config), int(config.trainer.get("num_nodes", 1))
    if processes * nodes > 1 and not started_from_outside(config):
        if nodes > 1:
            raise ConfigError(
                f"trainer.num_nodes={nodes}: the processes of several machines are started by torchrun or srun, on "
                "each machine; see docs/how-to/distributed.md"
            )
        return run_together(_train, (config, run, origin, suggestions), processes)
    import lightning.pytorch  # noqa: F401  (its import makes its loggers speak: they are quieted after it)

    from pixvox.training.interruption import Interruption
    from pixvox.training.out_of_memory import OutOfMemory, smaller_batch

    with Interruption() as interruption, join_world(config), quiet_lightning():
        try:
            return _train_here(config, run, origin, suggestions, interruption)
        except OutOfMemory as error:
            # Processes that train together would have to agree on it, and the one without memory is gone.
            if config.on_out_of_memory == "raise" or world_size() > 1 or smaller_batch(config) is None:
                raise
            failure = str(error)
        run, overrides = _halve_batch(config, failure)
        origin = {**origin, "overrides": [*origin["overrides"], *overrides]}
        return _train_here(config, run, origin, None, interruption)


def _halve_batch(config: DictConfig, failure: str) -> tuple[RunFolder, list[str]]:
    """Prepare to go on with a smaller batch after memory ran out; return the run and the overrides."""
    import gc

    import torch

    from pixvox.training.out_of_memory import halve

    run = RunFolder(Path(config.run_dir))
    overrides = halve(config)
    with logging_to(run.log):
        log.warning("%s", failure)
        log.warning("on_out_of_memory=halve_batch: going on once with %s", " ".join(overrides))
    known = json.loads(run.environment.read_text())
    run.write_json(run.environment, {**known, "overrides": [*(known.get("overrides") or []), *overrides]})
    gc.collect()  # the failed attempt's tensors
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return run, overrides


def _train_here(
    config: DictConfig,
    run: RunFolder | None,
    origin: dict[str, Any],
    suggestions: Suggestions | None,
    interruption: Interruption,
) -> Run:
    """Build everything, then make the folder: a mistake in configuration or data leaves nothing behind."""
    import lightning.pytorch as pl

    from pixvox.callbacks.progress import clock, headline
    from pixvox.callbacks.summary import summary_of

    pl.seed_everything(config.seed, workers=True, verbose=False)
    datamodule = build_datamodule(config)
    complete(config, datamodule.metadata)
    counted = resolve_class_weights(config, datamodule, run)
    segmenter = build_segmenter(config, datamodule.metadata)
    transferred = transfer(segmenter, config.weights) if config.weights and run is None else None
    datamodule.size_divisor = segmenter.size_divisor
    check_task(segmenter.task, datamodule.metadata, segmenter.head.known_tasks())
    if config.test:
        check_test_split(datamodule)
    metrics = build_metrics(config, datamodule.metadata, segmenter.head)
    monitor, mode = monitored(metrics)
    check_early_stopping(config, metrics)
    method = instantiate(config.method, "method")(
        segmenter=segmenter,
        optimizer=instantiate(config.optimizer, "optimizer"),
        scheduler=instantiate(config.scheduler, "scheduler") if config.get("scheduler") else None,
        metrics=metrics,
    )
    if method.strong_views:
        datamodule.check_unlabelled()
    # The first process looks into folders, and all go by what it found.
    checkpoint = from_first(partial(readable_checkpoint, run)) if run is not None else None
    run = run or from_first(lambda: RunFolder.reserve(config.runs_dir, run_name(config), config.run_dir))
    with open_dict(config):
        config.run_dir = str(run.path)
    trainer = build_trainer(config, run, monitor, mode, [interruption])
    first = process_rank() == 0
    if first:
        run.make()
    try:
        with logging_to(run.log) if first else contextlib.nullcontext():
            if first:
                _describe(config, run, segmenter, datamodule, origin, checkpoint)
                if transferred is not None:
                    log.info("weights of %s: %s", config.weights, transferred)
                if suggestions is not None:
                    suggestions.write(run)
                if counted is not None:
                    run.write_json(run.path / PIXELS_FILE, counted)
            _fit(trainer, method, datamodule, run, checkpoint, config, interruption)
            if config.test:
                score_best(trainer, method, datamodule, run)
            summary = summary_of(trainer)
            best = headline(summary["best"]) or "no validation"
            log.info("done in %s; best: %s", clock(summary["seconds"]), best)
            log.info("run folder %s", run.path)
    except ConfigError:
        # Some values are refused only when Lightning builds optimiser and schedule.
        if first and checkpoint is None and trainer.global_step == 0:
            run.discard()
        raise
    return Run(run.path, summary["best"], summary)


def _describe(
    config: DictConfig,
    run: RunFolder,
    segmenter: Segmenter,
    datamodule: DataModule,
    origin: dict[str, Any],
    resumed: Path | None,
) -> None:
    """Write configuration and environment; say what is about to happen."""
    if resumed is None:
        run.config.write_text(OmegaConf.to_yaml(OmegaConf.create(resolved(config))))
        run.write_json(run.environment, environment(origin))
    metadata = datamodule.metadata
    parameters = sum(parameter.numel() for parameter in segmenter.parameters())
    log.info(
        "%s: %s segmentation in %d-D, %d classes, %d training images",
        metadata.name or "data",
        metadata.task,
        metadata.spatial_dims,
        metadata.num_classes,
        len(datamodule.train),
    )
    log.info("%s: %.1f million parameters; run folder %s", run_name(config), parameters / 1e6, run.path)
    if resumed is not None:
        log.info("resuming from %s", resumed)
    elif config.resume:
        log.info("there is no checkpoint yet: starting from the beginning")


def _fit(
    trainer: pl.Trainer,
    method: Supervised,
    datamodule: DataModule,
    run: RunFolder,
    checkpoint: Path | None,
    config: DictConfig,
    interruption: Interruption,
) -> None:
    """Fit; a signal ends the process with its usual exit code once the state is saved.

    Raises:
        TrainingError: If memory runs out or a process that loads has died; other errors as they are.
    """
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    from pixvox.data.loader import worker_failure
    from pixvox.training.out_of_memory import is_out_of_memory, out_of_memory

    again = f"continue with: pixvox train --resume {run.path}"
    failure: TrainingError | None = None
    try:
        trainer.fit(method, datamodule=datamodule, ckpt_path=checkpoint, weights_only=True)
    except SIGTERMException:
        if interruption.number == signal.SIGINT:
            log.warning("stopped at step %d; %s", trainer.global_step, again)
            raise KeyboardInterrupt from None
        log.warning("stopped by SIGTERM at step %d; %s", trainer.global_step, again)
        raise SystemExit(143) from None
    except KeyboardInterrupt:
        log.warning("stopped while stopping; %s", again)
        raise
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            log.warning("stopped at step %d; %s", trainer.global_step, again)
            raise KeyboardInterrupt from None
        raise
    except (RuntimeError, MemoryError) as error:
        # Made of numbers alone, and raised when the failed step's tensors are free again.
        if is_out_of_memory(error):
            failure = out_of_memory(config, error, sum(p.numel() for p in method.parameters()))
        elif isinstance(error, RuntimeError):
            failure = worker_failure(error, datamodule.num_workers, datamodule.batch_size)
        if failure is None:
            raise
    finally:
        interruption.answer_at_once()
    interruption.answer()
    if failure is not None:
        raise failure
