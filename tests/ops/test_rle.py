import numpy as np
import pytest
import torch
from pycocotools import mask as coco

from pixvox.errors import DataError
from pixvox.ops.masks import crop_rles, decode_rle, encode_rle
from pixvox.ops.rle import compress_counts, decompress_counts, rle_runs


def random_masks() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    masks = [generator.random(generator.integers(1, 30, 2)) > generator.random() for _ in range(40)]
    return [*masks, np.ones((5, 7), bool), np.zeros((5, 7), bool), np.ones((1, 1), bool)]


def test_encoding_is_pycocotools_string_and_decodes_to_the_mask():
    for mask in random_masks():
        rle = encode_rle(torch.from_numpy(mask), (0, 0), mask.shape)
        expected = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert rle["counts"].encode() == expected["counts"]
        assert np.array_equal(decode_rle(rle).numpy(), mask)
        assert np.array_equal(decode_rle({"size": rle["size"], "counts": expected["counts"]}).numpy(), mask)


def test_long_runs_survive_the_string():
    counts = np.array([0, 1, 2**40, 3, 5, 2**33, 1, 1], dtype=np.int64)
    assert decompress_counts(compress_counts(counts)).tolist() == counts.tolist()


@pytest.mark.parametrize("size", [(6, 9), (4, 6, 5)])
def test_a_crop_encodes_as_its_canvas_does(size):
    canvas = torch.zeros(size, dtype=torch.bool)
    region = tuple(slice(1, length - 1) for length in size)
    canvas[region] = torch.rand(canvas[region].shape, generator=torch.Generator().manual_seed(0)) > 0.4
    from_crop = encode_rle(canvas[region], [1] * len(size), size)
    assert from_crop == encode_rle(canvas, [0] * len(size), size)
    assert torch.equal(decode_rle(from_crop), canvas)


def test_one_slice_encodes_as_the_image():
    mask = torch.rand(5, 7, generator=torch.Generator().manual_seed(0)) > 0.5
    assert (
        encode_rle(mask[None], (0, 0, 0), (1, 5, 7))["counts"] == encode_rle(mask, (0, 0), (5, 7))["counts"]
    )


def test_volume_runs_fastest_along_the_first_axis():
    mask = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(0)) > 0.5
    starts, stops, _ = rle_runs(encode_rle(mask, (0, 0, 0), mask.shape))
    inside = np.concatenate([np.arange(a, b) for a, b in zip(starts, stops, strict=True)])
    assert np.array_equal(inside, np.nonzero(mask.numpy().ravel(order="F"))[0])


def test_crops_are_tight_and_where_they_belong():
    masks = torch.zeros(3, 6, 7, 8, dtype=torch.bool)
    masks[0, 2:4, 3:6, 4:5] = True
    masks[0, 3, 4, 4] = False
    masks[2, 5, 6, 7] = True
    crops, origins = crop_rles([encode_rle(mask, (0, 0, 0), (6, 7, 8)) for mask in masks])
    assert [tuple(crop.shape) for crop in crops] == [(2, 3, 1), (0, 0, 0), (1, 1, 1)]
    assert origins == [(2, 3, 4), (0, 0, 0), (5, 6, 7)]
    assert torch.equal(crops[0], masks[0, 2:4, 3:6, 4:5])


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([3, 2], "add up to 5 pixels, but the size \\(4, 5\\) has 20"),
        ([3, 20], "add up to 23"),
        ([3, -1, 18], "between 0 and 20"),
        ([3, 1e19], "between 0 and 20|add up"),
        ([1.5, 18.5], "whole numbers"),
        ([float("nan"), 20], "whole numbers"),
        ("5", "add up to 5"),
        ("zz\x01", "from '0' to 'o'"),
        ("€", "from '0' to 'o'"),
        ("h", "cut off"),
        ("o" * 40 + "1", "characters"),
        ("", "add up to 0"),
    ],
)
def test_damaged_encodings_are_refused_with_numbers(counts, message):
    with pytest.raises(DataError, match=message):
        decode_rle({"size": [4, 5], "counts": counts})
    with pytest.raises(DataError, match=f"RLE 1: .*({message})"):
        crop_rles([{"size": [4, 5], "counts": [20]}, {"size": [4, 5], "counts": counts}])


def test_encodings_of_different_canvases_are_refused():
    with pytest.raises(DataError, match=r"RLE 1 has \[2, 2\]"):
        crop_rles([{"size": [4, 5], "counts": [20]}, {"size": [2, 2], "counts": [4]}])


def test_a_crop_that_leaves_the_canvas_is_refused():
    with pytest.raises(ValueError, match="leaves the canvas"):
        encode_rle(torch.ones(2, 2), (3, 0), (4, 4))
