import json
import pickle

import numpy as np
import pytest
import zarr

from pixvox.data.images import read_image
from pixvox.data.volumes.ome_zarr import (
    build_pyramid,
    create_ome_zarr,
    list_among_labels,
    mean_of,
    open_for_writing,
)
from pixvox.data.volumes.open import open_volume
from pixvox.errors import DataError

RNG = np.random.default_rng(0)


def ome(path):
    """Return the metadata that others see."""
    return json.loads((path / "zarr.json").read_text())["attributes"]["ome"]


@pytest.mark.parametrize(
    ("size", "channels", "chunks"),
    [
        ((9, 20, 31), None, (4, 8, 8)),
        ((9, 20, 31), 2, (4, 8, 8)),
        ((20, 31), None, (8, 8)),
        ((20, 31), 3, (8, 8)),
    ],
)
def test_blocks_that_are_written_read_back(tmp_path, size, channels, chunks):
    path = tmp_path / "a.ome.zarr"
    spacing = (2.0, 0.5, 0.25)[-len(size) :]
    array = create_ome_zarr(path, size, "uint16", chunks, spacing, channels=channels)
    values = RNG.integers(0, 60_000, array.shape, dtype=np.uint16)
    for start in range(0, size[0], chunks[0]):
        rows = (slice(None),) * (array.ndim - len(size)) + (slice(start, start + chunks[0]),)
        array[rows] = values[rows]
    volume = open_volume(path)
    assert (volume.size, volume.channels, volume.chunks, volume.spacing) == (
        size,
        channels or 1,
        chunks,
        spacing,
    )
    assert np.array_equal(volume.read((slice(None),) * len(size)), values if channels else values[None])
    assert np.array_equal(read_image(path).data, values if channels else values[None])


def test_metadata_are_those_of_version_0_5(tmp_path):
    create_ome_zarr(tmp_path / "a.ome.zarr", (9, 20, 31), "uint16", spacing=(2, 0.5, 0.5), channels=2)
    assert ome(tmp_path / "a.ome.zarr") == {
        "version": "0.5",
        "multiscales": [
            {
                "name": "a",
                "axes": [
                    {"name": "c", "type": "channel"},
                    {"name": "z", "type": "space", "unit": "micrometer"},
                    {"name": "y", "type": "space", "unit": "micrometer"},
                    {"name": "x", "type": "space", "unit": "micrometer"},
                ],
                "datasets": [
                    {
                        "path": "0",
                        "coordinateTransformations": [{"type": "scale", "scale": [1.0, 2.0, 0.5, 0.5]}],
                    }
                ],
            }
        ],
    }
    stored = json.loads((tmp_path / "a.ome.zarr" / "0" / "zarr.json").read_text())
    assert stored["zarr_format"] == 3
    assert stored["dimension_names"] == ["c", "z", "y", "x"]
    create_ome_zarr(tmp_path / "b.zarr", (20, 31), "uint8")
    assert ome(tmp_path / "b.zarr")["multiscales"][0]["axes"][0] == {"name": "y", "type": "space"}
    assert open_volume(tmp_path / "b.zarr", allow_missing_chunks=True).spacing is None


def test_labels_are_listed_in_their_image(tmp_path):
    image = tmp_path / "a.ome.zarr"
    create_ome_zarr(image, (9, 20, 31), "uint16")
    create_ome_zarr(image / "labels" / "cells", (9, 20, 31), "uint32", labels=True)[:] = 70_000
    create_ome_zarr(image / "labels" / "nuclei", (9, 20, 31), "uint8", labels=True)
    create_ome_zarr(tmp_path / "alone.zarr", (9, 20, 31), "uint8", labels=True)
    assert ome(image / "labels") == {"version": "0.5", "labels": ["cells", "nuclei"]}
    assert ome(image / "labels" / "cells")["image-label"] == {"source": {"image": "../../"}}
    assert ome(tmp_path / "alone.zarr")["image-label"] == {}
    assert list_among_labels(image / "labels" / "cells")
    assert len(ome(image / "labels")["labels"]) == 2
    assert (open_volume(image / "labels" / "cells").read((slice(None),) * 3) == 70_000).all()


@pytest.mark.parametrize("shards", [None, (4, 16, 16)])
def test_chunks_of_zeros_are_stored_also_by_other_processes(tmp_path, shards):
    path = tmp_path / "a.ome.zarr"
    array = create_ome_zarr(path, (8, 16, 16), "uint8", (4, 8, 8), shards=shards)
    pickle.loads(pickle.dumps(array))[:4] = 0
    with pytest.raises(DataError, match="never written"):
        open_volume(path).read((slice(None),) * 3)
    open_for_writing(path)[4:] = 0
    assert not open_volume(path).read((slice(None),) * 3).any()
    with pytest.raises(DataError, match="level 3 cannot be opened"):
        open_for_writing(path, 3)


