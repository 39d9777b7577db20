"""Volumes of any size: the same bytes whatever the engine and whatever interrupts it."""

import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr
from filelock import FileLock

import truth_predictor
from label_maps import one_to_one, random_objects
from pixvox.data.volumes.ome_zarr import create_ome_zarr
from pixvox.data.volumes.open import open_volume
from pixvox.errors import ConfigError, DataError
from pixvox.inference.blended_scores import FindScores, blended
from pixvox.inference.blocks import Blocks
from pixvox.inference.engines import engine
from pixvox.inference.object_writer import write_objects
from pixvox.inference.predictor import Predictor
from pixvox.inference.results import table
from pixvox.inference.stitched_objects import StitchedObjects
from pixvox.inference.tile_store import TileStore
from pixvox.inference.volume_prediction import BlockOptions, predict_volume
from pixvox.models import create_model
from pixvox.structures import Geometry, Instances, Segmentation
from pixvox.table_file import read_rows
from pointwise import noise, pointwise
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


def predict_objects(predictor, volume, out, name, tile, page=False, **options):
    return predict_volume(predictor, volume, out, name, BlockOptions(tile, page=page, **options))


def _bytes(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_the_truth_in_windows_is_written_as_the_truth_of_the_volume(tmp_path, volume, truth):
    """Fault 47."""
    result = predict_objects(TruthPredictor(), volume, tmp_path / "out", "cells", TILE, page=True)
    assert one_to_one(_labels(result), truth)
    assert result.count == truth.max()
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "cells.html",
        "cells_labels.ome.zarr",
        "cells_table.csv",
    ]
    assert [path.name for path in result.files] == ["cells_labels.ome.zarr", "cells_table.csv", "cells.html"]


def _page(path):
    return json.loads(path.read_text(encoding="utf-8").partition('id="page">')[2].partition("</script>")[0])


def test_a_page_shows_image_labels_and_table(tmp_path, volume):
    result = predict_objects(TruthPredictor(), volume, tmp_path / "out", "cells", TILE, page=True)
    content = _page(result.page)
    assert content["title"] == "v.ome.zarr" and content["shape"] == list(SIZE)
    with result.table.open() as file:
        rows = list(csv.DictReader(file))
    assert [row[:2] for row in content["rows"]] == [[int(row["id"]), "cell"] for row in rows]
    assert "spacing 2 x 0.5 x 0.5" in content["facts"]


def test_without_a_page_there_is_none(tmp_path, volume):
    result = predict_objects(TruthPredictor(), volume, tmp_path / "out", "cells", TILE)
    assert result.page is None and not (tmp_path / "out" / "cells.html").exists()


def test_a_page_that_cannot_be_written_costs_no_labels(tmp_path, volume, monkeypatch, caplog):
    def fail(*arguments, **options):
        raise DataError("too much to show")

    monkeypatch.setattr("pixvox.visualization.html_page.write_page", fail)
    result = predict_objects(TruthPredictor(), volume, tmp_path / "out", "cells", TILE, page=True)
    assert result.page is None and result.labels.exists() and result.table.exists()
    assert "no page is written: too much to show" in caplog.text


def test_labels_can_be_tiff(tmp_path, volume, truth):
    result = predict_objects(
        TruthPredictor(), volume, tmp_path / "out", "cells", TILE, labels="tiff", threads=2
    )
    written = open_volume(result.labels)
    assert result.labels.name == "cells_labels.ome.tif" and written.dtype == np.uint32
    assert (written.spacing, written.unit) == ((2.0, 0.5, 0.5), "um")
    assert one_to_one(written.read(tuple(slice(0, n) for n in SIZE))[0].astype(np.int64), truth)


