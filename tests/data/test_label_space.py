"""Label spaces: the classes and values of public datasets, and what is said of values that are none."""

import numpy as np
import pytest
from torchvision.datasets import Cityscapes

from pixvox.data.label_space import (
    CLASSES_FOLDER,
    bit_palette,
    get_label_space,
    label_space_names,
    label_space_of,
    packed,
)  # fmt: skip
from pixvox.data.metadata import Metadata, resolve_metadata
from pixvox.errors import DataError

COUNTS = {
    "Cityscapes": 19, "Cityscapes{background}": 20, "Cityscapes{category}": 7, "Cityscapes{full}": 34, "coco": 171,
    "coco{voc}": 21, "VOC": 21, "SBD": 21, "ADE20K": 151, "BDD100K": 19, "LIP": 20, "Mapillary": 116,
    "Mapillary{v1.2}": 65, "LoveDA": 7, "iSAID": 16, "ISPRS": 6, "person": 2, "person{trimap}": 2, "person{mask}": 2,
    "Pet": 2, "Pet{border}": 2,
}  # fmt: skip


def test_every_label_space_is_found_by_its_name_and_its_file():
    assert set(label_space_names()) == set(COUNTS)
    for name, count in COUNTS.items():
        metadata = resolve_metadata(name)
        assert (metadata.num_classes, metadata.ignore_index, metadata.name) == (count, 255, name)
        assert metadata.colors is not None and len(metadata.colors) == count
        assert get_label_space(name.lower()) == get_label_space(name)
    for file in CLASSES_FOLDER.glob("*.toml"):
        assert get_label_space(file) == get_label_space(file.stem)
    with pytest.raises(DataError, match="no label space 'Cityscape'; did you mean Cityscapes"):
        resolve_metadata("Cityscape")


def test_cityscapes_is_that_of_torchvision():
    spaces = {key: get_label_space(f"Cityscapes{key}") for key in ("", "{category}", "{full}")}
    for known in Cityscapes.classes:
        value = np.array([[known.id % 256]])  # -1 is 255 in a picture of 8 bits
        got = {key: int(space.encode(value, "x")[0, 0]) for key, space in spaces.items()}
        assert got[""] == (known.train_id if 0 <= known.train_id < 19 else 255)
        assert got["{full}"] == (known.id if known.id >= 0 else 255)
        if got[""] != 255:
            assert spaces[""].class_names[got[""]] == known.name
            assert spaces[""].colors[got[""]] == known.color
        category = 255 if known.category == "void" or known.id < 0 else known.category_id - 1
        assert got["{category}"] == category
    assert get_label_space("Cityscapes{background}").encode(np.array([[0, 7, 255]]), "x").tolist() == [
        [19, 0, 19]
    ]


def test_voc_is_in_the_order_of_its_masks_and_coco_has_all_of_its_classes():
    voc = get_label_space("VOC")
    assert voc.class_names[:6] == ("background", "aeroplane", "bicycle", "bird", "boat", "bottle")
    assert list(voc.class_names[1:]) == sorted(voc.class_names[1:])
    assert voc.colors[1:4] == ((128, 0, 0), (0, 128, 0), (128, 128, 0)) and voc.colors[20] == (0, 64, 128)
    assert bit_palette(256)[255] == (224, 224, 192)
    coco = get_label_space("coco{voc}")
    assert coco.class_names == voc.class_names
    # Categories 4, motorcycle, and 72, television; 12, traffic sign, is no class of VOC.
    assert coco.encode(np.array([[3, 71, 12, 255]]), "x").tolist() == [[14, 20, 0, 255]]


def test_values_of_coco_and_mapillary_have_their_gaps():
    coco = get_label_space("coco")
    gaps = {11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90}
    assert set(range(182)) - set(coco.codes) == gaps
    assert coco.encode(np.array([[0, 181, 255]]), "x").tolist() == [[0, 170, 255]]
    assert sum(coco.is_thing) == 80
    vistas = get_label_space("Mapillary")
    ignored = {value for value, label in vistas.codes.items() if label < 0}
    assert ignored == {2, 31, 38, 79, 86, 96, 115, 123, 255}
    assert (sum(vistas.is_thing), len(vistas.flip_pairs)) == (70, 2)


