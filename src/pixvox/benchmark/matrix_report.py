"""The matrix of backbones and heads as a file that machines read, and one that people do."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pixvox.benchmark.matrix import OPTIONS, SECOND_NAMES, SIZES, Cell
from pixvox.files import whole_file

_MARKS = {"works": "yes", "refused": "-", "failed": "**no**"}


def write_json(cells: Sequence[Cell], facts: dict[str, Any], path: Path) -> None:
    """Write all cells and what they were measured with, whole or not at all."""
    with whole_file(path) as part:
        part.write_text(json.dumps({**facts, "cells": [asdict(cell) for cell in cells]}, indent=1) + "\n")


def read_json(path: Path) -> list[Cell]:
    """Return the cells of an earlier matrix; none where there is none."""
    if not path.is_file():
        return []
    return [Cell(**cell) for cell in json.loads(path.read_text())["cells"]]


def write_markdown(cells: Sequence[Cell], facts: dict[str, Any], path: Path) -> None:
    """Write the matrix as tables: what works, what does not and why, what it costs."""
    lines = ["# Every backbone under every head", "", *_introduction(cells, facts)]
    for dims, what in ((2, "Images"), (3, "Volumes")):
        of = [cell for cell in cells if cell.spatial_dims == dims]
        if of:
            sizes = " and ".join(" x ".join(map(str, size)) for size in SIZES[dims])
            lines += [
                "",
                f"## {what} ({sizes})",
                "",
                *_matrix(of),
                *_reasons(of),
                "",
                "### Costs",
                "",
                *_costs(of),
            ]
    with whole_file(path) as part:
        part.write_text("\n".join(lines) + "\n")


def _introduction(cells: Sequence[Cell], facts: dict[str, Any]) -> list[str]:
    counts = {status: sum(cell.status == status for cell in cells) for status in _MARKS}
    others = ", ".join(f"`{name}` ({of})" for name, of in sorted(SECOND_NAMES.items()))
    return [
        "    pixvox benchmark matrix --out docs",
        "",
        f"Of {len(cells)} pairs {counts['works']} work, {counts['refused']} are refused with a reason and "
        f"{counts['failed']} fail. Each model is built with the defaults of its names (random weights, two channels, "
        "three classes), takes one optimiser step from two images of each size, predicts an image of the second, is "
        "saved, loaded and predicts the same again." + _capped(),
        "",
        "Multiply-adds are those of predicting one image of the second size (convolutions, products, attention); "
        "seconds those of the processor for a step with two such images; memory the most that the process held, "
        "libraries included. "
        f"Measured with {facts['machine']}, {facts['threads']} thread(s) each, torch {facts['torch']}.",
        "",
        f"Not listed, for they are other sizes of a family or doors to it: {others}.",
    ]


def _capped() -> str:
    """Name the options that are not defaults."""
    named = [
        f"`{head}` in {'volumes' if dims == 3 else 'images'} has `{key}={value}`"
        for (head, dims), options in OPTIONS.items()
        for key, value in options.items()
    ]
    return f" But {' and '.join(named)}." if named else ""


def _matrix(cells: Sequence[Cell]) -> list[str]:
    heads = list(dict.fromkeys(cell.head for cell in cells))
    by_place = {(cell.backbone, cell.head): cell for cell in cells}
    rows = []
    for backbone in dict.fromkeys(cell.backbone for cell in cells):
        found = [by_place.get((backbone, head)) for head in heads]
        rows.append([f"`{backbone}`", *("" if cell is None else _MARKS[cell.status] for cell in found)])
    return _table(["", *(f"`{head}`" for head in heads)], rows)


def _reasons(cells: Sequence[Cell]) -> list[str]:
    told: dict[str, list[str]] = {}
    for cell in cells:
        if cell.reason:
            told.setdefault(cell.reason, []).append(f"`{cell.backbone}` + `{cell.head}`")
    return ["", *(f"- {', '.join(pairs)}: {reason}" for reason, pairs in told.items())] if told else []


def _costs(cells: Sequence[Cell]) -> list[str]:
    rows = [
        [
            f"`{cell.backbone}`", f"`{cell.head}`", f"{cell.parameters / 1e6:.1f}", f"{cell.gmacs:.2f}",
            f"{cell.seconds:.2f}", f"{cell.peak_mib:,.0f}",
        ]
        for cell in cells
        if cell.status == "works"
    ]  # fmt: skip
    titles = ["backbone", "head", "parameters, millions", "GMACs", "CPU seconds a step", "peak MiB"]
    return _table(titles, rows, numbers=4)


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]], numbers: int = 0) -> list[str]:
    rule = ["---"] * (len(titles) - numbers) + ["---:"] * numbers
    return ["| " + " | ".join(line) + " |" for line in (titles, rule, *rows)]