def test_a_flipped_bit_is_noticed(tmp_path):
    path = tmp_path / "a.ome.zarr"
    create_ome_zarr(path, (16, 16), "uint8", (8, 8))[:] = RNG.integers(0, 255, (16, 16), dtype=np.uint8)
    chunk = path / "0" / "c" / "1" / "0"
    content = bytearray(chunk.read_bytes())
    content[30] ^= 1
    chunk.write_bytes(content)
    with pytest.raises(DataError, match="chunk c/1/0 of the Zarr array is damaged"):
        open_volume(path).read((slice(None),) * 2)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"size": (4,)}, r"\(y, x\) or \(z, y, x\), got \(4,\)"),
        ({"dtype": "complex64"}, "intensities cannot be of type complex64"),
        ({"dtype": "float32", "labels": True}, "labels cannot be of type float32"),
        ({"spacing": (1, 0)}, r"spacing=\[1, 0\]: give 2 positive numbers"),
        ({"spacing": (1, 2, 3)}, "give 2 positive numbers"),
        ({"chunks": (64, 64, 64)}, "give 2 lengths"),
        ({"unit": "inch"}, "write um or mm"),
        ({"chunks": (8, 8), "shards": (12, 16)}, r"must be multiples of the chunks \[8, 8\]"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path, options, said):
    with pytest.raises(DataError, match=said):
        create_ome_zarr(tmp_path / "a.zarr", **{"size": (30, 40), "dtype": "uint8", **options})
    assert not (tmp_path / "a.zarr").exists()


def test_an_image_is_overwritten_only_when_asked(tmp_path):
    create_ome_zarr(tmp_path / "a.zarr", (30, 40), "uint8")[:] = 1
    with pytest.raises(DataError, match="exists already"):
        create_ome_zarr(tmp_path / "a.zarr", (30, 40), "uint8")
    create_ome_zarr(tmp_path / "a.zarr", (3, 4), "uint8", overwrite=True)[:] = 2
    assert (open_volume(tmp_path / "a.zarr").read((slice(None),) * 2) == 2).all()


# Pyramids


@pytest.mark.parametrize("channels", [None, 2])
def test_each_level_is_the_mean_of_the_one_before(tmp_path, channels):
    path = tmp_path / "a.ome.zarr"
    array = create_ome_zarr(path, (6, 40, 48), "uint16", (4, 8, 8), (1, 1, 1), channels=channels)
    array[:] = values = RNG.integers(0, 60_000, array.shape, dtype=np.uint16)
    steps = []
    assert build_pyramid(path, 12, lambda done, total: steps.append((done, total))) == 3
    for level in (1, 2):
        values = values.astype(np.float64)
        *lead, depth, height, width = values.shape
        if depth % 2:
            values = np.concatenate([values, values[..., -1:, :, :]], axis=-3)
        cells = values.reshape(*lead, -(-depth // 2), 2, height // 2, 2, width // 2, 2)
        values = np.floor(cells.mean(axis=(-5, -3, -1)) + 0.5).astype(np.uint16)
        volume = open_volume(path, level=level)
        assert np.array_equal(volume.read((slice(None),) * 3), values if channels else values[None])
        assert volume.spacing == (2.0**level,) * 3
    assert steps == [(done + 1, steps[-1][1]) for done in range(steps[-1][1])]
    transformations = ome(path)["multiscales"][0]["datasets"][2]["coordinateTransformations"]
    lead = [] if channels is None else [0.0]
    assert transformations[1] == {"type": "translation", "translation": [*lead, 1.5, 1.5, 1.5]}


def test_coarse_axes_wait_until_the_others_are_as_coarse(tmp_path):
    path = tmp_path / "a.ome.zarr"
    create_ome_zarr(path, (20, 80, 80), "uint8", (4, 16, 16), spacing=(2.0, 0.5, 0.5))[:] = 1
    assert build_pyramid(path, 10) == 4
    volumes = [open_volume(path, level=level) for level in range(4)]
    assert [volume.size for volume in volumes] == [(20, 80, 80), (20, 40, 40), (20, 20, 20), (10, 10, 10)]
    assert [volume.spacing for volume in volumes][1:] == [(2, 1, 1), (2, 2, 2), (4, 4, 4)]


def test_labels_are_never_mixed(tmp_path):
    path = tmp_path / "a.ome.zarr"
    array = create_ome_zarr(path, (5, 20, 31), "uint32", (4, 8, 8), labels=True)
    array[:] = values = RNG.integers(0, 2**32, array.shape, dtype=np.uint32)
    build_pyramid(path, 16)
    assert np.array_equal(open_volume(path, level=1).read((slice(None),) * 3)[0], values[::2, ::2, ::2])
    levels = ome(path)["multiscales"][0]
    assert levels["type"] == "nearest"
    assert len(levels["datasets"][1]["coordinateTransformations"]) == 1


def test_a_pyramid_is_built_again_in_place_and_needs_whole_levels(tmp_path):
    path = tmp_path / "a.ome.zarr"
    array = create_ome_zarr(path, (40, 40), "uint8", (8, 8))
    array[:32] = 1
    with pytest.raises(DataError, match="never written"):
        build_pyramid(path, 16)
    assert len(ome(path)["multiscales"][0]["datasets"]) == 1
    array[:] = 3
    for _ in range(2):
        assert build_pyramid(path, 16) == 3
    assert (open_volume(path, level=2).read((slice(None),) * 2) == 3).all()
    zarr.create_array(str(tmp_path / "plain.zarr"), shape=(4,), dtype="uint8")
    with pytest.raises(DataError, match="no image that create_ome_zarr made"):
        build_pyramid(tmp_path / "plain.zarr")


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint32", "float32", "bool", "int64"])
def test_mean_keeps_the_type_and_rounds_halves_up(dtype):
    values = np.array([[-3, 0, 1, 7], [-2, 1, 1, 8]]) % (2 if dtype == "bool" else 1000)
    values = values.astype(dtype)
    mean = mean_of(values, (2, 1))
    assert mean.dtype == values.dtype
    exact = values.astype(float).mean(axis=0, keepdims=True)
    assert np.array_equal(mean, exact if dtype == "float32" else np.floor(exact + 0.5).astype(dtype))
