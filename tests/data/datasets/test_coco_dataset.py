import json

import numpy as np
import pytest
import torch
from PIL import Image

from pixvox.data.datasets.coco import CocoDataset
from pixvox.errors import DataError
from pixvox.ops.masks import encode_rle

SQUARE = [2, 1, 6, 1, 6, 4, 2, 4]
HEIGHT, WIDTH = 9, 12


def annotation(identity=1, image=7, category=5, segmentation=(SQUARE,), **fields):
    shape = list(segmentation) if isinstance(segmentation, tuple) else segmentation
    return {
        "id": identity,
        "image_id": image,
        "category_id": category,
        "segmentation": shape,
        "iscrowd": 0,
        **fields,
    }


@pytest.fixture
def write(tmp_path):
    def make(annotations, images=None, colour=False, **options):
        images = images or [{"id": 7, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}]
        for image in images:
            array = np.full((HEIGHT, WIDTH, 3) if colour else (HEIGHT, WIDTH), 9, np.uint8)
            Image.fromarray(array).save(tmp_path / "a.png") if image["file_name"] == "a.png" else None
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": 90, "name": "dog"}, {"id": 5, "name": "cat"}],
        }
        (tmp_path / "index.json").write_text(json.dumps(content))
        return CocoDataset(tmp_path, tmp_path / "index.json", **options)

    return make


def test_category_ids_become_contiguous_labels_in_ascending_order(write):
    dataset = write([annotation(1, category=90), annotation(2, category=5)])
    assert dataset.metadata.class_names == ("cat", "dog")
    assert dataset[0].targets().labels.tolist() == [1, 0]


def test_polygons_and_both_kinds_of_rle_give_the_same_mask(write):
    mask = torch.zeros(HEIGHT, WIDTH, dtype=torch.bool)
    mask[1:4, 2:6] = True
    counts = [WIDTH and 2 * HEIGHT + 1, 3, 6, 3, 6, 3, 6, 3]
    counts.append(HEIGHT * WIDTH - sum(counts))
    compressed = encode_rle(mask, (0, 0), mask.shape)
    dataset = write([
        annotation(1),
        annotation(2, segmentation={"size": [HEIGHT, WIDTH], "counts": counts}),
        annotation(3, segmentation=dict(compressed)),
    ])  # fmt: skip
    for found in dataset[0].targets().masks.dense():
        assert torch.equal(found, mask)


def test_crowds_are_ignored_regions(write):
    dataset = write([annotation(1, iscrowd=1), annotation(2)])
    instances = dataset[0].instances()
    assert instances.ignore.tolist() == [False, True]


def test_annotation_id_zero_and_missing_ids_do_no_harm(write):
    without = annotation()
    del without["id"]
    assert len(write([annotation(0), annotation(1), without, dict(without)])[0].targets()) == 4


def test_image_without_annotations_is_a_labelled_empty_image(write):
    sample = write([])[0]
    assert sample.annotated
    assert len(sample.targets()) == 0


BAD = {
    "not a number": ({"segmentation": ([1, 1, 5, float("nan"), 5, 5],)}, "annotation 1.*finite"),
    "far away": ({"segmentation": ([1, 1, 1e9, 1, 5, 5],)}, "annotation 1.*1e"),
    "two points": ({"segmentation": ([1, 1, 5, 5],)}, "annotation 1.*at least 6"),
    "odd": ({"segmentation": ([1, 1, 5, 1, 5, 5, 3],)}, "annotation 1.*odd"),
    "no area": ({"segmentation": ([1, 1, 5, 5, 3, 3],)}, "annotation 1.*area"),
    "text": ({"segmentation": (["a"] * 6,)}, "annotation 1.*numbers"),
    "short rle": ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": [3, 4]}}, "annotation 1.*sum to 7"),
    "rle of text": ({"segmentation": {"size": [HEIGHT, WIDTH], "counts": ["a"]}}, "annotation 1.*whole"),
    "rle without size": ({"segmentation": {"size": 9, "counts": [9]}}, "annotation 1.*whole"),
    "empty": ({"segmentation": []}, "annotation 1.*no polygon"),
    "unknown image": ({"image": 8}, "annotation 1 .*image id 8"),
    "unknown category": ({"category": 6}, r"annotation 1 .*category id 6.*5\.\.90"),
}


@pytest.mark.parametrize(("fields", "message"), BAD.values(), ids=BAD)
def test_invalid_annotation_is_refused_at_start_with_its_id(write, fields, message):
    with pytest.raises(DataError, match=f"(?s)index.json.*{message}.*on_invalid=drop"):
        write([annotation(**fields)])


