import logging

import numpy as np
import pytest
from PIL import Image

import pixvox.weights
from pixvox.errors import DataError
from pixvox.models import create_model
from pixvox.prediction import predict_files


@pytest.fixture
def model(monkeypatch):
    segmenter = create_model(
        "fcn", "simple", num_classes=2, in_channels=1, backbone__channels=[4, 8], backbone__strides=[2, 4]
    ).eval()
    monkeypatch.setattr(pixvox.weights, "load", lambda run: segmenter)
    return segmenter


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a", "b", "c"):
        Image.fromarray(np.arange(20 * 24, dtype=np.uint8).reshape(20, 24)).save(
            tmp_path / "in" / f"{name}.png"
        )
    (tmp_path / "in" / "b.png").write_bytes((tmp_path / "in" / "b.png").read_bytes()[:60])
    return tmp_path / "in"


def test_a_broken_image_is_left_out_and_listed_and_the_others_are_segmented(model, folder, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        rows = predict_files("run", [folder], tmp_path / "out")
    assert [bool(row.get("files")) for row in rows] == [True, False, True]
    assert "b.png" in rows[1]["error"]
    assert "b.png" in caplog.text


def test_command_line_ends_with_2_after_the_others_are_written(model, folder, tmp_path, capsys):
    from pixvox.cli import run

    assert run(["predict", "run", str(folder), "--out", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr()
    assert "1 of 3 images were not segmented" in printed.err
    assert "b.png" in printed.err
    assert printed.out.count("->") == 2


def test_what_does_not_exist_is_refused_before_anything_is_segmented(model, folder, tmp_path):
    with pytest.raises(DataError, match="no such file"):
        predict_files("run", [folder, tmp_path / "none.png"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_folder_without_images_is_refused(model, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no image was found"):
        predict_files("run", [tmp_path / "empty"], tmp_path / "out")
