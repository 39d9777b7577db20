"""Volumes of any size: the same bytes whatever the engine and whatever interrupts it."""

import csv
import hashlib

import numpy as np
import pytest
import torch
import zarr

from label_maps import one_to_one, random_objects
from pixvox.data.volumes.ome_zarr import create_ome_zarr
from pixvox.data.volumes.open import open_volume
from pixvox.errors import ConfigError, DataError
from pixvox.inference.blocks import Blocks
from pixvox.inference.engines import engine
from pixvox.inference.results import table
from pixvox.inference.stitched_objects import StitchedObjects
from pixvox.inference.tile_store import TileStore
from pixvox.inference.volume_prediction import predict_objects, write_objects
from pixvox.structures import Geometry, Instances, Segmentation
from truth_predictor import TruthPredictor

SIZE, TILE = (23, 46, 52), (16, 20, 24)


@pytest.fixture(scope="module")
def truth():
    return random_objects(SIZE, 50)


@pytest.fixture
def volume(tmp_path, truth):
    array = create_ome_zarr(tmp_path / "v.ome.zarr", SIZE, np.uint16, (10, 16, 16), spacing=(2.0, 0.5, 0.5))
    array[:] = truth
    return open_volume(tmp_path / "v.ome.zarr")


def _labels(result):
    return zarr.open(str(result.labels), mode="r")["0"][:]


def _bytes(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_truth_in_windows_is_written_as_the_truth_of_the_volume(tmp_path, volume, truth):
    result = predict_objects(TruthPredictor(), volume, tmp_path / "out", "cells", TILE)
    assert one_to_one(_labels(result), truth)
    assert result.count == truth.max()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["cells_labels.ome.zarr", "cells_table.csv"]


def test_the_result_keeps_spacing_and_has_coarser_levels(tmp_path, volume):
    result = predict_objects(TruthPredictor(), volume, tmp_path / "out", "cells", TILE)
    written = open_volume(result.labels)
    assert (written.spacing, written.unit, written.dtype) == ((2.0, 0.5, 0.5), "um", np.uint32)


def test_the_table_equals_that_of_the_whole_volume(tmp_path, volume):
    result = predict_objects(TruthPredictor(), volume, tmp_path / "out", "cells", TILE)
    labels = torch.from_numpy(_labels(result).astype(np.int32))
    count = int(labels.max())
    whole = Segmentation(
        Instances(masks=labels, scores=torch.linspace(1, 0.5, count)),
        geometry=Geometry.identity(SIZE, volume.spacing),
        class_names=("cell",),
        image=torch.from_numpy(volume.read(tuple(slice(0, n) for n in SIZE)).astype(np.float32)),
    )
    with result.table.open() as file:
        rows = list(csv.DictReader(file))
    expected = table(whole)
    assert list(rows[0]) == list(expected[0])
    for row, other in zip(rows, expected, strict=True):
        for name in other.keys() - {"score", "class", "touches_border"}:
            assert float(row[name]) == pytest.approx(float(other[name]), rel=1e-4), name
        assert row["touches_border"] == str(other["touches_border"])


def test_slides_go_the_same_way(tmp_path):
    truth = random_objects((90, 70), 40)
    volume = open_volume(truth.astype(np.uint16), spatial_dims=2)
    result = predict_objects(TruthPredictor(2), volume, tmp_path / "out", "slide", (32, 24))
    assert one_to_one(_labels(result), truth)


def test_processes_write_the_same_bytes(tmp_path, volume):
    one, other = tmp_path / "one", tmp_path / "other"
    predict_objects(TruthPredictor(), volume, one, "cells", TILE)
    predict_objects(TruthPredictor(), volume, other, "cells", TILE, engine=engine("processes", 2), threads=2)
    assert _bytes(one) == _bytes(other)


@pytest.mark.slow
def test_ray_writes_the_same_bytes(tmp_path, volume):
    pytest.importorskip("ray")
    one, other = tmp_path / "one", tmp_path / "other"
    predict_objects(TruthPredictor(), volume, one, "cells", TILE)
    predict_objects(TruthPredictor(), volume, other, "cells", TILE, engine=engine("ray", 2))
    assert _bytes(one) == _bytes(other)


def test_an_interrupted_run_goes_on_to_the_same_bytes(tmp_path, volume):
    one, other = tmp_path / "one", tmp_path / "other"
    whole = TruthPredictor()
    predict_objects(whole, volume, one, "cells", TILE)
    with pytest.raises(KeyboardInterrupt):
        predict_objects(TruthPredictor(fails_at=5), volume, other, "cells", TILE)
    assert [path.name for path in other.iterdir()] == [".cells.tiles"]
    rest = TruthPredictor()
    predict_objects(rest, volume, other, "cells", TILE)
    assert rest.windows == whole.windows - 5
    assert _bytes(one) == _bytes(other)


def test_other_options_begin_anew(tmp_path, volume, truth):
    with pytest.raises(KeyboardInterrupt):
        predict_objects(TruthPredictor(fails_at=5), volume, tmp_path / "out", "cells", TILE)
    again = TruthPredictor()
    result = predict_objects(again, volume, tmp_path / "out", "cells", (12, 20, 24))
    assert again.windows == len(Blocks(SIZE, (12, 20, 24)))
    assert one_to_one(_labels(result), truth)


def test_nothing_is_found_where_voxels_are_missing(tmp_path, volume, truth):
    (tmp_path / "v.ome.zarr" / "0" / "c" / "1" / "1" / "1").unlink()
    with pytest.raises(DataError, match="never written"):
        predict_objects(TruthPredictor(), open_volume(volume.source), tmp_path / "out", "cells", TILE)
    allowed = open_volume(volume.source, allow_missing_chunks=True)
    labels = _labels(predict_objects(TruthPredictor(), allowed, tmp_path / "out", "cells", TILE))
    expected = truth.copy()
    expected[10:20, 16:32, 16:32] = 0
    assert np.array_equal(labels > 0, expected > 0)


def test_more_objects_than_the_type_holds_are_refused(tmp_path, truth):
    blocks, store = Blocks((4, 300), (4, 300)), TileStore(tmp_path, {})
    store.save(
        blocks[0],
        np.arange(1200, dtype=np.uint16).reshape(4, 300),
        classes=np.zeros(1199, dtype=np.int64),
        scores=np.ones(1199, dtype=np.float32),
        core=np.ones(1199, dtype=np.int64),
        reaches=np.zeros((0, 3), dtype=np.int64),
    )
    with pytest.raises(OverflowError, match="1199 objects do not fit into uint8"):
        write_objects(StitchedObjects.of(blocks, store), np.zeros((4, 300), dtype=np.uint8))


def test_what_does_not_suit_blocks_is_refused(tmp_path, volume):
    resizing = TruthPredictor()
    resizing.resize = "fit"
    with pytest.raises(ConfigError, match="resizes images"):
        predict_objects(resizing, volume, tmp_path / "out", "cells", TILE)
    with pytest.raises(ConfigError, match="join_iou must lie in"):
        predict_objects(TruthPredictor(), volume, tmp_path / "out", "cells", TILE, join_iou=0)
    with pytest.raises(DataError, match="3 spatial axes, this model takes 2"):
        predict_objects(TruthPredictor(2), volume, tmp_path / "out", "cells", TILE)
    assert not (tmp_path / "out").exists()
