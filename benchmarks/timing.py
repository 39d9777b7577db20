"""Interleaved timing: every candidate once per round, so that drift of a shared machine hits all alike.

A figure is the median over rounds, a ratio the median of the rounds' own ratios. With one thread the clock is
the CPU time of the process, which other processes hardly disturb; with more it is wall time.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch


def compare(
    title: str, candidates: dict[str, Callable[[], object]], rounds: int = 9, least_seconds: float = 0.05
) -> dict[str, dict[str, float]]:
    """Time candidates against the first of them; print and return ``{name: {seconds, ratio}}``.

    A ratio above 1 says how many times faster than the first a candidate is.
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    repeats = {}
    for name, work in candidates.items():
        work()
        start = clock()
        work()
        repeats[name] = max(1, min(1000, round(least_seconds / max(clock() - start, 1e-6))))
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, work in candidates.items():
            start = clock()
            for _ in range(repeats[name]):
                work()
            times[name].append((clock() - start) / repeats[name])
    reference = times[next(iter(candidates))]
    print(f"\n{title}")
    result = {}
    for name, values in times.items():
        seconds = statistics.median(values)
        ratio = statistics.median([a / b for a, b in zip(reference, values, strict=True)])
        result[name] = {"seconds": seconds, "ratio": ratio}
        print(f"  {name:<42s} {1000 * seconds:9.2f} ms   x{ratio:.2f}")
    return result


def machine() -> dict[str, str | int]:
    """Return what the figures depend on: class of machine, threads, versions."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    return {
        "processor": model,
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "clock": "CPU time" if torch.get_num_threads() == 1 else "wall time",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def write_json(path: str | Path, results: dict[str, object]) -> None:
    """Write results beside the machine they were taken on."""
    Path(path).write_text(json.dumps({"machine": machine(), "results": results}, indent=2) + "\n")
