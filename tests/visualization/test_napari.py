import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import pixvox
from label_maps import random_objects
from pixvox.data.volumes.ome_zarr import build_pyramid, create_ome_zarr
from pixvox.structures import Geometry, Instances, Segmentation
from pixvox.visualization.napari_plugin import labels_reader, read_labels_layer, result_layer

MANIFEST = Path(pixvox.__file__).with_name("napari.yaml")
OFFERED = yaml.safe_load(MANIFEST.read_text())["contributions"]


def found(size, spacing=None, **options):
    labels = torch.from_numpy(random_objects(size, 5))
    count = int(labels.max())
    geometry = Geometry.identity(size, spacing)
    instances = Instances(masks=labels, scores=torch.linspace(0.9, 0.5, count))
    return Segmentation(instances, geometry=geometry, class_names=("cell",), source="a/b.tif", **options)


def test_the_manifest_is_where_the_package_says():
    project = tomllib.loads((MANIFEST.parents[2] / "pyproject.toml").read_text())["project"]
    module, _, name = project["entry-points"]["napari.manifest"]["pixvox"].partition(":")
    assert Path(import_module(module).__file__).with_name(name) == MANIFEST


def test_what_the_manifest_names_is_there():
    commands = {command["id"]: command["python_name"] for command in OFFERED["commands"]}
    for place in commands.values():
        module, _, name = place.partition(":")
        assert callable(getattr(import_module(module), name))
    used = {part["command"] for kind in ("readers", "widgets") for part in OFFERED[kind]}
    assert used == set(commands)


def test_napari_is_not_imported():
    code = "import sys, pixvox.visualization.napari_plugin; sys.exit('napari' in sys.modules or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("size", "spacing"), [((20, 30), None), ((4, 20, 30), (2.0, 0.5, 0.5))])
def test_saved_labels_open_with_their_table(tmp_path, size, spacing):
    result = found(size, spacing)
    result.save(tmp_path)
    (path,) = tmp_path.glob("*_labels.*")
    assert any(
        fnmatch(path.name, pattern)
        for reader in OFFERED["readers"]
        for pattern in reader["filename_patterns"]
    )
    ((labels, options, kind),) = labels_reader(str(path))(str(path))
    assert kind == "labels" and options["name"] == "b_labels"
    assert np.array_equal(labels, result.label_map().numpy())
    rows = result.table()
    assert options["features"]["index"] == [row["id"] for row in rows]
    assert options["features"]["score"] == pytest.approx([row["score"] for row in rows])
    assert options["features"]["class"] == ["cell"] * len(rows)
    assert options.get("scale") == spacing


def test_levels_of_a_pyramid_are_read_where_they_are_looked_at(tmp_path):
    labels = random_objects((6, 40, 50), 5)
    path = tmp_path / "b_labels.ome.zarr"
    create_ome_zarr(path, labels.shape, np.uint32, spacing=(2, 1, 1), labels=True)[:] = labels
    ((one, options, _),) = read_labels_layer(str(path))
    assert np.array_equal(one[:], labels) and "multiscale" not in options and "features" not in options
    build_pyramid(path, smallest=25)
    ((levels, options, _),) = read_labels_layer(str(path))
    assert [level.shape for level in levels] == [(6, 40, 50), (6, 20, 25)] and options["multiscale"]
    assert not isinstance(levels[0], np.ndarray) and options["scale"] == (2, 1, 1)


@pytest.mark.parametrize("path", ["b.ome.zarr", "labels.tif", ["a_labels.tif", "b_labels.tif"]])
def test_other_files_are_left_to_others(path):
    assert labels_reader(path) is None


@pytest.mark.parametrize("task", ["instance", "semantic"])
def test_results_become_layers(task):
    result = found((4, 20, 30))
    if task == "semantic":
        classes = (result.label_map() > 0).long()
        classes[0, 0, 0] = 255
        result = Segmentation(class_map=classes, class_names=("background", "cell"), source="b.tif")

    labels, options, kind = result_layer(result, "scan", (1.0, 2.0, 0.5, 0.5))
    assert (kind, options["name"], options["scale"]) == ("labels", "scan labels", (2.0, 0.5, 0.5))
    shown = result.label_map().numpy() if task == "instance" else np.where(classes == 255, 0, classes + 1)
    assert np.array_equal(labels, shown)
    by_label = dict(zip(options["features"]["index"], options["features"]["size"], strict=True))
    assert by_label == {i: (labels == i).sum() for i in by_label} and len(by_label) == len(result.table())