@pytest.mark.parametrize(("fields", "message"), BAD.values(), ids=BAD)
def test_invalid_annotation_is_dropped_with_a_count_when_asked(write, fields, message):
    dataset = write([annotation(**fields), annotation(2, category=90)], on_invalid="drop")
    assert sum(dataset.dropped.values()) == 1
    assert dataset[0].targets().labels.tolist() == [1]


DAMAGED = {
    "cut compressed": {"size": [HEIGHT, WIDTH], "counts": "51"},
    "garbage": {"size": [HEIGHT, WIDTH], "counts": "\x7f\x00zz"},
    "other size": {"size": [WIDTH, HEIGHT], "counts": [HEIGHT * WIDTH]},
}


@pytest.mark.parametrize("segmentation", DAMAGED.values(), ids=DAMAGED)
def test_damaged_rle_is_refused_with_the_annotation_id(write, segmentation):
    with pytest.raises(DataError, match="annotation 31"):
        write([annotation(31, segmentation=segmentation)])[0]
    dataset = write([annotation(31, segmentation=segmentation), annotation(32)], on_invalid="drop")
    assert len(dataset[0].targets()) == 1


def test_self_crossing_polygon_is_rasterised(write):
    assert len(write([annotation(segmentation=([1, 1, 8, 7, 8, 1, 1, 7],))])[0].targets()) == 1


def test_polygon_partly_outside_is_clipped(write):
    boxes = write([annotation(segmentation=([-5, -5, 4, -5, 4, 3, -5, 3],))])[0].targets().boxes
    assert boxes.tolist() == [[0, 0, 4, 3]]


def test_duplicate_annotation_ids_are_refused_or_dropped(write):
    pair = [annotation(3), annotation(3)]
    with pytest.raises(DataError, match="two annotations have the id 3"):
        write(pair)
    assert len(write(pair, on_invalid="drop")[0].targets()) == 1


def test_duplicate_image_ids_are_refused(write):
    image = {"id": 7, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}
    with pytest.raises(DataError, match="share the id 7"):
        write([], images=[image, image])


def test_missing_image_files_are_an_error_at_start(write):
    images = [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "gone.png"}]
    with pytest.raises(DataError, match=r"1 of 2 images.*gone\.png"):
        write([], images=images)


@pytest.mark.parametrize("name", ["../a.png", "/etc/a.png"])
def test_file_names_that_leave_the_folder_are_refused(write, name):
    with pytest.raises(DataError, match="leaves the image folder"):
        write([], images=[{"id": 1, "file_name": name}])


def test_size_other_than_the_index_says_is_refused_with_both(write):
    dataset = write([], images=[{"id": 7, "file_name": "a.png", "height": WIDTH, "width": HEIGHT}])
    with pytest.raises(DataError, match=r"a\.png is 9 x 12 .* 12 x 9"):
        dataset[0]


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", '{"images": []}'])
def test_files_that_are_not_coco_are_refused(tmp_path, text):
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(DataError, match=r"index\.json is not"):
        CocoDataset(tmp_path, tmp_path / "index.json")


@pytest.mark.parametrize(
    "entry",
    [
        None,
        [1, 2],
        annotation(image=[7]),
        annotation(category={"id": 5}),
        annotation(segmentation={"size": [HEIGHT, WIDTH], "counts": ["a", 3]}),
        annotation(segmentation={"size": None, "counts": [3]}),
    ],
)
def test_entries_of_another_form_are_users_errors(write, entry):
    with pytest.raises(DataError, match=r"index\.json"):
        write([entry])


def test_grey_pictures_among_coloured_ones_become_rgb(write, tmp_path):
    Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(tmp_path / "b.png")
    images = [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}]
    dataset = write([], images=images)
    assert dataset.metadata.in_channels == 3
    assert dataset[0].image.shape == (3, HEIGHT, WIDTH)


def test_ids_and_sizes_of_another_type_are_named(write):
    with pytest.raises(DataError, match="annotation 1.*single values"):
        write([annotation(category=[5])])
    image = {"id": 7, "file_name": "a.png", "height": "abc", "width": WIDTH}
    with pytest.raises(DataError, match="whole numbers as height"):
        write([], images=[image])


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
@pytest.mark.parametrize("entries", [["a"], [{"id": 1}, "ab"], {"id": 1}, 7, "abc", None])
def test_lists_of_anything_but_objects_are_users_errors(tmp_path, key, entries):
    content = {"images": [], "annotations": [], "categories": []}
    (tmp_path / "index.json").write_text(json.dumps({**content, key: entries}))
    with pytest.raises(DataError, match=rf"index\.json is not a COCO file: {key} must be a list of objects"):
        CocoDataset(tmp_path, tmp_path / "index.json")