def test_a_table_can_be_parquet_with_the_same_rows(tmp_path, volume):
    pytest.importorskip("pyarrow")
    result = predict_objects(TruthPredictor(), volume, tmp_path / "out", "cells", TILE, table="parquet")
    text = predict_objects(TruthPredictor(), volume, tmp_path / "out", "cells", TILE).table
    assert (result.table.name, text.name) == ("cells_table.parquet", "cells_table.csv")
    rows = list(read_rows(result.table))
    assert [{name: str(value) for name, value in row.items()} for row in rows] == list(read_rows(text))
    kinds = {name: type(value) for name, value in rows[0].items()}
    assert kinds["id"] is int and kinds["score"] is float and kinds["touches_border"] is bool


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
def test_ray_writes_the_same_bytes(tmp_path, volume, monkeypatch):
    pytest.importorskip("ray")
    # Ray's workers import the predictor by its name, as users' own modules.
    here = str(Path(truth_predictor.__file__).parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([here, os.environ.get("PYTHONPATH", "")]))
    one, other = tmp_path / "one", tmp_path / "other"
    predict_objects(TruthPredictor(), volume, one, "cells", TILE)
    predict_objects(TruthPredictor(), volume, other, "cells", TILE, engine=engine("ray", 2))
    assert _bytes(one) == _bytes(other)


def test_an_interrupted_run_goes_on_to_the_same_bytes(tmp_path, volume):
    """Fault 47."""
    one, other = tmp_path / "one", tmp_path / "other"
    whole = TruthPredictor()
    predict_objects(whole, volume, one, "cells", TILE, page=True)
    with pytest.raises(KeyboardInterrupt):
        predict_objects(TruthPredictor(fails_at=5), volume, other, "cells", TILE)
    assert [path.name for path in other.iterdir()] == [".cells.tiles"]
    rest = TruthPredictor()
    predict_objects(rest, volume, other, "cells", TILE, page=True)
    assert rest.windows == whole.windows - 5
    assert _bytes(one) == _bytes(other)


SLOW_RUN = """
import sys, time
from pathlib import Path
from pixvox.data.volumes.open import open_volume
from pixvox.inference.volume_prediction import BlockOptions, predict_volume
from truth_predictor import TruthPredictor

class Slow(TruthPredictor):
    def predict_samples(self, samples):
        time.sleep(0.3)
        return super().predict_samples(samples)

predict_volume(Slow(), open_volume(sys.argv[1]), Path(sys.argv[2]), "cells", BlockOptions((16, 20, 24), page=False))
"""


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_to_the_same_bytes(tmp_path, volume):
    """Fault 47."""
    one, other = tmp_path / "one", tmp_path / "other"
    predict_objects(TruthPredictor(), volume, one, "cells", TILE)
    here = str(Path(truth_predictor.__file__).parent)
    command = [sys.executable, "-c", SLOW_RUN, volume.source, str(other)]
    run = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": here})
    while len(list(other.glob(".cells.tiles/*.tile"))) < 3 and run.poll() is None:
        time.sleep(0.05)
    run.kill()
    assert run.wait() == -signal.SIGKILL
    rest = TruthPredictor()
    predict_objects(rest, volume, other, "cells", TILE)
    assert rest.windows < len(Blocks(SIZE, TILE))
    assert _bytes(one) == _bytes(other)


def test_other_options_begin_anew(tmp_path, volume, truth):
    with pytest.raises(KeyboardInterrupt):
        predict_objects(TruthPredictor(fails_at=5), volume, tmp_path / "out", "cells", TILE)
    again = TruthPredictor()
    result = predict_objects(again, volume, tmp_path / "out", "cells", (12, 20, 24))
    assert again.windows == len(Blocks(SIZE, (12, 20, 24)))
    assert one_to_one(_labels(result), truth)


