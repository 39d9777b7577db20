"""Which images go block by block, and that predict writes the same objects either way."""

import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from label_maps import one_to_one
from pixvox import prediction
from pixvox.data.volumes.ome_zarr import create_ome_zarr
from pixvox.data.volumes.open import open_volume
from pixvox.errors import ConfigError, DataError
from pixvox.inference import blockwise
from pixvox.inference.blockwise import Blockwise, split_options
from pixvox.inference.predictor import Predictor
from pixvox.models import create_model
from pixvox.prediction import inference_options
from small_heads import SMALL

predict_files = partial(prediction.predict_files, score_threshold=0.0)  # random heads are sure of nothing


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = create_model(
        head="maskrcnn", backbone="simple", num_classes=1, spatial_dims=3, in_channels=1,
        **{**SMALL["maskrcnn"], "score_threshold": 0.0},
    )  # fmt: skip
    model.config["inference"] = {}
    return model.eval()


@pytest.fixture
def volume(tmp_path):
    array = create_ome_zarr(
        tmp_path / "v.ome.zarr", (20, 70, 60), np.uint16, (20, 32, 32), spacing=(2.0, 1.0, 1.0)
    )
    array[:] = np.random.default_rng(0).integers(0, 1000, (20, 70, 60))
    return tmp_path / "v.ome.zarr"


def test_predict_writes_labels_and_a_table(tmp_path, model, volume):
    folder = model.save_pretrained(tmp_path / "model")
    rows = predict_files(folder, [volume], tmp_path / "out", blocks=True, tile_size=[20, 48, 48])
    assert [row["source"] for row in rows] == [str(volume)]
    labels = open_volume(tmp_path / "out" / "v_labels.ome.zarr")
    assert labels.size == (20, 70, 60)
    lines = (tmp_path / "out" / "v_table.csv").read_text().splitlines()
    assert rows[0]["found"] == f"{len(lines) - 1} objects"
    assert len(np.unique(labels.read((slice(0, 20), slice(0, 70), slice(0, 60))))) == len(lines)
    json.dumps(rows)


def test_files_hold_what_the_head_is_sure_of_unless_it_is_said(tmp_path, monkeypatch, model, volume):
    folder, tile = model.save_pretrained(tmp_path / "model"), {"blocks": True, "tile_size": [20, 48, 48]}
    monkeypatch.setattr("pixvox.inference.predictor.confident_score", lambda model: 1.0)
    (row,) = prediction.predict_files(folder, [volume], tmp_path / "sure", **tile)
    assert row["found"] == "0 objects"
    (row,) = predict_files(folder, [volume], tmp_path / "all", **tile)
    assert row["found"] != "0 objects"
    assert model.predict_volume(volume, tmp_path / "here", tile_size=(20, 48, 48)).count == 0


def test_a_model_predicts_volumes_from_python_as_from_the_command_line(tmp_path, model, volume):
    folder = model.save_pretrained(tmp_path / "model")
    predict_files(folder, [volume], tmp_path / "out", blocks=True, tile_size=[20, 48, 48])
    result = model.predict_volume(volume, tmp_path / "here", score_threshold=0.0, tile_size=(20, 48, 48))
    assert result.labels.name == "v_labels.ome.zarr"
    assert result.table.read_text() == (tmp_path / "out" / "v_table.csv").read_text()


def test_tiles_in_memory_find_the_objects_that_are_written_block_by_block(tmp_path, model, volume):
    folder = model.save_pretrained(tmp_path / "model")
    predict_files(folder, [volume], tmp_path / "out", blocks=True, tile_size=[20, 48, 48])
    written = open_volume(tmp_path / "out" / "v_labels.ome.zarr").read(
        (slice(0, 20), slice(0, 70), slice(0, 60))
    )
    found = model.predict(volume, tile_size=(20, 48, 48))
    assert one_to_one(found.instances.masks.label_map().numpy(), written[0].astype(np.int64))


