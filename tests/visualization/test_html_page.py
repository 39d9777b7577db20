import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from label_maps import random_objects
from pixvox.data.volumes.ome_zarr import build_pyramid, create_ome_zarr
from pixvox.data.volumes.open import open_volume
from pixvox.errors import DataError
from pixvox.visualization import html_page
from pixvox.visualization.colors import palette
from pixvox.visualization.contrast import Contrast
from pixvox.visualization.html_page import write_page

RNG = np.random.default_rng(0)
EVIL = "</script><script>alert(1)</script x><!--<script ><img src=x onerror=alert(2)>&lt;\u2028{{page}}"
VOID = {"meta", "input", "br", "img", "link"}


class Page(HTMLParser):
    """A page as a browser sees it: tags, attributes, and what stands in each script."""

    def __init__(self, path):
        super().__init__()
        self.text, self.tags, self.open, self.scripts, self.title = (
            path.read_text(encoding="utf-8"),
            [],
            [],
            {},
            "",
        )
        self.feed(self.text)
        self.close()
        assert self.open == []
        self.content = json.loads(self.scripts["page"])

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts[self.tags[-1][1].get("id", "code")] = data
        if self.open and self.open[-1] == "title":
            self.title += data

    def labels(self):
        """Unpack the ids of every slice, as the script does."""
        packed = np.stack([picture(uri) for uri in self.content["labels"]]).astype(np.int64)
        values = packed[..., 0] << 16 | packed[..., 1] << 8 | packed[..., 2]
        ids = self.content["ids"]
        return values if ids is None else np.array([int(i) for i in ids], dtype=object)[values]

    def images(self):
        return np.stack([picture(uri) for uri in self.content["images"]])


def picture(uri):
    kind, _, data = uri.partition(";base64,")
    opened = Image.open(io.BytesIO(base64.b64decode(data)))
    assert kind == f"data:image/{opened.format.lower()}"
    return np.asarray(opened)


def made(tmp_path, image, labels, table=None, **options):
    axes = ["C" * (image.ndim > labels.ndim) + "ZYX"[-min(image.ndim, labels.ndim) :], "ZYX"[-labels.ndim :]]
    volumes = [open_volume(array, axes=letters) for array, letters in zip((image, labels), axes, strict=True)]
    return Page(write_page(*volumes, table, tmp_path / "new" / "page.html", **options))


def test_the_page_is_one_file_that_loads_nothing(tmp_path):
    labels = random_objects((3, 20, 24), 4)
    page = made(tmp_path, labels, labels)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["page.html"]
    assert not re.search(r"https?:|//[a-z]+\.", page.text.replace("// ", ""))
    assert not any({"src", "href", "action"} & set(attributes) for _, attributes in page.tags)
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:;") and "unsafe-eval" not in policy
    script = base64.b64encode(hashlib.sha256(page.scripts["code"].encode()).digest()).decode()
    assert f"script-src 'sha256-{script}'" in policy  # or no browser would run it


def test_the_script_finds_what_it_asks_for(tmp_path):
    labels = random_objects((3, 20, 24), 4)
    page = made(tmp_path, labels, labels)
    there = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(there) == len(set(there))
    asked = set(re.findall(r'(?:element|getElementById)\("([\w-]+)"\)', page.scripts["code"]))
    assert asked <= set(there) and len(asked) > 10
    fields = set(re.findall(r"\bpage\.(\w+)", page.scripts["code"]))
    assert fields <= set(page.content) and len(fields) > 10


@pytest.mark.parametrize("size", [(5, 21, 34), (40, 53)])
def test_pictures_hold_every_few_voxels_exactly(tmp_path, size):
    labels = random_objects(size, 9)
    image = RNG.integers(0, 4000, size).astype(np.uint16)
    page = made(tmp_path, image, labels, max_side=20, max_slices=3)
    volume = (1, *size)[-3:]
    steps = tuple(page.content["steps"])
    assert steps == ((2, 2, 2) if len(size) == 3 else (1, 3, 3))  # pixels of a slice stay square
    thin = tuple(slice(None, None, step) for step in steps)
    assert np.array_equal(page.labels(), labels.reshape(volume)[thin])
    shown = image.reshape(volume)[thin]
    contrast = Contrast.of(torch.from_numpy(shown[None].astype(np.float32)))
    expected = [contrast.rgb(torch.from_numpy(plane[None].astype(np.float32)))[..., 0] for plane in shown]
    assert np.array_equal(page.images(), np.stack(expected))
    first = page.content["first"]
    assert np.count_nonzero(page.labels()[first]) == np.count_nonzero(page.labels(), axis=(1, 2)).max()
    assert page.content["shape"] == list(page.labels().shape)
    assert page.content["palette"] == palette(24).tolist()


