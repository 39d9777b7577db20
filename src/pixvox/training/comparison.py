"""Compare trainings: a table of what differs between run folders, with the spread over seeds."""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from pixvox.errors import ConfigError
from pixvox.files import whole_file
from pixvox.signatures import nearest
from pixvox.training.run_folder import RunFolder, pointed

_PLACES = frozenset({"run_dir", "runs_dir", "resume"})
"""Overrides that say where a run is."""


@dataclass(frozen=True)
class Finished:
    """A training as its folder tells it.

    Args:
        path: The folder.
        overrides: Keys that were set.
        config: Its whole configuration.
        summary: Its ``summary.json``.
        speed: Images that a prediction segments in a second; NaN where it was not measured.
    """

    path: Path
    overrides: tuple[str, ...]
    config: Any
    summary: Mapping[str, Any]
    speed: float = math.nan

    def value(self, key: str) -> Any:
        """Return the value of an override's key, or what stands there by default."""
        choices = self.config.get("choices") or {}
        if key in choices:
            return choices[key]
        value = OmegaConf.select(self.config, key)
        return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


@dataclass(frozen=True)
class Row:
    """Trainings that differ by their seed alone.

    Args:
        settings: What tells them from other rows.
        score: Mean of the best scores; NaN when there is none.
        spread: Their standard deviation (of a sample); NaN for one training.
        count: How many.
        seconds: Mean.
        memory: Largest peak, in MiB: that of the device, or of the host without one.
        parameters: Of the model.
        scores: Best score of each, in the order of ``runs``.
        runs: Their folders.
        speed: Mean of the images that a prediction segments in a second; NaN where it was not measured.
    """

    settings: Mapping[str, Any]
    score: float
    spread: float
    count: int
    seconds: float
    memory: float
    parameters: int
    scores: tuple[float, ...] = ()
    runs: tuple[Path, ...] = ()
    speed: float = math.nan


