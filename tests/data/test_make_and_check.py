import hashlib
import json

import numpy as np
import pytest
import torch
from PIL import Image

from pixvox.data import make
from pixvox.data.check import check_dataset
from pixvox.data.datasets.open import open_dataset
from pixvox.data.make import make_dataset
from pixvox.data.synthetic.nuclei3d import Nuclei3d
from pixvox.data.synthetic.shapes import Shapes
from pixvox.errors import ConfigError, DataError, PixvoxError

SHAPES = {"image_size": 48, "radius": (5, 9), "count": (1, 3)}
NUCLEI = {"image_size": (8, 20, 24), "count": (2, 4)}
KINDS = [
    ("shapes", "tiff", SHAPES),
    ("shapes", "tiff", {**SHAPES, "task": "semantic"}),
    ("nuclei3d", "tiff", NUCLEI),
    ("nuclei3d", "zarr", NUCLEI),
]


def digest(folder):
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


@pytest.mark.parametrize(("kind", "file_format", "options"), KINDS)
def test_same_seed_writes_the_same_bits(tmp_path, kind, file_format, options):
    folders = [
        make_dataset(kind, tmp_path / str(i), 2, 1, seed=seed, format=file_format, **options)
        for i, seed in enumerate((5, 5, 6))
    ]
    first, again, other = (digest(folder) for folder in folders)
    assert first == again
    assert first != other


@pytest.mark.parametrize(("kind", "file_format", "options"), KINDS)
def test_what_is_written_reads_as_what_was_drawn(tmp_path, kind, file_format, options):
    folder = make_dataset(kind, tmp_path / "d", 2, 2, seed=3, format=file_format, **options)
    for number, split in enumerate(("train", "val")):
        drawn = (Shapes if kind == "shapes" else Nuclei3d)(2, 6 + number, **options)
        read = open_dataset(folder, split)
        assert read.metadata.class_names == drawn.metadata.class_names
        for i in range(2):
            assert torch.equal(read[i].image, drawn[i].image)
            assert read[i].spacing == (pytest.approx(drawn[i].spacing) if drawn[i].spacing else None)
            if drawn.metadata.task == "semantic":
                assert torch.equal(read[i].class_map, drawn[i].class_map)
            else:
                assert torch.equal(read[i].layers, drawn[i].layers)
                assert torch.equal(read[i].labels, drawn[i].labels)


def test_splits_of_one_seed_differ(tmp_path):
    folder = make_dataset("shapes", tmp_path / "d", 1, 1, **SHAPES)
    train, val = open_dataset(folder, "train"), open_dataset(folder, "val")
    assert not torch.equal(train[0].image, val[0].image)


def test_coco_file_counts_from_one_and_boxes_fit_their_masks(tmp_path):
    folder = make_dataset("shapes", tmp_path / "d", 2, 0, **SHAPES)
    content = json.loads((folder / "annotations" / "instances_train.json").read_text())
    ids = [annotation["id"] for annotation in content["annotations"]]
    assert ids == list(range(1, len(ids) + 1))
    boxes = [a["bbox"] for a in content["annotations"] if a["image_id"] == 1]
    x0, y0, x1, y1 = open_dataset_boxes(folder)[0].tolist()
    assert [x0, y0, x1 - x0, y1 - y0] in boxes


def open_dataset_boxes(folder):
    from pixvox.data.datasets.coco import CocoDataset

    return (
        CocoDataset(folder / "images" / "train", folder / "annotations" / "instances_train.json")[0]
        .targets()
        .boxes
    )


def test_an_interrupted_dataset_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(path, content):
        raise OSError("no space left on device")

    monkeypatch.setattr(make, "_write_json", full)
    with pytest.raises(OSError, match="no space"):
        make_dataset("shapes", tmp_path / "d", 2, 1, **SHAPES)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "d").mkdir()
    make_dataset("shapes", tmp_path / "d", 1, 0, **SHAPES)
    before = digest(tmp_path / "d")
    with pytest.raises(DataError, match="exists already"):
        make_dataset("shapes", tmp_path / "d", 1, 0, seed=1, **SHAPES)
    assert digest(tmp_path / "d") == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overlp": 0.3}, "did you mean overlap"),
        ({"image_size": "abc"}, "image_size=abc: it takes"),
        ({"overlap": 3.0}, "0..1"),
        ({"num_train": 0}, "at least 1"),
        ({"num_trian": 3}, "did you mean num_train"),
        ({"seed": -1}, "seed must be 0 or above"),
        ({"image_size": -4}, "one positive length"),
    ],
)
def test_wrong_options_of_make_are_users_errors(tmp_path, options, message):
    with pytest.raises(PixvoxError, match=message):
        make_dataset("shapes", tmp_path / "d", **options)
    assert list(tmp_path.iterdir()) == []


