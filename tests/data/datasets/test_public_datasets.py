"""Every public dataset, in miniature, in the folders of its real download; and what is said of wrong files."""

import json
import logging

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from pixvox.configuration import CONFIG_FOLDER, instantiate
from pixvox.data.datasets.mapillary import vistas_labels
from pixvox.data.datasets.named import open_named
from pixvox.data.datasets.paired_files import PairedFiles
from pixvox.data.label_space import get_label_space
from pixvox.data.roots import known_roots
from pixvox.errors import DataError
from small_datasets import CITYSCAPES, LAYOUTS, SIZE, build, configuration, write_picture


def opened(root, name, split="train", **changes):
    """Open a split as its configuration says, of ISPRS the two tiles that there are."""
    layout = LAYOUTS[name]
    config = OmegaConf.load(CONFIG_FOLDER / "data" / f"{configuration(name)}.yaml")
    for key, value in {"root": str(root), **dict(layout.overrides), **changes}.items():
        OmegaConf.update(config.data.train, key, value)
    if "names" in config.data[split]:
        config.data[split].names = list(layout.names if split == "train" else layout.other_names)
    return instantiate(config.data[split], f"data.{split}")


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_download_is_read_as_it_is(tmp_path, name):
    layout = LAYOUTS[name]
    build(tmp_path, name)
    for split in ("train", layout.other[0]) if layout.other[0] else ("train",):
        dataset = opened(tmp_path, name, split)
        assert (len(dataset), dataset.unlabelled_indices()) == (2, [])
        for index in range(2):
            sample = dataset[index]
            place = int(sample.image.mean() > 90)
            assert sample.image.shape == (3, *SIZE)
            assert sample.class_map.unique().tolist() == [layout.classes[place]]
            assert dataset.classes_in(index) == {layout.classes[place]} - {255}
            assert len(dataset.source_files(index)) == 2
    known = dataset.metadata
    assert (known.task, known.in_channels, known.name) == ("semantic", 3, configuration(name))


def test_one_domain_of_loveda_is_chosen_by_a_field(tmp_path):
    build(tmp_path, "loveda")
    dataset = opened(tmp_path, "loveda", **{"fields.scene": "Urban"})
    assert [dataset.source(index).split("/")[-3] for index in range(len(dataset))] == ["Urban"]


def test_unpaired_files_of_bdd100k_are_left_out_and_counted(tmp_path, caplog):
    build(tmp_path, "bdd100k")
    extra = tmp_path / "bdd100k/images/10k/train/z.jpg"
    write_picture(extra, (9, 9, 9))
    with caplog.at_level(logging.WARNING):
        assert len(opened(tmp_path, "bdd100k")) == 2
    assert "left out: 1 of 3 images have no label map" in caplog.text
    with pytest.raises(
        DataError, match=r"1 of 3 images have no label map \(.*z.jpg\): images images/10k/train/.*skip"
    ):
        opened(tmp_path, "bdd100k", unpaired="error")
    extra.unlink()
    (tmp_path / "bdd100k/images/10k/train/a_9.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of 2 label maps have no image \(.*a_9.png\)"):
        opened(tmp_path, "bdd100k", unpaired="error")


def test_a_wrong_folder_is_named_with_what_is_there(tmp_path):
    build(tmp_path, "cityscapes")
    wrong = tmp_path / "cityscapes"
    (wrong / "other").mkdir(parents=True)
    (wrong / "readme.txt").touch()
    with pytest.raises(
        DataError, match=r"in .*cityscapes is no leftImg8bit/train/.*, there is other/, readme.txt"
    ):
        opened(wrong, "cityscapes")
    for path in (tmp_path / "gtFine" / "train").rglob("*_labelIds.png"):
        path.rename(path.with_name("a_color.png"))
    with pytest.raises(
        DataError, match=r"in .*train/aachen is no \{name\}_gtFine_labelIds.png, there is a_color.png"
    ):
        opened(tmp_path, "cityscapes")


