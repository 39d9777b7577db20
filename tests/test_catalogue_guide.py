"""The guide to catalogues: its example prints what it says, its commands are understood."""

import csv
import re
import shlex
from pathlib import Path

import pytest
import typer

from pixvox.cli import app
from pixvox.configuration import CONFIG_FOLDER
from pixvox.data.volumes.index_source import COLUMNS

GUIDE = (Path(__file__).parents[1] / "docs" / "how-to" / "catalogue.md").read_text()
COMMANDS = re.findall(r"^    pixvox (.*)$", GUIDE, re.MULTILINE)


def test_the_example_prints_what_it_says(capsys):
    code = re.search(r"```python\n(.*?)```", GUIDE, re.DOTALL).group(1)
    exec(code, {})
    assert capsys.readouterr().out.split("\n")[:-1] == re.findall(r"print.*# (.+)", code)


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_and_their_keys_exist(line):
    words, command = shlex.split(line), typer.main.get_command(app)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    parsed = command.make_context("pixvox", list(words)).params
    assert parsed is not None and len(COMMANDS) > 3


def test_keys_and_columns_are_those_that_there_are():
    files = [CONFIG_FOLDER / "data" / f"{name}.yaml" for name in ("catalogue", "catalogue_planes")]
    config = "".join(file.read_text() for file in files)
    assert all(f"\n    {key}:" in config for key in re.findall(r"data\.train\.(\w+)", GUIDE))
    header = next(csv.reader([re.search(r"```csv\n(.*)", GUIDE).group(1)]))
    assert {*header} - {*COLUMNS} == {"grade", "stain"}
