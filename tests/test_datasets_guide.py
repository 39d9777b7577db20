"""The guide to public datasets: what it shows is run as it stands, and its table names them all."""

import re
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from pixvox.configuration import CONFIG_FOLDER, instantiate
from pixvox.data.datasets.concatenated import open_concatenated
from pixvox.data.label_space import get_label_space
from small_datasets import LAYOUTS, build

GUIDE = (Path(__file__).parents[1] / "docs" / "how-to" / "datasets.md").read_text()


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the guide's files in it and nobody's datasets.toml, as the working directory."""
    for text in re.findall(r"```(?:yaml|toml)\n(.*?)```", GUIDE, re.DOTALL):
        file = tmp_path / text.splitlines()[0].removeprefix("# ").split(",")[0]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.split("\n", 1)[1])
    monkeypatch.delenv("PIXVOX_DATASETS", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "nobody"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_table_names_every_dataset_that_is_looked_up():
    listed = set(re.findall(r"^\| `(\w+)` \|", GUIDE, re.MULTILINE))
    files = {file.stem: file.read_text() for file in (CONFIG_FOLDER / "data").glob("*.yaml")}
    looked_up = {name for name, text in files.items() if "docs/how-to/datasets.md" in text}
    joined = {name for name, text in files.items() if "{data: " in text or "  data: " in text}
    assert listed == looked_up | joined
    for name in re.findall(r"`((?:cityscapes|coco|pet|person)_\w+)`", GUIDE):
        assert name == "person_mask" or name in files or get_label_space(name).num_classes >= 2


def test_two_patterns_and_a_label_space_make_a_dataset(place):
    for farm, name, value in (("north", "1", 0), ("south", "1", 12), ("south", "2", 99)):
        folder = place / "fields" / "train" / farm
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(folder / f"photo_{name}.jpg")
        Image.fromarray(np.full((4, 6), value, np.uint8)).save(folder / f"label_{name}.png")
    (place / "datasets.toml").write_text('[roots]\nfields = "fields"\n')
    dataset = instantiate(OmegaConf.load("my_configs/data/fields.yaml").data.train, "data.train")
    assert dataset.metadata.class_names == ("soil", "crop")
    assert [int(dataset[index].class_map[0, 0]) for index in range(3)] == [0, 1, 255]


def test_datasets_are_joined_as_shown(place):
    for name in ("cityscapes", "vaihingen"):
        build(place / "datasets" / name, name)
    (place / "datasets.toml").unlink()
    node = OmegaConf.load("my_configs/data/roads.yaml").data.train
    sources = OmegaConf.to_container(node.sources)
    sources["vaihingen"]["names"] = list(LAYOUTS["vaihingen"].names)
    dataset = open_concatenated(sources, "train", node.class_names)
    assert len(dataset) == 4
    assert dataset.metadata.class_names == ("road", "car")
    assert dataset.metadata.colors == ((128, 64, 128), (0, 0, 142))