def test_label_maps_that_hold_something_else_are_refused(tmp_path):
    build(tmp_path, "voc")
    mask = tmp_path / "VOCdevkit/VOC2012/SegmentationClass/2007_000032.png"
    dataset = opened(tmp_path, "voc")
    index = [path.name for _, path in dataset.pairs].index(mask.name)
    write_picture(mask, 33, palette=True)
    with pytest.raises(
        DataError, match=r"032.png: the label value 33 \(24 pixels\) is none of VOC, .* 0..20, 255"
    ):
        dataset[index]
    write_picture(mask, (128, 0, 0))
    with pytest.raises(DataError, match="needs one channel of class or object numbers, this has 3"):
        dataset[index]
    picture = Image.fromarray(np.ones(SIZE, np.uint8))
    picture.putpalette([0, 0, 0, 192, 128, 128])
    picture.save(mask)
    with pytest.raises(DataError, match=r"index 1 of its palette is \(192, 128, 128\), but aeroplane"):
        dataset[index]
    mask.unlink()
    Image.new("P", (3, 3)).save(mask)
    with pytest.raises(DataError, match="has the size 4 x 6, its label map .* 3 x 3"):
        dataset[index]


def test_indices_where_colours_are_expected_are_refused(tmp_path):
    build(tmp_path, "isaid")
    write_picture(tmp_path / "train/Semantic_masks/images/P0009_instance_color_RGB.png", 3)
    with pytest.raises(DataError, match="a colour for each class; this one has 1"):
        opened(tmp_path, "isaid")[0]


def test_damaged_matlab_files_are_named(tmp_path):
    build(tmp_path, "sbd")
    (tmp_path / "benchmark_RELEASE/dataset/cls/2008_000002.mat").write_bytes(b"nothing")
    with pytest.raises(DataError, match="2008_000002.mat: a label map of SBD is a MATLAB file with GTcls"):
        opened(tmp_path, "sbd")[0]


def test_names_of_a_list_that_have_no_file_are_counted(tmp_path):
    build(tmp_path, "oxford_pet")
    with (tmp_path / "annotations/trainval.txt").open("a") as file:
        file.write("\n# a comment\nsphynx_1 1 1 1\n")
    with pytest.raises(
        DataError, match=r"1 of 3 names in .*trainval.txt have no file among the images.*sphynx_1"
    ):
        opened(tmp_path, "oxford_pet")


def test_mapillary_takes_its_labels_from_the_download(tmp_path):
    known = get_label_space("Mapillary")
    assert vistas_labels(tmp_path, "v2.0") == known
    names = {value: known.class_names[label] for value, label in known.codes.items() if label >= 0}
    labels = [
        {
            "readable": names.get(value, f"void {value}"), "evaluate": value in names, "name": "x",
            "color": known.colors[known.codes[value]] if value in names else (0, 0, 0),
            "instances": value in names and known.is_thing[known.codes[value]],
        }
        for value in range(124)
    ]  # fmt: skip
    (tmp_path / "config_v2.0.json").write_text(json.dumps({"labels": labels}))
    assert vistas_labels(tmp_path, "v2.0") == known
    labels[1]["evaluate"] = False
    (tmp_path / "config_v2.0.json").write_text(json.dumps({"labels": labels}))
    assert vistas_labels(tmp_path, "v2.0").class_names == (known.class_names[0], *known.class_names[2:])
    (tmp_path / "config_v2.0.json").write_text('{"labels": [{"name": "x"}]}')
    with pytest.raises(DataError, match=r"config_v2.0.json is damaged: it should hold labels with readable"):
        vistas_labels(tmp_path, "v2.0")


def test_without_labels_all_images_are_unlabelled(tmp_path):
    build(tmp_path, "cityscapes")
    images = "leftImg8bit/{split}/{city}/{name}_leftImg8bit.png"
    dataset = PairedFiles(images, None, "Cityscapes", "cityscapes", root=tmp_path)
    assert dataset.unlabelled_indices() == [0, 1] and not dataset[0].annotated


def test_patterns_must_remember_the_same(tmp_path):
    build(tmp_path, "cityscapes")
    images, labels = CITYSCAPES[0].format("{city}/{name}"), CITYSCAPES[1].format("*/{name}")
    with pytest.raises(DataError, match="has the fields city, name, .* name; both need the same"):
        PairedFiles(images, labels, "Cityscapes", "cityscapes", root=tmp_path)
    (tmp_path / "leftImg8bit/train/bonn/bonn_000001_000019_leftImg8bit.jpg").touch()
    with pytest.raises(DataError, match="are the same to .*keep one of them"):
        PairedFiles(images.replace(".png", ".*"), labels, "Cityscapes", "cityscapes", root=tmp_path)


@pytest.mark.parametrize("name", sorted({configuration(name) for name in LAYOUTS}))
def test_the_real_dataset_is_read_where_datasets_toml_names_it(name):
    if name not in known_roots():
        pytest.skip(f"{name} is in no datasets.toml")
    dataset = open_named(name)
    for index in range(0, len(dataset), max(1, len(dataset) // 3)):
        assert dataset[index].class_map.max() <= 255