def test_only_large_images_go_block_by_block_unless_it_is_said(model, volume, monkeypatch):
    predictor = Predictor(model)
    assert Blockwise(predictor).volume(volume) is None
    assert Blockwise(predictor, blocks=True).volume(volume).size == (20, 70, 60)
    monkeypatch.setattr(blockwise, "LARGE", 20 * 70 * 60)
    assert Blockwise(predictor).volume(volume) is not None
    assert Blockwise(predictor, blocks=False).volume(volume) is None
    assert Blockwise(predictor).volume(volume.with_name("picture.png")) is None


def test_tiles_are_the_patches_that_the_model_learned_from(model):
    model.config["patch"] = [24, 48, 48]
    try:
        assert Blockwise(Predictor(model)).options.tile_size == (24, 48, 48)
        assert Blockwise(Predictor(model), tile_size=32).options.tile_size == (32, 32, 32)
    finally:
        del model.config["patch"]
    assert Blockwise(Predictor(model)).options.tile_size == (128, 128, 128)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["inference.engine=cluster"], "serial, processes or ray"),
        (["inference.join_iou=2"], r"join_iou must lie in \(0, 1\]"),
        (["inference.overlap=0.7"], r"in \[0, 0.5\]"),
        (["inference.blocks=false", "inference.engine=ray"], "leave out inference.blocks=false"),
        (["inference.labels=png"], "inference.labels=png: it takes"),
    ],
)
def test_wrong_options_are_refused_and_nothing_is_written(tmp_path, model, volume, options, message):
    folder = model.save_pretrained(tmp_path / "model")
    files, given = inference_options([volume, *map(Path, options)])
    with pytest.raises(ConfigError, match=message):
        predict_files(folder, files, tmp_path / "out", **{"blocks": True, **given})
    assert not (tmp_path / "out").exists()


def test_files_are_those_that_were_asked_for(tmp_path, model, volume):
    folder = model.save_pretrained(tmp_path / "model")
    image = tmp_path / "small.ome.zarr"
    create_ome_zarr(image, (20, 48, 48), np.uint16, (20, 48, 48))[:] = 5
    files, options = inference_options([volume, Path("inference.labels=tiff"), Path("inference.page=false")])
    predict_files(folder, files, tmp_path / "a", blocks=True, tile_size=[20, 48, 48], **options)
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"v_labels.ome.tif", "v_table.csv"}
    predict_files(folder, [image], tmp_path / "b")
    assert {path.name for path in (tmp_path / "b").iterdir()} == {
        "small_labels.ome.tif", "small_table.csv", "small_overlay.png", "small.html"
    }  # fmt: skip
    predict_files(folder, [image], tmp_path / "c", page=False)
    assert not (tmp_path / "c" / "small.html").exists()


def test_missing_chunks_are_an_error_unless_they_are_allowed(tmp_path, model, volume):
    """Fault 21."""
    (volume / "0" / "c" / "0" / "1" / "1").unlink()
    folder = model.save_pretrained(tmp_path / "model")
    options = {"blocks": True, "tile_size": [20, 48, 48], "page": False}
    (row,) = predict_files(folder, [volume], tmp_path / "out", **options)
    assert "inference.allow_missing_chunks=true" in row["error"]
    files, given = inference_options([volume, Path("inference.allow_missing_chunks=true")])
    (row,) = predict_files(folder, files, tmp_path / "out", **options, **given)
    labels = open_volume(tmp_path / "out" / "v_labels.ome.zarr", allow_missing_chunks=True)
    assert "error" not in row and not labels.read((slice(0, 20), slice(32, 64), slice(32, 60))).any()
    model.predict_volume(volume, tmp_path / "here", score_threshold=0.0, allow_missing_chunks=True, **options)


def test_parquet_without_its_library_is_refused_before_anything_is_segmented(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(
        DataError, match=r"inference.table=parquet needs pyarrow: pip install pixvox\[parquet\]"
    ):
        Blockwise(Predictor(model), table="parquet")


def test_options_for_blocks_are_told_from_those_for_whole_images():
    blocks, whole = split_options(
        {"workers": 2, "overlap": 0.3, "clean_up": {"min_area": 5}, "join_iou": 0.6}
    )
    assert blocks == {"workers": 2, "overlap": 0.3, "join_iou": 0.6}
    assert whole == {"overlap": 0.3, "clean_up": {"min_area": 5}, "join_iou": 0.6}
