"""The guide to scores of class maps: its example runs, and its commands are understood."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from pixvox.cli import app
from pixvox.configuration import compose

GUIDE = (Path(__file__).parents[1] / "docs" / "how-to" / "scores-of-class-maps.md").read_text()
COMMANDS = re.findall(r"^    (pixvox .*)$", GUIDE, re.MULTILINE)


def test_the_example_prints_what_it_says(capsys):
    code = re.search(r"```python\n(.*?)```", GUIDE, re.DOTALL).group(1)
    exec(code, {})
    said = [
        re.search(r"# (\[\[.*\]\]|[\d.]+)", line).group(1) for line in code.splitlines() if "print" in line
    ]
    assert capsys.readouterr().out.split("\n")[:-1] == said


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_and_their_overrides_exist(line):
    words = shlex.split(line)[1:]
    command = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    parsed = command.make_context("pixvox", list(words)).params
    overrides = [word for word in words if "=" in word and not word.startswith("--")]
    assert parsed is not None
    compose("train" if "train" in line else "evaluate", overrides)


def test_there_are_commands_to_check():
    assert len(COMMANDS) == 6
