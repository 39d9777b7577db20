"""Several trainings one after another: a grid over overrides, or a folder of configurations.

Each training runs in its own process and its own folder ``runs/sweeps/NAME/CELL``, so that one that fails neither
stops the others nor leaves anything behind in them. A sweep that is started again skips what is finished and
resumes what was interrupted.
"""

from __future__ import annotations

import itertools
import json
import logging
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

from pixvox.config_files import ENDINGS, file_overrides
from pixvox.configuration import compose
from pixvox.errors import ConfigError
from pixvox.files import whole_file
from pixvox.overrides import override
from pixvox.training.run_folder import RunFolder

log = logging.getLogger("pixvox")

_PER_RUN = ("run_dir=", "runs_dir=", "resume=")
"""Overrides that say where a run is, not what it is."""


@dataclass(frozen=True)
class Cell:
    """One training of a sweep.

    Args:
        name: Its folder below the sweep's.
        overrides: What it trains with.
        source: The configuration file that it came from.
    """

    name: str
    overrides: tuple[str, ...]
    source: Path | None = None


@dataclass
class Outcome:
    """What became of a sweep.

    Args:
        folder: The sweep's folder.
        finished: Names of the trainings that are done, also those that were before.
        skipped: Names of those that were done before.
        failed: Exit code by name.
    """

    folder: Path
    finished: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, int] = field(default_factory=dict)


def grid(overrides: Sequence[str]) -> list[Cell]:
    """Expand overrides with several values, in Hydra's grammar, to one training per combination.

    Args:
        overrides: ``head=maskrcnn,fcn``, ``learning_rate=choice(1e-3,1e-4)``, ``seed=range(3)``, and overrides
            with one value, which all combinations share.

    Raises:
        ConfigError: If an override cannot be read or has no list of values.

    Example:
        >>> [cell.name for cell in grid(["epochs=2", "head=maskrcnn,fcn", "seed=range(2)"])]
        ['head=maskrcnn,seed=0', 'head=maskrcnn,seed=1', 'head=fcn,seed=0', 'head=fcn,seed=1']
    """
    shared: list[str] = []
    axes: list[list[tuple[str, str]]] = []
    for text in overrides:
        try:
            parsed = OverridesParser.create().parse_overrides([text])[0]
        except HydraException as error:
            raise ConfigError(
                f"{text!r} cannot be read as key=value: {str(error).splitlines()[0]}"
            ) from error
        if not parsed.is_sweep_override():
            shared.append(text)
            continue
        if not (parsed.is_discrete_sweep() or parsed.is_choice_sweep() or parsed.is_range_sweep()):
            raise ConfigError(f"{text!r} has no list of values; write key=1,2,3 or key=range(3)")
        key = text.partition("=")[0]
        values = list(dict.fromkeys(parsed.sweep_string_iterator()))
        axes.append([(key, value) for value in values])
    cells = []
    for point in itertools.product(*axes):
        name = ",".join(f"{key.lstrip('+')}={value}" for key, value in point)
        chosen = tuple(f"{key}={value}" for key, value in point)
        cells.append(Cell(folder_name(name) or "run", (*shared, *chosen)))
    return _distinct(cells)


def folder_name(text: str, longest: int = 100) -> str:
    """Return a name that any file system takes.

    Example:
        >>> folder_name("data.path='a/b c',seed=0")
        'data.path=a-b-c,seed=0'
    """
    name = re.sub(r"[^\w=,.+-]+", "-", re.sub(r"[\[\]'\"]", "", text)).strip("-.")
    return name[:longest].rstrip("-.,")


def _distinct(cells: Sequence[Cell]) -> list[Cell]:
    """Number the names that are alike once they are shortened."""
    seen: dict[str, int] = {}
    result = []
    for cell in cells:
        seen[cell.name] = count = seen.get(cell.name, 0) + 1
        result.append(cell if count == 1 else Cell(f"{cell.name}-{count}", cell.overrides, cell.source))
    return result


def folder_of_configs(folder: Path, overrides: Sequence[str] = ()) -> list[Cell]:
    """Return one training for each configuration of a folder, by name; overrides come after the file's own.

    What a file may hold is told by ``pixvox.config_files.file_overrides``.

    Raises:
        ConfigError: If there is no such file, or one cannot be read.
    """
    files = sorted(path for path in folder.glob("*") if path.suffix in ENDINGS)
    if not files:
        raise ConfigError(
            f"--configs {folder}: there is no .yaml or .toml file; give a folder with one for each training"
        )
    points = grid(overrides)
    cells = []
    for path in files:
        given = file_overrides(path)
        for point in points:
            name = path.stem if len(points) == 1 else f"{path.stem},{point.name}"
            cells.append(Cell(folder_name(name), (*given, *point.overrides), path))
    return _distinct(cells)


def sweep_name(overrides: Sequence[str]) -> str:
    """Return the swept keys, which name a sweep that was given no name.

    Example:
        >>> sweep_name(["epochs=2", "head=maskrcnn,fcn", "seed=range(2)"])
        'head_seed'
    """
    cells = grid(overrides)
    given = set(overrides)
    keys = [line.partition("=")[0].lstrip("+") for line in cells[0].overrides if line not in given]
    return folder_name("_".join(keys)) or "sweep"