def test_a_chunk_that_was_rewritten_begins_anew(tmp_path, volume, truth):
    with pytest.raises(KeyboardInterrupt):
        predict_objects(TruthPredictor(fails_at=5), volume, tmp_path / "out", "cells", TILE)
    changed = truth.copy()
    changed[10:20, 16:32, 16:32] = truth[10:20, 16:32, 16:32][
        ::-1
    ]  # the values, and so their range, are the same
    zarr.open(volume.source, mode="r+")["0"][10:20, 16:32, 16:32] = changed[10:20, 16:32, 16:32]
    again = TruthPredictor()
    result = predict_objects(again, open_volume(volume.source), tmp_path / "out", "cells", TILE)
    assert again.windows == len(Blocks(SIZE, TILE))
    assert np.array_equal(_labels(result) > 0, changed > 0)


def test_nothing_is_found_where_voxels_are_missing(tmp_path, volume, truth):
    """Fault 21."""
    (tmp_path / "v.ome.zarr" / "0" / "c" / "1" / "1" / "1").unlink()
    with pytest.raises(DataError, match="never written"):
        predict_objects(TruthPredictor(), open_volume(volume.source), tmp_path / "out", "cells", TILE)
    allowed = open_volume(volume.source, allow_missing_chunks=True)
    labels = _labels(predict_objects(TruthPredictor(), allowed, tmp_path / "out", "cells", TILE))
    expected = truth.copy()
    expected[10:20, 16:32, 16:32] = 0
    assert np.array_equal(labels > 0, expected > 0)


def test_more_objects_than_the_type_holds_are_refused(tmp_path, truth):
    """Fault 20."""
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


def test_more_objects_than_32_bit_count_are_refused_before_anything_is_written():
    """Fault 20."""

    class TooMany(StitchedObjects):
        def __init__(self):
            pass

        def __len__(self):
            return 2**32

    with pytest.raises(OverflowError, match="4294967296 objects do not fit into uint32"):
        write_objects(TooMany(), np.zeros(1, dtype=np.uint32))


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


def test_classes_in_blocks_are_those_of_the_whole_for_a_network_that_looks_at_single_voxels(tmp_path):
    """Fault 47."""
    model = pointwise(3)
    image = noise((14, 33, 29))
    whole = model.predict(image)
    volume = open_volume(image[0].numpy(), spatial_dims=3)
    options = BlockOptions((10, 16, 12), probabilities=True)
    result = predict_volume(Predictor(model), volume, tmp_path, "v", options)
    # Scores are kept as float16: voxels between two classes may fall to either.
    assert (_labels(result) != whole.class_map.numpy()).mean() < 2e-3
    shares = zarr.open(str(result.probabilities), mode="r")["0"][:]
    np.testing.assert_allclose(shares.astype(np.float32).sum(axis=0), 1, atol=2e-3)
    assert (shares.argmax(axis=0) != _labels(result)).mean() < 2e-3
    with result.table.open() as file:
        counts = [int(row["size"]) for row in csv.DictReader(file)]
    assert counts == np.bincount(_labels(result).ravel(), minlength=model.num_classes).tolist()
    assert _page(result.page)["listed"] == ["class", "classes"]


def test_scores_of_neighbours_are_blended(tmp_path):
    blocks, store = Blocks((40, 12), (16, 12), 0.5), TileStore(tmp_path, {})
    for block in blocks:  # block k says k everywhere
        store.save(block, np.full((1, *block.size), block.number, dtype=np.float16))
    line = np.concatenate([blended(blocks, store, block)[0, :, 0] for block in blocks])
    border, margin = blocks[0].core[0].stop, blocks.margin[0]
    assert (line[: border - margin] == 0).all()
    assert (np.diff(line) >= 0).all()
    np.testing.assert_allclose(line[border - 1 : border + 1].mean(), 0.5)


def test_weights_of_blocks_add_up_to_one():
    for blocks in (
        Blocks((61, 30), (16, 16), 0.5),
        Blocks((50, 41), (20, 13), 0.2, (4, 1)),
        Blocks((9, 70), (9, 8), 0.0),
    ):
        total = np.zeros(blocks.size)
        for block in blocks:
            rows, columns = blocks.shares(block)
            total[block.kept] += rows[:, None] * columns
        np.testing.assert_allclose(total, 1, rtol=1e-5)