def test_colour_is_kept(tmp_path):
    labels = random_objects((30, 20), 3)
    image = RNG.integers(0, 255, (3, 30, 20)).astype(np.uint8)
    page = made(tmp_path, image, labels)
    assert np.array_equal(page.images()[0], image.transpose(1, 2, 0)) and page.content["channels"] == 3


@pytest.mark.parametrize("largest", [65_535, 65_536, 2**24 - 1, 2**24, 2**32 - 1, 2**53 + 1, 2**64 - 1])
def test_ids_of_any_size_survive(tmp_path, largest):
    labels = np.zeros((2, 6, 7), np.uint64)
    labels[0, 1:3, 1:4], labels[1, 2:5, 3:6] = 17, largest
    table = [{"id": largest, "class": "cell"}]
    page = made(tmp_path, labels.astype(np.float32), labels, table)
    assert (page.labels() == labels.astype(object)).all()
    assert str(page.content["rows"][0][0]) == str(largest)
    assert (page.content["ids"] is None) == (largest < 2**24)


def test_a_volume_of_32_million_voxels_becomes_a_small_page(tmp_path):
    objects = np.arange(64 * 6 * 8, dtype=np.uint16).reshape(64, 6, 8)
    labels = objects.repeat(100, axis=1).repeat(100, axis=2)
    image = RNG.integers(0, 4000, (64, 1, 1)).astype(np.uint16) + np.arange(800, dtype=np.uint16)
    page = made(tmp_path, np.broadcast_to(image, labels.shape), labels)
    assert page.content["shape"] == [64, 300, 400] and len(page.text.encode()) <= 2**20
    assert page.content["images"][0].startswith("data:image/jpeg")
    assert np.array_equal(page.labels(), labels[:, ::2, ::2])


@pytest.mark.parametrize("max_bytes", [2**16, 2**17])
def test_noise_fits_into_any_size(tmp_path, max_bytes):
    labels = RNG.integers(0, 2**62, (12, 40, 50))  # ids that have to be listed, too
    rows = [{"id": i, "note": "n" * 150} for i in range(1000)]
    page = made(tmp_path, labels.astype(np.float32), labels, rows, max_bytes=max_bytes)
    assert len(page.text.encode()) <= max_bytes
    thin = tuple(slice(None, None, step) for step in page.content["steps"])
    assert max(page.content["steps"]) > 1 and (page.labels() == labels[thin]).all()
    listed = len(page.content["rows"])
    assert 0 < listed < 1000 and page.content["left_out"] == 1000 - listed


def test_impossible_sizes_are_refused(tmp_path):
    labels = random_objects((9, 8), 1)
    with pytest.raises(ValueError, match="max_bytes=9: a page takes at least 65536"):
        made(tmp_path, labels, labels, max_bytes=9)


def test_text_from_files_is_never_html(tmp_path):
    labels = random_objects((3, 20, 24), 4)
    table = [{"id": 1, "class": EVIL, EVIL: 5}]
    page = made(tmp_path, labels, labels, table, title=EVIL)
    harmless = made(tmp_path, labels, labels, [{"id": 1, "class": "cell", "other": 5}], title="cells")
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in harmless.tags]
    assert page.scripts["code"] == harmless.scripts["code"] and len(page.scripts) == 2
    assert not set("<>&") & set(
        page.scripts["page"]
    )  # browsers end a script in more ways than this parser knows
    assert page.title == page.content["title"] == EVIL  # what is shown is what was written
    assert page.content["rows"][0][1] == EVIL and page.content["columns"] == ["id", "class", EVIL]
    assert "innerHTML" not in page.text and "insertAdjacentHTML" not in page.text


