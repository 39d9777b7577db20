"""The commands of the guide for those who come from OmniSeg are run as they stand, on few and small images."""

from pathlib import Path

import pytest

from pixvox.cli import run
from pixvox.data.make import make_dataset

GUIDE = Path(__file__).parents[1] / "docs" / "how-to" / "from-omniseg.md"
COMMANDS = [
    line.strip() for line in GUIDE.read_text().splitlines() if line.strip().startswith("pixvox train")
]
DRAWN = ["data.train.num_images=2", "data.val.num_images=1", "data.train.image_size=64"]
SHORT = ["fast_dev_run=true", "num_workers=0", "logger=none", "trainer.accelerator=cpu", "batch_size=2"]
QUICK = ("deformable_detr",)


def params():
    for command in COMMANDS:
        quick = any(word in command for word in QUICK)
        yield pytest.param(command, id=command[13:], marks=[] if quick else pytest.mark.slow)


def test_the_guide_has_all_nine_trainings():
    assert len(COMMANDS) == 9


@pytest.mark.parametrize("command", params())
def test_a_training_of_the_guide_runs(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = command.split()[1:]
    if "--data" in words:
        make_dataset("shapes", "coco", num_train=2, num_val=1, image_size=64)
    else:
        words += DRAWN
    assert run([*words, *SHORT, f"runs_dir={tmp_path}/runs"]) == 0
    assert list((tmp_path / "runs").glob("*/summary.json"))