def test_the_first_class_of_ade20k_can_be_ignored():
    space = get_label_space("ADE20K")
    assert space.encode(np.array([[0, 1, 150]]), "x").tolist() == [[0, 1, 150]]
    reduced = space.without_first()
    assert reduced.encode(np.array([[0, 1, 150]]), "x").tolist() == [[255, 0, 149]]
    assert reduced.class_names[-1] == "flag" and label_space_of(reduced.class_names) == reduced


@pytest.mark.parametrize(
    ("name", "values", "classes"),
    [
        ("LoveDA", [0, 1, 7], [255, 0, 6]),
        ("Pet", [1, 2, 3], [1, 0, 255]),
        ("Pet{border}", [1, 2, 3], [1, 0, 1]),
        ("person", [0, 127, 128, 255], [0, 0, 1, 1]),
        ("person{trimap}", [0, 12, 128, 243], [0, 0, 255, 1]),
        ("person{mask}", [0, 1, 255], [0, 1, 1]),
        ("BDD100K", [0, 18, 255], [0, 18, 255]),
    ],
)
def test_values_mean_classes(name, values, classes):
    assert get_label_space(name).encode(np.array([values]), "x").tolist() == [classes]


def test_colours_mean_classes_within_a_tolerance():
    colors = np.array([[255, 255, 255], [252, 255, 0], [0, 0, 0], [0, 3, 255]]).T[:, None]
    assert get_label_space("ISPRS").encode(packed(colors), "x").tolist() == [[0, 4, 255, 1]]
    with pytest.raises(
        DataError, match=r"tile.png: the colour \(252, 255, 0\) \(1 pixels\) is none of iSAID, whose"
    ):
        get_label_space("iSAID").encode(packed(colors[:, :, 1:2]), "tile.png")


def test_a_value_that_is_no_class_is_named_with_what_is_known():
    with pytest.raises(
        DataError, match=r"a.png: the label value 19 \(2 pixels\) is none of BDD100K, .* 0..18, 255"
    ):
        get_label_space("BDD100K").encode(np.array([[19, 0, 19, 77]]), "a.png")
    with pytest.raises(DataError, match="value 70000"):
        get_label_space("Cityscapes").encode(np.array([[70_000]]), "a.png")


def test_a_palette_of_other_colours_is_refused():
    voc = get_label_space("VOC")
    voc.check_palette(bit_palette(256), [0, 15, 255], "a.png")
    with pytest.raises(
        DataError, match=r"index 1 of its palette is \(192, 128, 128\), but aeroplane of VOC is"
    ):
        voc.check_palette([(0, 0, 0), (192, 128, 128)], [0, 1], "a.png")


def test_a_file_of_ones_own_is_checked(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(
        'name = "mine"\nclasses = [{name = "road", values = [7], color = [1, 2, 3]}, {name = "sky"}]\n'
    )
    space = get_label_space(file)
    assert (space.codes, space.colors) == ({7: 0}, ((1, 2, 3), (0, 128, 0)))
    for number, (text, message) in enumerate({
        'name = "a"\nclases = []': "there is no 'clases'; did you mean classes",
        'name = "a"': "names no classes",
        'name = "a"\nclasses = [{name = "b"}, {name = "b"}]': "two classes are called 'b'",
        'name = "a"\nothers = "c"\nclasses = [{name = "b"}]': "shows the form",
        'name = "a"\nclasses = [{name = "b", color = [0, 0, 300]}]': "three numbers in 0..255",
        "name = ": "is no label space in TOML",
    }.items()):  # fmt: skip
        file = tmp_path / f"{number}.toml"
        file.write_text(text)
        with pytest.raises(DataError, match=message):
            get_label_space(file)


def test_pairs_of_a_mirror_are_checked():
    with pytest.raises(ValueError, match="pairs of different classes in 0..1"):
        Metadata("semantic", 2, ("left", "right"), 3, flip_pairs=((0, 2),))
    with pytest.raises(ValueError, match="each in one pair"):
        Metadata("semantic", 2, ("left", "right", "up"), 3, flip_pairs=((0, 1), (1, 2)))
