"""Weights & Biases."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from pixvox.loggers.tracker import Tracker, require


def wandb(
    run_dir: str,
    project: str = "pixvox",
    name: str | None = None,
    offline: bool = False,
    **options: Any,
) -> Tracker:
    """Return a tracker for Weights & Biases; it is reached when the training begins.

    Args:
        run_dir: The run folder; offline data lie in its ``wandb/`` until ``wandb sync`` sends them.
        project: The project.
        name: Name of the run; by default that of the run folder.
        offline: Write to the run folder only.
        options: Further arguments of ``wandb.init``, such as ``entity``, ``group`` and ``tags``.

    Raises:
        ConfigError: If the package is missing.
    """
    require("wandb", "wandb")

    def begin(found: str | None) -> tuple[Any, str]:
        from lightning.pytorch.loggers import WandbLogger

        chosen = found or secrets.token_hex(4)
        logger = WandbLogger(
            name=name or Path(run_dir).name,
            save_dir=run_dir,
            project=project,
            offline=offline,
            id=chosen,
            resume="allow",
            **options,
        )
        _ = logger.experiment  # opens the run: what is wrong shows now
        return logger, chosen

    def picture(logger: Any, key: str, path: Path, step: int) -> None:
        logger.log_image(key, [str(path)])

    def end(logger: Any) -> None:
        logger.experiment.finish()  # else the next training of this process would go on in this run

    return Tracker("wandb", run_dir, begin, picture, end)
