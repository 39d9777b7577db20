import json

import numpy as np
import pytest
import tifffile

from noisy_objects import noisy_label_maps
from pixvox.cli import run
from pixvox.metrics.contingency import ContingencyCounter
from pixvox.metrics.volume_scores import volume_scores


@pytest.fixture
def files(tmp_path):
    """A predicted and a true label map, the second with its spacing, in a folder with awkward names."""
    predicted, true = noisy_label_maps(0, (7, 9, 11), 12)
    paths = [tmp_path / "found, all.npy", tmp_path / "true=1.ome.tif"]
    np.save(paths[0], predicted)
    sizes = {f"PhysicalSize{axis}": step for axis, step in zip("ZYX", (2.0, 0.5, 0.5), strict=True)}
    tifffile.imwrite(paths[1], true.astype(np.uint16), ome=True, metadata={"axes": "ZYX", **sizes})
    return [str(path) for path in paths], predicted, true


def test_two_files_are_scored(files, capsys):
    paths, predicted, true = files
    assert run(["score", *paths, "--axes", "ZYX", "--distance", "2", "--block", "4", "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    counter = ContingencyCounter(spacing=(2.0, 0.5, 0.5))
    counter.add(predicted, true)
    assert told["scores"] == pytest.approx(volume_scores([counter.table()], distance=2.0))


def test_options_reach_the_scores(files, capsys):
    paths, predicted, true = files
    options = [
        "--axes",
        "ZYX",
        "--spacing",
        "1,1,1",
        "--sizes",
        "10,20",
        "--ignore-ids",
        "2",
        "--block",
        "3,4,5",
    ]
    assert run(["score", *paths, *options, "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])["scores"]
    counter = ContingencyCounter(ignore_ids=(2,))
    counter.add(predicted, true)
    expected = volume_scores([counter.table()], size_edges=(10, 20))
    assert {name: value for name, value in expected.items() if value == value} == pytest.approx(
        {name: value for name, value in told.items() if value is not None}
    )


def test_tables_show_every_score(files, capsys):
    paths, _, _ = files
    assert run(["score", *paths, "--axes", "ZYX", "--ignore", paths[1]]) == 0
    shown = capsys.readouterr().out
    for name in (
        "matched_AP",
        "0.75",
        "PQ",
        "SEG",
        "AJI_plus",
        "ARAND_precision",
        "VOI_split",
        "recall_small",
    ):
        assert name in shown


def test_wrong_numbers_are_told(files, capsys):
    assert run(["score", *files[0], "--spacing", "2;1;1"]) == 2
    assert "--spacing 2;1;1: write numbers between commas, as in 2,0.5,0.5" in capsys.readouterr().err