@dataclass(frozen=True)
class Comparison:
    """Rows, best first.

    Args:
        rows: One for each setting.
        columns: Keys that differ.
        score: Name of the score.
        mode: ``"max"`` or ``"min"``.
        unfinished: Folders of trainings that did not end.
    """

    rows: Sequence[Row]
    columns: Sequence[str]
    score: str
    mode: str = "max"
    unfinished: Sequence[Path] = field(default_factory=tuple)

    @property
    def knows_speed(self) -> bool:
        """Whether the speed of a prediction was measured for some row."""
        return not all(math.isnan(row.speed) for row in self.rows)

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Return a header and cells for people."""
        header = [*self.columns, self.score, "runs", "seconds", "peak MiB", "million parameters"]
        header += ["images/s"] if self.knows_speed else []
        lines = []
        for row in self.rows:
            spread = "" if math.isnan(row.spread) else f" ± {row.spread:.4f}"
            score = "" if math.isnan(row.score) else f"{row.score:.4f}{spread}"
            cells = [*(setting_text(row.settings[key]) for key in self.columns), score, str(row.count)]
            cells += [f"{row.seconds:.1f}", f"{row.memory:.0f}", f"{row.parameters / 1e6:.2f}"]
            speed = "" if math.isnan(row.speed) else f"{row.speed:.1f}"
            lines.append([*cells, speed] if self.knows_speed else cells)
        return header, lines

    def markdown(self) -> str:
        """Return the table in Markdown."""
        header, lines = self.table()
        rows = [header, ["---"] * len(header), *lines]
        return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |\n" for row in rows)

    def save(self, folder: Path) -> list[Path]:
        """Write ``comparison.csv``, ``comparison.md``, and pictures into a folder; return their paths."""
        from pixvox.visualization.comparison import draw_bars, draw_heat_maps

        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / "comparison.csv", folder / "comparison.md"]
        with whole_file(paths[0]) as part, part.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(self._numbers())
        with whole_file(paths[1]) as part:
            part.write_text(self.markdown(), encoding="utf-8")
        if self.rows:
            paths.append(draw_bars(self, folder / "comparison.png"))
            paths += draw_heat_maps(self, folder)
        return paths

    def _numbers(self) -> Iterator[list[Any]]:
        """Yield the lines of the table for programs, the header first."""
        fixed = [
            "score",
            "mean",
            "std",
            "runs",
            "seconds",
            "peak_memory_mib",
            "parameters",
            "images_per_second",
        ]
        yield [*self.columns, *fixed, "values", "folders"]
        for row in self.rows:
            yield [
                *(setting_text(row.settings[key]) for key in self.columns), self.score, _number(row.score),
                _number(row.spread), row.count, row.seconds, row.memory, row.parameters, _number(row.speed),
                " ".join(map(_number, row.scores)), " ".join(map(str, row.runs)),
            ]  # fmt: skip


def find_runs(paths: Iterable[str | Path]) -> list[Path]:
    """Return the run folders among ``paths`` and below them, each once.

    Raises:
        ConfigError: If a path does not exist, or there is no run at all.
    """
    found: dict[Path, None] = {}
    for path in paths:
        place = pointed(path)
        if not place.exists():
            raise ConfigError(
                f"there is nothing at {path}; give run folders, or a folder of them such as runs/sweeps/NAME"
            )
        below = (
            [place] if (place / "checkpoints").is_dir() else [p.parent for p in place.rglob("checkpoints")]
        )
        for run in sorted(below):
            if run.name != "last" and run.parent.name != "failed" and (run / "config.yaml").is_file():
                found[run.resolve()] = None
    if not found:
        raise ConfigError(f"there is no run in {', '.join(map(str, paths))}; pixvox train makes them")
    return list(found)


def compare(
    paths: Iterable[str | Path], score: str | None = None, average_over: Sequence[str] = ("seed",)
) -> Comparison:
    """Compare run folders by their best score; runs that differ by their seed alone share a row.

    Args:
        paths: Run folders, or folders of them.
        score: A validation score; by default the one that told the best epoch.
        average_over: Keys whose values make no row of their own.

    Raises:
        ConfigError: If there is no run, or none has such a score.
    """
    runs, unfinished = [], []
    for path in find_runs(list(paths)):
        run = _read(RunFolder(path))
        if run is not None and run.summary.get("status") == "finished":
            runs.append(run)
        else:
            unfinished.append(path)
    if not runs:
        raise ConfigError(
            f"none of {len(unfinished)} runs is finished: {', '.join(map(str, unfinished[:3]))}"
        )
    name, mode = _score(runs, score)
    keys = sorted({key for run in runs for key in run.overrides} - {*_PLACES, *average_over})
    columns = [key for key in keys if len({setting_text(run.value(key)) for run in runs}) > 1]
    columns = [key for key in columns if not any(key.startswith(f"{other}.") for other in columns)]
    groups: dict[tuple[str, ...], list[Finished]] = {}
    for run in runs:
        groups.setdefault(tuple(setting_text(run.value(key)) for key in columns), []).append(run)
    rows = [_row(group, columns, name) for group in groups.values()]
    worst = -math.inf if mode == "max" else math.inf
    rows.sort(key=lambda row: worst if math.isnan(row.score) else row.score, reverse=mode == "max")
    return Comparison(rows, columns, name, mode, tuple(unfinished))


def _read(run: RunFolder) -> Finished | None:
    """Read a folder; None when it holds no summary."""
    try:
        summary = json.loads(run.summary.read_text())
        lines = json.loads(run.environment.read_text()).get("overrides") or []
        config = OmegaConf.load(run.config)
    except (OSError, ValueError):
        return None
    keys = tuple(dict.fromkeys(str(line).partition("=")[0].lstrip("+~") for line in lines))
    return Finished(run.path, keys, config, summary, _speed(run))


def _speed(run: RunFolder) -> float:
    try:
        return float(json.loads(run.speed.read_text())["images_per_second"])
    except (OSError, ValueError, KeyError, TypeError):
        return math.nan


def _score(runs: Sequence[Finished], wanted: str | None) -> tuple[str, str]:
    """Return the name of the score and whether high or low is good."""
    if wanted is None:
        names = {str(run.summary.get("monitor")).removeprefix("val/") for run in runs}
        if len(names) > 1:
            known = sorted(set.intersection(*(set(run.summary.get("best") or {}) for run in runs)))
            raise ConfigError(
                f"the runs were judged by different scores ({', '.join(sorted(names))}); choose one that all have "
                f"with --score: {', '.join(known) or 'there is none'}"
            )
        return names.pop(), str(runs[0].summary.get("mode") or "max")
    known = sorted({name for run in runs for name in run.summary.get("best") or {}})
    name = wanted.removeprefix("val/").removeprefix("val_")
    if name not in known:
        raise ConfigError(f"--score {wanted}: no run has it; {nearest(name, known)}")
    return name, "min" if "loss" in name else "max"


def _row(runs: Sequence[Finished], columns: Sequence[str], score: str) -> Row:
    scores = [(run.summary.get("best") or {}).get(score) for run in runs]
    values = [math.nan if value is None else float(value) for value in scores]
    memories = [run.summary.get("peak_memory_mib") or {} for run in runs]
    return Row(
        settings={key: runs[0].value(key) for key in columns},
        score=_mean(values),
        spread=statistics.stdev(_known(values)) if len(_known(values)) > 1 else math.nan,
        count=len(runs),
        seconds=round(statistics.fmean(float(run.summary.get("seconds") or 0) for run in runs), 1),
        memory=max(float(peak.get("cuda", peak.get("host", 0))) for peak in memories),
        parameters=int(runs[0].summary.get("parameters") or 0),
        scores=tuple(values),
        runs=tuple(run.path for run in runs),
        speed=_mean([run.speed for run in runs]),
    )


def _known(values: Iterable[float]) -> list[float]:
    return [value for value in values if not math.isnan(value)]


def _mean(values: Iterable[float]) -> float:
    known = _known(values)
    return statistics.fmean(known) if known else math.nan


def setting_text(value: Any) -> str:
    """Write a setting for people: short numbers, lists without spaces.

    Example:
        >>> setting_text(0.0001), setting_text([64, 96]), setting_text(None)
        ('0.0001', '[64,96]', 'null')
    """
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return "[" + ",".join(map(setting_text, value)) + "]"
    return "null" if value is None else str(value)


def _number(value: float) -> str:
    return "" if math.isnan(value) else repr(round(value, 6))
