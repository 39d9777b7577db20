"""The folder of a run: what it holds, where it is, which of its checkpoints can be read."""

from __future__ import annotations

import datetime
import itertools
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pixvox.errors import ConfigError, WeightsError
from pixvox.files import finite
from pixvox.version import __version__


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
    def checkpoints(self) -> Path:
        """Folder of ``last.ckpt`` and ``best.ckpt``."""
        return self.path / "checkpoints"

    @property
    def last(self) -> Path:
        """Newest state, to resume from."""
        return self.checkpoints / "last.ckpt"

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
        """Make the folder."""
        self.checkpoints.mkdir(parents=True, exist_ok=True)

    def point_last(self) -> None:
        """Let ``last``, beside the folder, point here; where links do not exist, by a file with the name."""
        pointer = self.path.parent / "last"
        temporary = self.path.parent / f".last.{os.getpid()}"
        try:
            temporary.symlink_to(self.path.name, target_is_directory=True)
        except (OSError, NotImplementedError):
            temporary.write_text(self.path.name + "\n")
        try:
            os.replace(temporary, pointer)
        except OSError:  # "last" is a folder of the user's
            temporary.unlink(missing_ok=True)

    def write_json(self, path: Path, content: Mapping[str, Any]) -> None:
        """Write a file whole or not at all."""
        temporary = path.with_name(path.name + ".part")
        temporary.write_text(
            json.dumps(finite(json.loads(json.dumps(content, default=str))), indent=2) + "\n"
        )
        os.replace(temporary, path)


def find_run(path: str | Path) -> RunFolder:
    """Return the run at ``path``: its folder, the ``last`` pointer, or a file inside it.

    Raises:
        ConfigError: If there is none.
    """
    given = Path(path)
    place = given
    if place.is_file() and place.suffix == "" and place.name == "last":
        place = place.parent / place.read_text().strip()
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


def readable_checkpoint(run: RunFolder) -> Path:
    """Return the newest checkpoint of a run that can be read: ``last``, or ``best`` when ``last`` is damaged.

    Raises:
        WeightsError: If neither can be read.
    """
    reasons = []
    for path in (run.last, run.best):
        problem = checkpoint_problem(path)
        if problem is None:
            return path
        reasons.append(f"{path}: {problem}")
    raise WeightsError("no checkpoint of this run can be read. " + "; ".join(reasons))


def checkpoint_problem(path: Path) -> str | None:
    """Say why a checkpoint cannot be read, or None; pickled code is never run."""
    import torch

    if not path.exists():
        return "there is no such file"
    if path.stat().st_size == 0:
        return "the file is empty (0 bytes)"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for damaged, foreign and malicious files
        return f"not a readable checkpoint ({type(error).__name__}: {str(error).splitlines()[0][:160]})"
    if not isinstance(state, dict) or "pixvox" not in state:
        return "not a checkpoint of pixvox"
    return None


def environment(extra: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return versions, git state, device and command line of this process."""
    import torch

    from pixvox.doctor import device_summary, package_versions

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
