"""A tracker that never ends a run, and goes on in the same tracked run when ours is resumed."""

from __future__ import annotations

import json
import logging
from argparse import Namespace
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from pixvox.errors import ConfigError
from pixvox.files import whole_file

log = logging.getLogger("pixvox")

MOST_FAILURES = 3
"""Failures in a row after which a tracker is left alone."""


class Tracker(Logger):
    """Hand everything to a Lightning logger; what fails is said once, and the run goes on.

    The tracked run's id is kept in ``trackers.json`` of the run folder, so that a resumed run continues it.

    Args:
        kind: Name for messages and for the id's place.
        folder: The run folder.
        begin: Opens the tracked run with an id, or a new one without, and returns logger and id.
        picture: Hands over a picture: logger, name, path and step.
        end: Closes the tracked run, where the logger leaves it open.
    """

    def __init__(
        self,
        kind: str,
        folder: str | Path,
        begin: Callable[[str | None], tuple[Any, str]],
        picture: Callable[[Any, str, Path, int], None],
        end: Callable[[Any], None] | None = None,
    ) -> None:
        super().__init__()
        self.kind = kind
        self.ids = Path(folder) / "trackers.json"
        self._begin, self._picture, self._end = begin, picture, end
        self._logger: Any = None
        self._failures = 0

    @property
    def name(self) -> str:
        """Name of the tracker."""
        return self.kind

    @property
    def version(self) -> str:
        """Id of the tracked run, once there is one."""
        return self._known().get(self.kind, "")

    @property
    def experiment(self) -> Any:
        """What the tracker's own library offers for this run; None while it cannot be reached."""
        logger = self._open()
        return None if logger is None else logger.experiment

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Hand over numbers."""
        self._try("log_metrics", dict(metrics), step)

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Hand over the configuration."""
        self._try("log_hyperparams", params)

    @rank_zero_only
    def log_picture(self, name: str, path: Path, step: int) -> None:
        """Hand over a picture."""
        self._guarded(lambda logger: self._picture(logger, name, path, step))

    @rank_zero_only
    def save(self) -> None:
        """Write what is buffered."""
        if self._logger is not None:
            self._try("save")

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close the tracked run."""
        if self._logger is not None:
            self._try("finalize", status)
            if self._end is not None:
                self._guarded(self._end)
                self._failures = MOST_FAILURES  # what comes later must not open another run

    def _try(self, method: str, *arguments: Any) -> None:
        self._guarded(lambda logger: getattr(logger, method)(*arguments))

    def _guarded(self, act: Callable[[Any], None]) -> None:
        logger = self._open()
        if logger is None:
            return
        try:
            act(logger)
            self._failures = 0
        except Exception as error:
            self._failed(error)

    def _open(self) -> Any:
        """Return the logger, opened when first asked; None when there have been too many failures."""
        if self._failures >= MOST_FAILURES:
            return None
        if self._logger is None:
            try:
                logger, found = self._begin(self._known().get(self.kind))
                self._remember(found)
                self._logger = logger
            except Exception as error:
                self._failures = MOST_FAILURES - 1  # a tracker that cannot be opened may make each call wait
                self._failed(error)
        return self._logger

    def _failed(self, error: Exception) -> None:
        if self._failures == 0 or self._failures == MOST_FAILURES - 1:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            more = "" if self._failures == 0 else "; it gets nothing more of this run"
            log.warning(
                "%s failed: %s%s. The run goes on; metrics.csv has every number", self.kind, reason, more
            )
        self._failures += 1

    def _known(self) -> dict[str, str]:
        try:
            content = json.loads(self.ids.read_text())
        except (OSError, ValueError):
            return {}
        return {str(key): str(value) for key, value in content.items()} if isinstance(content, dict) else {}

    def _remember(self, found: str) -> None:
        known = self._known()
        if known.get(self.kind) != found:
            self.ids.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(self.ids) as part:
                part.write_text(json.dumps({**known, self.kind: found}, indent=2) + "\n")


def require(package: str, extra: str) -> None:
    """Refuse to begin without a package.

    Raises:
        ConfigError: If it is not installed.
    """
    if find_spec(package) is None:
        raise ConfigError(
            f"logger={extra} needs the package {package}, which is not installed: pip install 'pixvox[{extra}]', "
            "or choose logger=tensorboard or logger=none"
        )
