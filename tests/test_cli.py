import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pixvox.cli import run
from pixvox.overrides import override

TINY = [
    "head=fcn", "backbone=simple", "backbone.channels=[4,8]", "backbone.strides=[4,8]", "data=shapes",
    "data.train.task=semantic", "data.train.num_images=4", "data.val.num_images=2", "data.train.radius=[4,8]",
    "data.train.image_size=[32,40]", "image_size=[32,40]", "transforms=none", "batch_size=2", "num_workers=0",
    "trainer.accelerator=cpu", "logger=none",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run whose path holds what shells and Hydra find special."""
    runs = tmp_path_factory.mktemp("runs") / "a b=c,d"
    assert run(["train", *TINY, "epochs=1", override("runs_dir", str(runs))]) == 0
    return runs / "last"


def last_object(capsys):
    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    return json.loads(capsys.readouterr().out.strip().splitlines()[-1], parse_constant=refuse)


def test_help_does_not_import_torch():
    code = "import sys; from pixvox.cli import run; run(['--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
    "command", ["doctor", "models", "train", "evaluate", "predict", "score", "view", "visualize", "data"]
)
def test_every_command_has_help(command, capsys):
    assert run([command, "--help"]) == 0
    assert command in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "learning_rate=abc"], "learning_rate=abc"),
        (["train", "lerning_rate=1"], "did you mean learning_rate"),
        (["train", "head=fnc"], "did you mean fcn"),
        (["train", "--data", "/no/such/place"], "no dataset at /no/such/place"),
        (["train", "--resume", "/no/such/run"], "no run at /no/such/run"),
        (["train", "--resume", "https://example.org/run"], "is a URL; download it first"),
        (["evaluate", "https://example.org/best.ckpt"], "is a URL; download it first"),
        (["train", "--config-dir", "/no/such/configs"], "/no/such/configs"),
        (["evaluate", "/no/such/run"], "/no/such/run"),
        (["predict", "/no/such/run", "/no/such.png"], "/no/such.png"),
        (["visualize", "/no/such/run"], "/no/such/run"),
        (["data", "check", "/no/such/data"], "/no/such/data"),
        (["data", "check", "/no/such/data", "task=[1"], "'task=[1' cannot be read"),
        (["data", "make", "shapes", "--out", "/dev/null/data"], "/dev/null"),
        (["train", *TINY, "early_stopping.patience=2", "early_stopping.monitor=foo"], "monitor=foo"),
        (
            ["train", *TINY, "scheduler=plateau", "scheduler.monitor=foo"],
            "scheduler.monitor=foo: there is no",
        ),
        (["train", "logger=[tensorboard,mlflo]"], "no logger=mlflo; did you mean mlflow"),
        (
            ["train", *TINY, "transforms=semantic", "transforms.color_jitter=[0.4]"],
            "'transforms.color_jitter[1]' not found",
        ),
        (["train", "data=hdf5"], "value: data.train.images"),
        (["train", "logger=[]"], "logger=[] chooses nothing; all: mlflow, none"),
        (["train", *TINY, "image_size=[8,32,40]"], "one per axis"),
        (["train", *TINY, "run_dir=/dev"], "run_dir=/dev exists already"),
        (["tarin"], "tarin"),
        (["train", "--no-such-option"], "no-such-option"),
    ],
)
def test_mistake_gets_one_message_and_code_2(arguments, said, capsys):
    assert run(arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("optimizer.lr=-1", "optimizer: Invalid learning rate: -1"),
        ("+callbacks.mine._target_=json.JSONDecoder", "callbacks.mine is no callback but JSONDecoder"),
        ("+callbacks.mine.foo=1", "callbacks.mine._target_ names a class"),
    ],
)
def test_a_part_that_does_not_fit_gets_one_message(line, said, tmp_path, capsys):
    assert run(["train", *TINY, line, override("runs_dir", str(tmp_path))]) == 2
    assert said in capsys.readouterr().err


def test_debug_shows_the_traceback():
    from pixvox.errors import ConfigError

    with pytest.raises(ConfigError):
        run(["train", "learning_rate=abc", "--debug"])


def test_doctor_tells_versions_device_and_how_to_install_extras(capsys):
    assert run(["doctor", "--json"]) == 0
    found = last_object(capsys)
    assert found["packages"]["torch"]
    assert found["device"]["kind"] in ("cpu", "cuda", "mps")
    assert found["extras"]["onnx"]["install"] == 'pip install "pixvox[onnx]"'
    assert run(["doctor"]) == 0
    assert "pixvox[" in capsys.readouterr().out


def test_models_lists_each_part_with_its_dimensions(capsys):
    assert run(["models", "--json"]) == 0
    rows = {(row["kind"], row["name"]): row for row in last_object(capsys)["models"]}
    assert rows["head", "fcn"]["task"] == "semantic"
    assert rows["backbone", "simple"]["dims"] == [2, 3]
    assert run(["models"]) == 0
    assert "maskrcnn" in capsys.readouterr().out


def test_train_prints_one_object_last(tmp_path, capsys):
    assert run(["train", *TINY, "fast_dev_run=true", override("runs_dir", str(tmp_path)), "--json"]) == 0
    found = last_object(capsys)
    assert Path(found["run"]).is_dir()
    assert "mIoU" in found["metrics"]


def test_evaluation_repeats_the_scores_of_the_best_epoch(folder, tmp_path, capsys):
    assert run(["evaluate", str(folder), "--json"]) == 0
    found = last_object(capsys)
    best = json.loads((folder / "summary.json").read_text())["best"]
    assert found["metrics"]["mIoU"] == pytest.approx(best["mIoU"], abs=1e-6)
    assert found["metrics"]["images"] == 2
    options = ["--split", "train", "metrics.boundary_iou=true", "--out", str(tmp_path / "scores")]
    assert run(["evaluate", str(folder), *options]) == 0
    said = capsys.readouterr().out
    assert "mIoU" in said and "recall" in said and "boundary IoU" in said
    assert "IoU/" not in said  # the table of classes shows them
    for name in ("scores.json", "per_class.csv", "confusion_matrix.png"):
        assert (tmp_path / "scores" / name).is_file(), name
    assert (folder / "per_class.csv").read_text().startswith("class,IoU,Dice,precision,recall,share")


def test_evaluation_takes_other_data(folder, capsys):
    other = [text for text in TINY if text.startswith("data")]
    assert (
        run(["evaluate", str(folder / "checkpoints" / "last.ckpt"), *other, "num_workers=0", "--json"]) == 0
    )
    assert last_object(capsys)["metrics"]["images"] == 2


def test_evaluation_on_data_of_another_kind_is_refused(folder, capsys):
    assert run(["evaluate", str(folder), "data=shapes", "num_workers=0"]) == 2
    assert "semantic" in capsys.readouterr().err


def test_configuration_of_a_strange_run_is_not_executed(folder, tmp_path, capsys):
    import shutil

    copy = tmp_path / "strange"
    shutil.copytree(folder.resolve(), copy)
    canary = tmp_path / "canary"
    (copy / "config.yaml").write_text(f"data:\n  _target_: os.system\n  command: touch {canary}\n")
    assert run(["evaluate", str(copy)]) == 2
    assert "os.system" in capsys.readouterr().err
    assert not canary.exists()


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.system, (f"touch {self.path}",))


def test_malicious_checkpoint_is_refused_by_every_command(folder, tmp_path, capsys):
    import shutil

    import torch

    copy, canary = tmp_path / "strange", tmp_path / "canary"
    shutil.copytree(folder.resolve(), copy)
    for name in ("last.ckpt", "best.ckpt"):
        torch.save({"pixvox": Malicious(canary)}, copy / "checkpoints" / name)
        (copy / "checkpoints" / f"{name}.sha256").unlink()
    for arguments in (["evaluate", str(copy)], ["visualize", str(copy)], ["train", "--resume", str(copy)]):
        assert run(arguments) == 2
        assert "ckpt" in capsys.readouterr().err
        assert not canary.exists()


def test_visualize_draws_beside_the_checkpoint(folder, capsys):
    assert run(["visualize", str(folder), "--num-images", "2"]) == 0
    picture = folder / "checkpoints" / "model_predictions_viz.png"
    assert picture.exists()
    assert picture.name in capsys.readouterr().out


def test_predict_writes_results_for_odd_paths(folder, tmp_path, capsys):
    import numpy as np
    from PIL import Image

    image = tmp_path / "a=b, c.png"
    Image.fromarray(np.zeros((30, 41, 3), np.uint8)).save(image)
    assert run(["predict", str(folder), str(image), "--out", str(tmp_path / "x=y, z"), "--json"]) == 0
    [row] = last_object(capsys)["results"]
    assert row["source"].endswith("a=b, c.png")
    assert row["files"]
    assert all(Path(file).exists() for file in row["files"])


def test_predictions_become_a_dataset_and_broken_images_are_named(folder, tmp_path, capsys):
    import numpy as np
    from PIL import Image

    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(np.zeros((30, 41, 3), np.uint8)).save(pictures / name)
    (pictures / "broken.png").write_bytes(b"no picture")
    out = tmp_path / "labels"
    line = ["predict", str(folder), str(pictures), "--out", str(out), "--as-labels"]
    assert run([*line, "--threshold", "0.01", "--json"]) == 2
    told = capsys.readouterr()
    rows = json.loads(told.out.strip().splitlines()[-1])["results"]
    assert sorted("error" in row for row in rows) == [False, False, True]
    assert "1 of 3 images were not segmented" in told.err and "broken.png" in told.err
    assert run(["data", "check", str(out), "--json"]) == 0
    assert last_object(capsys)["ok"] is True
    assert run(line) == 2, "what is there already is not written over"
    assert "exists already; choose another folder" in capsys.readouterr().err
    assert run([*line, "--cut-out", "all"]) == 2
    assert "give one of them" in capsys.readouterr().err


def test_data_is_made_and_checked(tmp_path, capsys):
    out = tmp_path / "my, data=1"
    assert (
        run(["data", "make", "shapes", "--out", str(out), "num_train=2", "num_val=1", "image_size=32"]) == 0
    )
    assert run(["data", "check", str(out), "--json"]) == 0
    assert last_object(capsys)["ok"] is True
    next((out / "images" / "train").glob("*.png")).write_bytes(b"")
    assert run(["data", "check", str(out)]) == 2


def test_undefined_scores_are_null_in_json(capsys):
    from pixvox.console import print_json

    print_json({"AP": float("nan"), "classes": [float("inf"), 1.0]})
    assert last_object(capsys) == {"AP": None, "classes": [None, 1.0]}


def test_images_of_one_name_keep_their_results_apart(folder, tmp_path, capsys):
    import numpy as np
    from PIL import Image

    files = [tmp_path / name / "a.png" for name in ("left", "right")]
    for file in files:
        file.parent.mkdir()
        Image.fromarray(np.zeros((32, 40, 3), np.uint8)).save(file)
    out = tmp_path / "out"
    assert run(["predict", str(folder), *map(str, files), "--out", str(out), "--json"]) == 0
    written = [file for row in last_object(capsys)["results"] for file in row["files"]]
    assert len(set(written)) == len(written)
    assert {path.name for path in out.glob("*_labels.png")} == {"a_labels.png", "a_2_labels.png"}
    assert run(["predict", str(folder), str(files[0]), "--out", str(files[1])]) == 2
    assert "--out takes a folder" in capsys.readouterr().err


def test_run_dir_is_the_folder_of_the_run(tmp_path):
    place = tmp_path / "mine"
    assert run(["train", *TINY, "fast_dev_run=true", override("run_dir", str(place))]) == 0
    assert (place / "config.yaml").exists()
