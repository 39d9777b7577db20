"""The folder of a run: what it holds, where it is, which of its checkpoints can be read."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import logging
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pixvox.errors import ConfigError, WeightsError
from pixvox.files import finite, remove_parts, whole_file
from pixvox.version import __version__

log = logging.getLogger("pixvox")


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run.

    Args:
        path: The folder.
    """

    path: Path

    @property
    def config(self) -> Path:
        """Resolved configuration."""
        return self.path / "config.yaml"

    @property
    def environment(self) -> Path:
        """Versions, git state, device and command line."""
        return self.path / "environment.json"

    @property
    def log(self) -> Path:
        """What was printed."""
        return self.path / "run.log"

    @property
    def metrics(self) -> Path:
        """Every logged number."""
        return self.path / "metrics.csv"

    @property
    def summary(self) -> Path:
        """Best metrics, seconds, peak memory, parameters."""
        return self.path / "summary.json"

    @property
    def speed(self) -> Path:
        """What a prediction takes, where it was measured."""
        return self.path / "speed.json"

    @property
    def checkpoints(self) -> Path:
        """Folder of ``last.ckpt`` and ``best.ckpt``."""
        return self.path / "checkpoints"

    @property
    def last(self) -> Path:
        """Newest state, to resume from."""
        return self.checkpoints / "last.ckpt"

    @property
    def previous(self) -> Path:
        """The state before the newest."""
        return self.checkpoints / "previous.ckpt"

    @property
    def best(self) -> Path:
        """Best state by the monitored score."""
        return self.checkpoints / "best.ckpt"

    @classmethod
    def reserve(cls, runs: str | Path, name: str, folder: str | Path | None = None) -> RunFolder:
        """Name a folder ``DATE_TIME_NAME`` below ``runs`` that does not exist yet; ``make`` makes it.

        Raises:
            ConfigError: If ``folder``, which is taken instead when given, holds something already.
        """
        if folder is not None:
            chosen = Path(folder)
            if chosen.exists() and (not chosen.is_dir() or any(chosen.iterdir())):
                raise ConfigError(f"run_dir={chosen} exists already; choose another folder, or use --resume")
            return cls(chosen)
        stamp = datetime.datetime.now().strftime("%Y%m%d_%H%M%S")
        paths = (Path(runs) / f"{stamp}_{name}{f'_{i}' if i > 1 else ''}" for i in itertools.count(1))
        return cls(next(path for path in paths if not path.exists()))

    def make(self) -> None:
        """Make the folder, or tidy up one that a killed process left."""
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        for folder in (self.path, self.checkpoints):
            remove_parts(folder)

    def discard(self) -> None:
        """Remove the folder of a run that never began."""
        shutil.rmtree(self.path, ignore_errors=True)

    def point_last(self) -> None:
        """Let ``last``, beside the folder, point here; where links do not exist, by a file with the name."""
        pointer = self.path.parent / "last"
        # "last" may be a folder of the user's: it stays.
        with contextlib.suppress(IsADirectoryError, PermissionError), whole_file(pointer) as part:
            try:
                part.symlink_to(self.path.name, target_is_directory=True)
            except (OSError, NotImplementedError):
                part.write_text(self.path.name + "\n")

    def write_json(self, path: Path, content: Mapping[str, Any]) -> None:
        """Write a file whole or not at all."""
        with whole_file(path) as part:
            part.write_text(json.dumps(finite(json.loads(json.dumps(content, default=str))), indent=2) + "\n")


def pointed(path: str | Path) -> Path:
    """Return the place that a path means: itself, or the newest run where ``last`` is a file with its name.

    Raises:
        WeightsError: If it is a URL.
    """
    place = Path(path)
    # A path has lost one of the two slashes; a single letter is a drive.
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", str(path)) and not place.exists():
        raise WeightsError(f"{path} is a URL; download it first and give the path of the file")
    if place.name == "last" and place.is_file() and place.stat().st_size < 4096:
        place = place.parent / place.read_text(errors="replace").strip()
    return place


def find_run(path: str | Path) -> RunFolder:
    """Return the run at ``path``: its folder, the ``last`` pointer, or a file inside it.

    Raises:
        ConfigError: If there is none.
        WeightsError: If it is a URL.
    """
    given = Path(path)
    place = pointed(path)
    if place.is_file():
        place = place.parent.parent if place.parent.name == "checkpoints" else place.parent
    if not place.exists():
        near = sorted(p.name for p in place.parent.glob("*")) if place.parent.is_dir() else []
        listed = f"; {place.parent} holds {', '.join(near[-5:])}" if near else ""
        raise ConfigError(f"there is no run at {given}{listed}; pixvox train makes one")
    run = RunFolder(place.resolve())
    if not run.checkpoints.is_dir():
        raise ConfigError(
            f"{given} is no run folder: it has no checkpoints/; give a folder such as runs/last"
        )
    return run


def readable_checkpoint(run: RunFolder) -> Path | None:
    """Return the newest checkpoint of a run that can be read, or None when it has none at all yet.

    ``last`` comes first, then the others by their time; what is passed over is named in a warning.

    Raises:
        WeightsError: If there are checkpoints, but none can be read.
    """
    from pixvox.weights.checkpoint import RECORD_KEY, read_torch_file

    others = sorted(
        (
            path
            for path in run.checkpoints.glob("*.ckpt")
            if path != run.last and not path.name.startswith(".")
        ),
        key=lambda path: path.stat().st_mtime,
        reverse=True,
    )
    if not others and not run.last.exists():
        return None
    reasons: list[str] = []
    for path in (run.last, *others):
        try:
            content = read_torch_file(path)
        except WeightsError as error:
            reasons.append(str(error))
            continue
        if isinstance(content, dict) and {RECORD_KEY, "state_dict", "global_step"} <= content.keys():
            for reason in reasons:
                log.warning("%s; falling back to %s", reason, path.name)
            return path
        reasons.append(f"{path}: not the checkpoint of a training with pixvox")
    raise WeightsError("no checkpoint of this run can be read. " + "; ".join(reasons))


def environment(extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return versions, git state, device and command line of this process."""
    import torch

    from pixvox.devices import device_summary
    from pixvox.doctor import package_versions

    return {
        "pixvox": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": package_versions(),
        "device": device_summary(),
        "threads": torch.get_num_threads(),
        "git": _git_state(),
        "command": sys.argv,
        "started": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        **(extra or {}),
    }


def _git_state() -> dict[str, Any] | None:
    """Return commit and cleanliness of the working folder's repository, if it is one."""

    def ask(*arguments: str) -> str:
        command = ["git", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()

    try:
        return {"commit": ask("rev-parse", "HEAD"), "clean": not ask("status", "--porcelain", "-uno")}
    except (OSError, subprocess.SubprocessError):
        return None
