"""Train: compose, build data and model, fit, and leave a run folder behind."""

from __future__ import annotations

import contextlib
import json
import logging
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
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
from pixvox.configuration import compose, data_overrides, instantiate, override, overrides_from, resolved
from pixvox.console import logging_to, quiet_lightning
from pixvox.errors import ConfigError
from pixvox.run_folder import RunFolder, environment, find_run, readable_checkpoint

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from pixvox.data.datamodule import DataModule
    from pixvox.methods.supervised import Supervised
    from pixvox.segmenter import Segmenter

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
    if not isinstance(config, DictConfig):
        chosen = data_overrides(data, config or ()) if data is not None else []
        overrides = [*chosen, *(config or ()), *overrides_from(options)]
        overrides, run = _continued(overrides, resume)
        config = compose("train", overrides, config_dir)
    elif options or data is not None:
        raise ConfigError(
            "give either a composed configuration or options, not both; compose() takes overrides"
        )
    return _train(config, run, {"overrides": overrides, "config_dir": config_dir and str(config_dir)})


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
    return [*earlier, *overrides, override("resume", str(run.path))], run


def _train(config: DictConfig, run: RunFolder | None, origin: dict[str, Any]) -> Run:
    """Build everything, then make the folder: a mistake in configuration or data leaves nothing behind."""
    import lightning.pytorch as pl

    from pixvox.callbacks.progress import clock, headline
    from pixvox.callbacks.summary import summary_of

    pl.seed_everything(config.seed, workers=True, verbose=False)
    with quiet_lightning():
        datamodule = build_datamodule(config)
        complete(config, datamodule.metadata)
        segmenter = build_segmenter(config, datamodule.metadata)
        datamodule.size_divisor = segmenter.size_divisor
        check_task(segmenter, datamodule.metadata)
        metrics = build_metrics(config, datamodule.metadata)
        monitor, mode = monitored(metrics)
        check_early_stopping(config, metrics)
        checkpoint = readable_checkpoint(run) if run is not None else None
        run = run or RunFolder.reserve(config.runs_dir, run_name(config), config.run_dir)
        with open_dict(config):
            config.run_dir = str(run.path)
        trainer = build_trainer(config, run, monitor, mode, checkpoint)
        method = instantiate(config.method, "method")(
            segmenter=segmenter,
            optimizer=instantiate(config.optimizer, "optimizer"),
            scheduler=instantiate(config.scheduler, "scheduler") if config.get("scheduler") else None,
            metrics=metrics,
        )
        run.make()
        with logging_to(run.log):
            _describe(config, run, segmenter, datamodule, origin, checkpoint)
            _fit(trainer, method, datamodule, run, checkpoint)
            summary = summary_of(trainer)
            best = headline(summary["best"]) or "no validation"
            log.info("done in %s; best: %s", clock(summary["seconds"]), best)
            log.info("run folder %s", run.path)
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
    run.point_last()
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


def _fit(
    trainer: pl.Trainer, method: Supervised, datamodule: DataModule, run: RunFolder, checkpoint: Path | None
) -> None:
    """Fit; a signal ends the process with its usual exit code once the state is saved."""
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    on_interrupt = signal.getsignal(signal.SIGINT)
    again = f"continue with: pixvox train --resume {run.path}"
    try:
        trainer.fit(method, datamodule=datamodule, ckpt_path=checkpoint, weights_only=True)
    except SIGTERMException:
        log.warning("stopped by SIGTERM at step %d; %s", trainer.global_step, again)
        raise SystemExit(143) from None
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            log.warning("stopped at step %d; %s", trainer.global_step, again)
            raise KeyboardInterrupt from None
        raise
    finally:
        # Lightning ignores further Ctrl-C while it shuts down, and does not undo that.
        with contextlib.suppress(ValueError, TypeError):  # not in the main thread
            signal.signal(signal.SIGINT, on_interrupt)