def sweep_folder(overrides: Sequence[str], name: str) -> Path:
    """Return the folder of a sweep: ``sweeps/NAME`` below ``runs_dir``.

    Raises:
        ConfigError: If the overrides name the folder of one training.
    """
    place = next((line for line in overrides if line.startswith(("run_dir=", "resume="))), None)
    if place is not None:
        raise ConfigError(
            f"{place}: each training of a sweep has its own folder; choose it by --name and runs_dir="
        )
    runs = OmegaConf.from_dotlist([line for line in overrides if line.startswith("runs_dir=")])
    return Path(runs.get("runs_dir", "runs")) / "sweeps" / name


def run_sweep(
    cells: Sequence[Cell],
    folder: Path,
    config_dir: Path | None = None,
    start: Callable[[Sequence[str]], int] | None = None,
) -> Outcome:
    """Train every cell that is not finished; a failure is told at the end.

    Args:
        cells: The trainings.
        folder: The sweep's folder.
        config_dir: Folder of further configurations.
        start: Runs ``pixvox`` with arguments and returns its exit code; by default in a process of its own.

    Raises:
        ConfigError: If a configuration is wrong, before any training; or if the folder holds trainings with other
            settings.
    """
    start = start or _in_a_process
    for cell in cells:
        _check(cell, folder / cell.name, config_dir)
    outcome = Outcome(folder)
    options = ["--config-dir", str(config_dir)] if config_dir is not None else []
    for number, cell in enumerate(cells, start=1):
        run = RunFolder(folder / cell.name)
        if is_finished(run):
            log.info("%d of %d: %s is finished", number, len(cells), cell.name)
            outcome.finished.append(cell.name)
            outcome.skipped.append(cell.name)
            continue
        if run.last.exists() or run.best.exists():
            log.info("%d of %d: %s is resumed", number, len(cells), cell.name)
            arguments = ["train", *options, "--resume", str(run.path)]
        else:
            log.info("%d of %d: %s", number, len(cells), cell.name)
            _set_aside(run.path)
            arguments = ["train", *options, *cell.overrides, override("run_dir", str(run.path))]
        code = start(arguments)
        if cell.source is not None and run.path.is_dir():
            with whole_file(run.path / f"given_{cell.source.name}") as part:
                shutil.copyfile(cell.source, part)
        if code == 0:
            outcome.finished.append(cell.name)
        else:
            if code in (
                130,
                143,
                -signal.SIGINT,
                -signal.SIGTERM,
            ):  # the user ends the sweep, not one training
                log.warning("the sweep was stopped in %s; the same command goes on with it", cell.name)
                raise SystemExit(code if code > 0 else 128 - code)
            outcome.failed[cell.name] = code
            log.warning("%s failed with exit code %d; the sweep goes on", cell.name, code)
    return outcome


def is_finished(run: RunFolder) -> bool:
    """Tell whether a training ran to its end."""
    try:
        return bool(json.loads(run.summary.read_text())["status"] == "finished")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _check(cell: Cell, path: Path, config_dir: Path | None) -> None:
    """Refuse a wrong configuration, and a folder that was trained with other settings."""
    where = f"{cell.source or cell.name}: "
    try:
        compose("train", cell.overrides, config_dir)
    except ConfigError as error:
        raise ConfigError(f"{where}{error}") from error
    run = RunFolder(path)
    if not run.environment.exists() or not (is_finished(run) or run.last.exists() or run.best.exists()):
        return
    try:
        before = json.loads(run.environment.read_text()).get("overrides") or []
    except (OSError, ValueError) as error:
        raise ConfigError(f"{run.environment} cannot be read: {error}; move {path} away") from error
    changed = set(_what(before)) ^ set(_what(cell.overrides))
    if changed:
        raise ConfigError(
            f"{path} was trained with other settings ({', '.join(sorted(changed))}); give this sweep another "
            "name with --name, or move the folder away"
        )


def _what(overrides: Sequence[str]) -> list[str]:
    """Return what a training was asked for; what comes after its folder it chose by itself, such as a batch size."""
    own = list(itertools.takewhile(lambda line: not line.startswith("run_dir="), overrides))
    return [line for line in own if not line.startswith(_PER_RUN)]


def _set_aside(path: Path) -> None:
    """Move what an attempt left that never saved anything: a new run needs an empty folder."""
    if path.is_dir() and any(path.iterdir()):
        attempts = path.parent / "failed"
        attempts.mkdir(exist_ok=True)
        places = (attempts / f"{path.name}-{i}" for i in itertools.count(1))
        path.rename(next(place for place in places if not place.exists()))


def _in_a_process(arguments: Sequence[str]) -> int:
    """Run the command line in a process of its own; signals reach it, and it may save before it ends."""
    with subprocess.Popen([sys.executable, "-m", "pixvox", *arguments]) as process, _forwarded(process):
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:  # a terminal sends it to both
                continue


@contextmanager
def _forwarded(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Hand SIGTERM on to a process."""
    try:
        before = signal.signal(signal.SIGTERM, lambda number, frame: process.send_signal(number))
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
