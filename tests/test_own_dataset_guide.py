"""The guide to own datasets: what it shows is run as it stands."""

import re
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pixvox.configuration import compose, instantiate
from pixvox.data.datasets.open import open_dataset
from pixvox.data.make import make_dataset
from pixvox.errors import DataError
from pixvox.overrides import data_overrides

GUIDE = Path(__file__).parents[1] / "docs" / "how-to" / "own-dataset.md"


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder with the guide's files in it, as the working directory."""
    for text in re.findall(r"```(?:python|yaml)\n(.*?)```", GUIDE.read_text(), re.DOTALL):
        file = tmp_path / text.splitlines()[0].removeprefix("# ")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.split("\n", 1)[1])
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("plates", None)


def write_plates(folder):
    folder.mkdir()
    lines = ["file,x,y,radius,kind"]
    for i in range(5):
        canvas = np.random.default_rng(i).integers(0, 99, (70, 80, 3)).astype(np.uint8)
        Image.fromarray(canvas).save(folder / f"{i}.png")
        lines += [f"{i}.png,20,30,8,smooth", f"{i}.png,24,30,6.5,rough"] if i else []
    (folder / "colonies.csv").write_text("\n".join(lines))


def test_one_class_and_one_yaml_make_a_dataset(place, capsys):
    write_plates(place / "plates")
    overrides = ["data=plates", "batch_size=2", "image_size=64"]
    data = instantiate(compose("train", overrides, "my_configs").data, "data")
    assert (len(data.train), len(data.val)) == (4, 1)
    assert data.metadata.class_names == ("smooth", "rough")
    assert next(iter(data.train_dataloader())).images.shape == (2, 3, 64, 64)
    sample = data.train.dataset[2]
    circles = sample.instances()
    assert circles.labels.tolist() == [0, 1]
    assert circles.boxes[0].tolist() == [12, 22, 29, 39]
    assert len(data.train.dataset[0].instances()) == 0, "a plate without colonies is empty, not unlabelled"
    runpy.run_path("without_yaml.py")
    assert "torch.Size([2, 3, 96, 96])" in capsys.readouterr().out


def test_mistakes_in_its_file_are_the_users(place):
    write_plates(place / "plates")
    (place / "plates" / "colonies.csv").write_text("file,x,y,radius,kind\n9.png,1,1,1,smooth\n")
    with pytest.raises(DataError, match="no such picture or kind"):
        instantiate(compose("train", ["data=plates"], "my_configs").data, "data")


def test_folders_need_no_code(place):
    make_dataset("shapes", place / "cells", 3, 2, image_size=40, radius=(5, 9))
    make_dataset("shapes", place / "roads", 5, 0, image_size=40, radius=(5, 9), task="semantic")
    (place / "roads" / "dataset.json").unlink()
    cells = open_dataset("cells", "train")
    assert cells.metadata.task == "instance" and len(open_dataset("cells", "val")) == 2
    given = [
        *data_overrides("roads"), "data.options.task=semantic", "data.options.classes=[ground,road,tree,car]",
        "data.options.val_fraction=0.2", "data.test_fraction=0.2", "num_labeled_images=0.5",
    ]  # fmt: skip
    roads = instantiate(compose("train", given).data, "data")
    assert roads.metadata.class_names == ("ground", "road", "tree", "car")
    assert [len(part) for part in (roads.train, roads.val, roads.test)] == [2, 1, 1]


def test_several_folders_are_one_dataset(place):
    classes = {"street": ["circle", "triangle"], "aerial": ["rectangle", "triangle"]}
    for name, kinds in classes.items():
        make_dataset("shapes", place / "datasets" / name, 3, 1, image_size=40, radius=(5, 9), classes=kinds)
    scenes = place / "my_configs" / "data" / "scenes.yaml"
    scenes.write_text(scenes.read_text().replace("lorry", "rectangle").replace("tree:", "triangle:"))
    data = instantiate(compose("train", ["data=scenes"], "my_configs").data, "data")
    assert data.metadata.class_names == ("circle", "triangle", "truck")
    assert (len(data.train), len(data.val)) == (6, 2)
    ignored = torch.cat([data.train[i].ignore[data.train[i].labels == 0] for i in range(3, 6)])
    assert ignored.all()


@pytest.mark.slow
def test_the_command_of_the_guide_trains(place):
    import subprocess

    write_plates(place / "plates")
    line = re.search(r"PYTHONPATH=\. pixvox (train .*data=plates .*)", GUIDE.read_text())[1]
    program = [shutil.which("pixvox") or str(Path(sys.executable).parent / "pixvox"), *line.split()]
    small = ["backbone=simple", "image_size=64", "batch_size=2", "fast_dev_run=true", "num_workers=0"]
    done = subprocess.run([*program, *small], env={"PYTHONPATH": ".", "PATH": "/usr/bin:/bin"}, timeout=600)
    assert done.returncode == 0