def test_ids_above_16_bit_are_written_as_32_bit():
    assert make._smallest_ids(np.array([[65535]])).dtype == np.uint16
    wide = make._smallest_ids(np.array([[65536]]))
    assert wide.dtype == np.uint32
    assert wide[0, 0] == 65536


@pytest.fixture
def dataset(tmp_path):
    return make_dataset("shapes", tmp_path / "d", 4, 2, **SHAPES)


@pytest.mark.parametrize(("kind", "file_format", "options"), KINDS)
def test_a_sound_dataset_passes_and_is_described(tmp_path, kind, file_format, options):
    report = check_dataset(make_dataset(kind, tmp_path / "d", 3, 2, format=file_format, **options))
    assert report.ok
    assert report.splits["train"].images == 3
    text = str(report)
    assert "ready for training" in text
    assert ("2 x 1 x 1 um" in text) == (kind == "nuclei3d")
    assert json.loads(json.dumps(report.to_dict()))["ok"] is True


def test_counts_are_those_of_the_truth(dataset):
    report = check_dataset(dataset).splits["train"]
    samples = [open_dataset(dataset)[i] for i in range(4)]
    assert report.objects == sum(len(sample.labels) for sample in samples)
    assert sum(report.classes.values()) == report.objects
    assert report.object_sizes[0] == min(
        int(s.targets().masks.areas().min()) for s in samples if len(s.labels)
    )
    assert report.sizes == {"48 x 48": 4}
    assert report.dtypes == ["uint8"]


def test_zero_byte_and_truncated_images_are_errors_with_their_names(dataset):
    images = sorted((dataset / "images" / "train").iterdir())
    images[1].write_bytes(b"")
    images[2].write_bytes(images[2].read_bytes()[:-200])
    report = check_dataset(dataset)
    assert not report.ok
    assert report.splits["train"].broken == 2
    assert any(images[1].name in error and "empty" in error for error in report.errors)
    assert any(images[2].name in error for error in report.errors)
    assert "a training would fail" in str(report)


def test_missing_image_is_an_error(dataset):
    next((dataset / "images" / "val").iterdir()).unlink()
    report = check_dataset(dataset)
    assert any("val" in error and "1 of 2 images" in error for error in report.errors)


def test_invalid_annotations_are_errors_unless_they_are_dropped(dataset):
    file = dataset / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["segmentation"] = [[1, 1, 5, 5]]
    file.write_text(json.dumps(content))
    errors = check_dataset(dataset).errors
    assert any("1 x invalid polygon (annotation 1:" in text and "on_invalid=drop" in text for text in errors)
    report = check_dataset(dataset, on_invalid="drop")
    assert report.ok
    assert any("1 x invalid polygon" in warning for warning in report.warnings)


def test_label_outside_the_classes_is_an_error(tmp_path):
    folder = make_dataset("shapes", tmp_path / "d", 2, 1, **{**SHAPES, "task": "semantic"})
    label = sorted((folder / "labels" / "train").iterdir())[0]
    Image.fromarray(np.full((48, 48), 9, np.uint8)).save(label)
    report = check_dataset(folder)
    assert any("label value 9" in error and label.name in error for error in report.errors)


def test_an_unknown_option_of_check_is_refused_with_the_nearest(dataset):
    with pytest.raises(ConfigError, match="val_fraction"):
        check_dataset(dataset, val_fracton=0.3)


def test_a_folder_that_is_no_dataset_is_an_error(tmp_path):
    report = check_dataset(tmp_path)
    assert not report.ok
    assert "no dataset of a known layout" in report.errors[0]


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"task": "foo"}, "task must be"),
        ({"dims": "two"}, "dims must be"),
        ({"classes": []}, "classes must be"),
        ({"ignore_index": "x"}, "ignore_index must be"),
        ({"voxel_size_um": "abc"}, "voxel_size_um must be"),
        ({"voxel_size_um": [1]}, "needs 2 values"),
    ],
)
def test_wrong_description_is_an_error_that_names_it(tmp_path, stated, message):
    folder = make_dataset("shapes", tmp_path / "d", 2, 1, **{**SHAPES, "task": "semantic"})
    (folder / "dataset.json").write_text(json.dumps(stated))
    assert any(message in error and str(folder) in error for error in check_dataset(folder).errors)


@pytest.mark.parametrize("options", [{"percentiles": [1]}, {"percentiles": [-1, 200]}, {"spatial_dims": 5}])
def test_options_out_of_range_are_errors(dataset, options):
    assert next(iter(options)) in check_dataset(dataset, **options).errors[0]
