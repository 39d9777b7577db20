"""The guide to scores of label maps: its example runs, its commands are understood, and it names every score."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import typer
from omegaconf import OmegaConf

from pixvox.cli import app
from pixvox.configuration import CONFIG_FOLDER
from pixvox.metrics.volume_comparison import compare_volumes

GUIDE = (Path(__file__).parents[1] / "docs" / "how-to" / "volume-scores.md").read_text()
COMMANDS = re.findall(r"^    (pixvox .*)$", GUIDE, re.MULTILINE)


def test_the_example_prints_what_it_says(capsys):
    code = re.search(r"```python\n(.*?)```", GUIDE, re.DOTALL).group(1)
    exec(code, {})
    assert capsys.readouterr().out.split() == re.findall(r"print.*# ([\d.]+)", code)


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_and_their_overrides_exist(line):
    name, *words = shlex.split(line)[1:]
    parsed = typer.main.get_command(app).commands[name].make_context("pixvox", list(words)).params
    assert parsed is not None
    keys = OmegaConf.load(CONFIG_FOLDER / "metrics" / "default.yaml")
    overrides = [word for word in words if "=" in word]
    assert all(word.removeprefix("metrics.").partition("=")[0] in keys for word in overrides)
    assert len(overrides) == (2 if name == "evaluate" else 0)


def test_every_score_is_named():
    labels = np.eye(3, dtype=int)
    named = set(re.findall(r"`(\w+)`", GUIDE)) | {
        f"{name}_{percent}"
        for name in ("matched_AP", "precision", "recall", "F1")
        for percent in (10, 20, 30, 40, 60, 70, 75, 80, 90)
    }
    scores = {
        re.sub(r"matched_AP(\d)", r"matched_AP_\1", name)
        for name in compare_volumes(labels, labels, distance=1)
    }
    assert scores - named == {"matched_AP_50"}
    assert len(COMMANDS) == 4