def test_global_pools_have_the_mean_of_the_volume_also_when_a_run_goes_on(tmp_path):
    torch.manual_seed(0)
    model = create_model(head="deeplabv3", backbone="simple", num_classes=3, in_channels=1, channels=8).eval()
    image = torch.rand(1, 64, 96, generator=torch.Generator().manual_seed(0)) * torch.linspace(0, 1, 96)
    volume = open_volume(image[0].numpy(), spatial_dims=2)
    options = BlockOptions((64, 64))
    predictor = Predictor(model)
    result = predict_volume(predictor, volume, tmp_path / "one", "v", options)
    gathered = []
    original = FindScores.gather

    def once(self, blocks):
        gathered.append(1)
        return original(self, blocks)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FindScores, "gather", once)
        patch.setattr("pixvox.inference.volume_prediction.find_all", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            predict_volume(predictor, volume, tmp_path / "two", "v", options)
        patch.undo()
        patch.setattr(FindScores, "gather", once)
        again = predict_volume(predictor, volume, tmp_path / "two", "v", options)
    assert gathered == [1]
    assert np.array_equal(_labels(result), _labels(again))
    by_tile = predict_volume(Predictor(model, pool_over="tile"), volume, tmp_path / "three", "v", options)
    whole = model.predict(image).class_map.numpy()
    assert (_labels(result) != whole).mean() <= (_labels(by_tile) != whole).mean()


def _interrupt(*arguments):
    raise KeyboardInterrupt


def test_two_processes_do_not_write_one_result(tmp_path, volume):
    with FileLock(tmp_path / ".cells.lock"), pytest.raises(DataError, match="another process writes cells"):
        predict_objects(TruthPredictor(), volume, tmp_path, "cells", TILE)


def test_clean_up_of_whole_images_is_refused(tmp_path, volume):
    predictor = Predictor(pointwise(3), clean_up={"min_area": 5})
    with pytest.raises(ConfigError, match="clean_up looks at whole images"):
        predict_objects(predictor, volume, tmp_path, "cells", TILE)
    undone = Predictor(pointwise(3), clean_up={"min_area": {"0": 0}})
    assert predict_objects(undone, volume, tmp_path, "cells", TILE).task == "semantic"


def test_panoptic_models_are_refused(tmp_path, volume):
    predictor = TruthPredictor()
    predictor.model.task = "panoptic"
    with pytest.raises(ConfigError, match="for objects and classes so far, but this model gives panoptic"):
        predict_objects(predictor, volume, tmp_path / "out", "cells", TILE)
    assert not (tmp_path / "out").exists()


def test_blocks_have_the_spacing_of_the_model_or_are_refused(tmp_path, volume):
    model = pointwise(3)
    for target, given, fits in (
        ([2.0, 0.5, 0.5], None, True),
        ([2e-3, 5e-4, 5e-4], None, False),
        ([1.0, 0.5, 0.5], None, False),
        ([1.0, 0.5, 0.5], [1.0, 0.5, 0.5], True),
    ):
        model.config["inference"] = {"spacing": target, "spacing_unit": "um"}
        predictor = Predictor(model, image_spacing=given)
        if fits:
            result = predict_objects(predictor, volume, tmp_path / "out", "v", (24, 48, 56))
            assert open_volume(result.labels).spacing == tuple(given or target)
            assert open_volume(result.labels).size == SIZE
        else:
            with pytest.raises(
                ConfigError,
                match=r"that of .*v\.ome\.zarr is \(2\.0, 0\.5, 0\.5\) um; .*inference\.spacing=0",
            ):
                predict_objects(predictor, volume, tmp_path / "out", "v", (24, 48, 56))
    model.config["inference"] = {"spacing": [2e-3, 5e-4, 5e-4], "spacing_unit": "mm"}
    predict_objects(Predictor(model), volume, tmp_path / "out", "mm", (24, 48, 56))