def test_classes_have_their_colours_and_the_background_none(tmp_path):
    labels = np.array([[[0, 1, 2], [2, 1, 0]]], np.uint8)
    names = ("tissue", "background", "vessel")
    page = made(
        tmp_path,
        labels * 9.0,
        labels,
        [{"id": i, "class": n} for i, n in enumerate(names)],
        class_names=names,
    )
    numbers = np.stack([picture(uri) for uri in page.content["labels"]])[..., 2]
    assert numbers.tolist() == [[[1, 0, 2], [2, 0, 1]]]
    assert page.content["ids"] == [0, 0, 2]  # the first is what is not painted
    assert page.content["lowest"] == 0 and page.content["palette"] == palette(3).tolist()
    assert page.content["listed"] == ["class", "classes"]


def test_without_a_table_the_voxels_of_the_page_are_counted(tmp_path):
    labels = np.zeros((4, 8, 10), np.int32)
    labels[1:3, 2:6, 2:4] = 70_000
    labels[0, 0, 0] = 3
    page = made(tmp_path, labels, labels)
    assert (page.content["columns"], page.content["rows"]) == (["id", "size"], [[3, 1], [70_000, 16]])
    page = made(tmp_path, labels, labels, max_side=5)
    assert (page.content["columns"], page.content["rows"]) == (["id", "size, about"], [[3, 4], [70_000, 16]])


def test_objects_too_small_for_the_page_keep_their_place(tmp_path):
    labels = np.zeros((4, 40, 50), np.int32)
    labels[3, 11, 7] = 1
    table = [{"id": 1, "centroid_x": 7.5, "centroid_y": 11.5, "centroid_z": 3.5}, {"id": 2}]
    page = made(tmp_path, labels, labels, table, max_side=10)
    assert not page.labels().any() and page.content["steps"] == [1, 5, 5]
    assert page.content["places"] == [[3, 2, 1], None]


def test_spacing_and_what_is_left_out_are_told(tmp_path):
    path = tmp_path / "a & b.ome.zarr"
    create_ome_zarr(path, (6, 40, 30), np.uint16, spacing=(2, 0.5, 0.5), labels=True)[:] = 1
    build_pyramid(path, smallest=20)
    volume = open_volume(path)
    page = Page(write_page(volume, volume, None, tmp_path / "page.html", max_side=20))
    assert (
        page.content["spacing"] == [2, 0.5, 0.5] and page.title == page.content["title"] == "a & b.ome.zarr"
    )
    assert page.content["facts"] == (
        "6 x 40 x 30 (z, y, x); spacing 2 x 0.5 x 0.5 µm; "
        "shown: one voxel of 2 along y, 2 along x; from level 1 of the file"
    )


@pytest.mark.parametrize(
    ("image", "labels", "said"),
    [
        (
            np.zeros((4, 5)),
            np.zeros((5, 4), int),
            r"has the size \(5, 4\), array \(4, 5\); labels are of the size",
        ),
        (np.zeros((4, 5)), np.zeros((3, 4, 5), int), "labels are of the size of their image"),
        (np.zeros((4, 5)), np.full((4, 5), -1), "holds -1; labels are whole numbers from 0 on"),
        (np.zeros((4, 5)), np.full((4, 5), 0.5), "holds fractions"),
        (np.zeros((4, 5)), np.full((4, 5), np.nan), "holds fractions"),
    ],
)
def test_what_is_no_label_map_of_the_image_is_refused(tmp_path, image, labels, said):
    with pytest.raises(DataError, match=said):
        made(tmp_path, image, labels)
    assert not (tmp_path / "new").exists()


def test_channels_are_no_labels(tmp_path):
    image, labels = (
        open_volume(np.zeros((4, 5)), axes="YX"),
        open_volume(np.zeros((2, 4, 5), int), axes="CYX"),
    )
    with pytest.raises(DataError, match="has 2 channels, a label map has one"):
        write_page(image, labels, None, tmp_path / "page.html")


def test_label_maps_of_other_types_are_taken(tmp_path):
    labels = random_objects((9, 12), 3)
    for kind in (np.float64, np.uint8, np.int16):
        assert np.array_equal(made(tmp_path, labels, labels.astype(kind)).labels()[0], labels)
    assert np.array_equal(made(tmp_path, labels, labels > 0).labels()[0], labels > 0)


def test_an_empty_prediction_has_a_page(tmp_path):
    page = made(tmp_path, np.zeros((5, 6, 7)), np.zeros((5, 6, 7), int))
    assert page.content["rows"] == [] and page.content["first"] == 2


def test_the_template_has_the_end_of_lines_that_browsers_sum(tmp_path):
    assert b"\r" not in html_page._TEMPLATE.read_bytes()
