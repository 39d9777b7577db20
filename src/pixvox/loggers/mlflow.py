"""MLflow."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pixvox.loggers.tracker import Tracker, require


def mlflow(
    run_dir: str,
    experiment_name: str = "pixvox",
    run_name: str | None = None,
    tracking_uri: str | None = None,
    **options: Any,
) -> Tracker:
    """Return a tracker for MLflow; it is reached when the training begins.

    Args:
        run_dir: The run folder.
        experiment_name: The experiment, made when it is new.
        run_name: Name of the run; by default that of the run folder.
        tracking_uri: A server (``http://...``), a database (``sqlite:///mlflow.db``) or a folder
            (``file:mlruns``); by default what ``MLFLOW_TRACKING_URI`` says, else the folder ``mlruns``, which needs
            neither.
        options: Further arguments of Lightning's ``MLFlowLogger``, such as ``tags``.

    Raises:
        ConfigError: If the package is missing.
    """
    require("mlflow", "mlflow")

    def begin(found: str | None) -> tuple[Any, str]:
        from lightning.pytorch.loggers import MLFlowLogger

        place = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or "file:mlruns"
        if place.startswith("file:") or "://" not in place:
            # Newer versions take folders from those only who say that they mean it.
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        logger = MLFlowLogger(
            experiment_name=experiment_name,
            run_name=run_name or Path(run_dir).name,
            run_id=found,
            tracking_uri=place,
            **options,
        )
        _ = logger.experiment  # opens the run: what is wrong shows now
        return logger, str(logger.run_id)

    def picture(logger: Any, key: str, path: Path, step: int) -> None:
        logger.experiment.log_artifact(logger.run_id, str(path))

    return Tracker("mlflow", run_dir, begin, picture)
