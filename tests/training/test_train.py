import csv
import json
import logging
import math

import pytest
import torch
from omegaconf import OmegaConf

from pixvox.assembly import logged_name
from pixvox.configuration import compose
from pixvox.errors import ConfigError, WeightsError
from pixvox.heads.fcn import FCN
from pixvox.training.run_folder import find_run
from pixvox.training.train import train
from pixvox.weights import load

pytestmark = pytest.mark.usefixtures("no_pictures")

TINY = [
    "head=fcn", "backbone=simple", "backbone.channels=[4,8]", "backbone.strides=[4,8]", "data=shapes",
    "data.train.task=semantic", "data.train.num_images=6", "data.val.num_images=2", "data.train.radius=[4,8]",
    "data.train.image_size=[32,40]", "image_size=[32,40]", "transforms=none", "batch_size=2", "num_workers=0",
    "trainer.accelerator=cpu", "logger=none",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train([*TINY, "epochs=2"], runs_dir=str(tmp_path_factory.mktemp("runs")))


def rows_of(path):
    with (path / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_run_folder_holds_what_it_promises(run):
    names = {path.name for path in run.dir.iterdir()}
    assert names >= {
        "config.yaml", "environment.json", "run.log", "metrics.csv", "summary.json", "checkpoints",
        "curves.png", "val_predictions.png", "confusion_matrix.png",
    }  # fmt: skip
    checkpoints = {path.name for path in (run.dir / "checkpoints").iterdir()}
    names = ("last", "previous", "best")
    assert checkpoints == {f"{name}.ckpt{end}" for name in names for end in ("", ".sha256")}
    assert (run.dir.parent / "last").resolve() == run.dir.resolve()
    assert run.dir.name.endswith("_simple_fcn")


def test_configuration_of_a_run_is_resolved_and_complete(run):
    text = (run.dir / "config.yaml").read_text()
    assert "${" not in text
    config = OmegaConf.create(text)
    assert (config.num_classes, config.in_channels, config.spatial_dims) == (4, 3, 2)
    assert config.optimizer.lr == config.learning_rate


def test_environment_tells_versions_device_and_overrides(run):
    environment = json.loads((run.dir / "environment.json").read_text())
    assert (
        environment["packages"]["torch"] == torch.__version__.partition("+")[0]
        or environment["packages"]["torch"]
    )
    assert environment["device"]["kind"] in ("cpu", "cuda", "mps")
    assert "epochs=2" in environment["overrides"]


def test_table_has_losses_scores_and_rates_of_each_epoch(run):
    rows = rows_of(run.dir)
    assert {int(row["epoch"]) for row in rows} == {0, 1}
    for column in ("train/loss", "train/cross_entropy", "val/loss", "val/mIoU", "learning_rate"):
        assert any(row[column] for row in rows), column


def test_summary_holds_the_best_epoch_of_the_table(run):
    summary = json.loads((run.dir / "summary.json").read_text())
    scores = [float(row["val/mIoU"]) for row in rows_of(run.dir) if row["val/mIoU"]]
    assert summary["best"]["mIoU"] == max(scores) == run.metrics["mIoU"]
    assert summary["status"] == "finished"
    assert summary["steps"] == 6
    assert summary["parameters"] > 0
    assert summary["peak_memory_mib"]["host"] > 1
    assert summary["seconds"] > 0


def test_checkpoint_has_plain_types_and_rebuilds_the_model_alone(run):
    checkpoint = torch.load(run.dir / "checkpoints" / "best.ckpt", weights_only=True)
    assert checkpoint["pixvox"]["num_classes"] == 4
    model = load(run.dir)
    assert model.class_names == run.model().class_names
    for name, value in model.state_dict().items():
        assert torch.equal(value, checkpoint["state_dict"][f"segmenter.{name}"]), name


def test_resume_continues_the_same_folder_and_table(tmp_path):
    first = train([*TINY, "epochs=1"], runs_dir=str(tmp_path))
    again = train(["epochs=3"], resume=first.dir)
    assert again.dir.resolve() == first.dir.resolve()
    steps = [int(row["step"]) for row in rows_of(first.dir)]
    assert steps == sorted(set(steps))
    assert max(steps) == 8
    assert again.summary["steps"] == 9
    assert [path.name for path in tmp_path.iterdir() if path.name != "last"] == [first.dir.name]


def test_value_that_is_refused_late_leaves_no_folder_and_the_newest_run_as_it_was(tmp_path):
    first = train([*TINY, "max_steps=1"], runs_dir=str(tmp_path))
    with pytest.raises(ConfigError, match="optimizer"):
        train([*TINY, "max_steps=1", "optimizer.betas=[2,2]"], runs_dir=str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {first.dir.name, "last"}
    assert (tmp_path / "last").resolve() == first.dir.resolve()


def test_same_seed_gives_the_same_losses(tmp_path):
    losses = [
        [
            row["train/loss"]
            for row in rows_of(train([*TINY, "max_steps=2"], runs_dir=str(tmp_path / name)).dir)
        ]
        for name in ("one", "two")
    ]
    assert losses[0] == losses[1]


def test_damaged_last_checkpoint_falls_back_to_the_best(run, tmp_path, caplog):
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(run.dir, folder)
    last = folder / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    from pixvox.training.run_folder import readable_checkpoint

    (folder / "checkpoints" / "previous.ckpt").unlink()
    assert readable_checkpoint(find_run(folder)).name == "best.ckpt"
    assert "last.ckpt: damaged" in caplog.text
    assert "falling back to best.ckpt" in caplog.text
    (folder / "checkpoints" / "best.ckpt").write_bytes(b"")
    with pytest.raises(WeightsError, match=r"last\.ckpt.*best\.ckpt.*0 bytes"):
        readable_checkpoint(find_run(folder))


def test_model_of_a_run_is_its_newest_when_the_best_is_damaged(run, tmp_path, caplog):
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(run.dir, folder)
    (folder / "checkpoints" / "best.ckpt").write_bytes(b"")
    model = load(folder)
    assert "best.ckpt: the file is empty" in caplog.text
    assert "taking last.ckpt instead" in caplog.text
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(value, state[f"segmenter.{name}"]) for name, value in model.state_dict().items())


def test_resume_takes_the_state_before_when_a_bit_of_the_last_is_flipped(run, tmp_path):
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(run.dir, folder)
    last = folder / "checkpoints" / "last.ckpt"
    weight = next(iter(torch.load(last, weights_only=True)["state_dict"].values()))
    content = bytearray(last.read_bytes())
    content[content.index(weight.numpy().tobytes())] ^= 1
    last.write_bytes(content)
    with pytest.raises(WeightsError, match=r"last\.ckpt: damaged"):
        load(last)
    again = train(["epochs=3"], resume=folder)
    assert again.summary["steps"] == 9
    assert "previous.ckpt" in next(
        line for line in (folder / "run.log").read_text().splitlines() if "resuming" in line
    )
    load(last)


def test_fast_dev_run_goes_through_everything_once(tmp_path):
    run = train([*TINY, "fast_dev_run=true"], runs_dir=str(tmp_path))
    assert run.summary["steps"] == 1
    assert (run.dir / "checkpoints" / "best.ckpt").exists()


def test_two_steps_in_bfloat16_have_finite_losses_and_float32_weights(tmp_path, monkeypatch):
    seen = []
    forward = FCN.forward

    def spy(head, features, targets=None):
        outputs = forward(head, features, targets)
        seen.append(outputs["logits"].dtype)
        return outputs

    monkeypatch.setattr(FCN, "forward", spy)
    run = train([*TINY, "max_steps=2", "precision=bf16-mixed"], runs_dir=str(tmp_path))
    assert torch.bfloat16 in seen
    assert run.summary["steps"] == 2
    losses = [
        float(row[f"{part}/loss"])
        for row in rows_of(run.dir)
        for part in ("train", "val")
        if row[f"{part}/loss"]
    ]
    assert len(losses) >= 2
    assert all(math.isfinite(loss) for loss in losses)
    assert all(value.dtype == torch.float32 for value in run.model().parameters())


def test_tensorboard_gets_the_losses_of_a_run(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    overrides = [text for text in TINY if not text.startswith("logger=")]
    run = train([*overrides, "logger=tensorboard", "max_steps=2"], runs_dir=str(tmp_path))
    (events,) = (run.dir / "tensorboard").glob("events.out.tfevents.*")
    accumulator = EventAccumulator(str(events)).Reload()
    assert {"train/loss", "val/loss", "val/mIoU"} <= set(accumulator.Tags()["scalars"])
    assert math.isfinite(accumulator.Scalars("val/loss")[-1].value)


def test_steps_count_optimizer_steps_under_accumulation(tmp_path):
    run = train([*TINY, "max_steps=3", "accumulate_grad_batches=2"], runs_dir=str(tmp_path))
    assert run.summary["steps"] == 3


def test_early_stopping_ends_a_run_that_does_not_improve(tmp_path):
    stopping = [
        "epochs=9",
        "early_stopping.patience=1",
        "learning_rate=0.0",
        "early_stopping.monitor=val_loss",
    ]
    run = train([*TINY, *stopping, "early_stopping.mode=min", "backbone.norm=group", "head.norm=group"],
                runs_dir=str(tmp_path))  # fmt: skip
    assert run.summary["epochs"] < 9


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["num_classes=7"], r"num_classes=7, but .* has num_classes=4"),
        (["spatial_dims=3"], r"spatial_dims=3, but .* has spatial_dims=2"),
        (["head=maskrcnn"], r"semantic.*head=fcn"),
        (["best_by=max:mIoV"], r"best_by=max:mIoV.*did you mean mIoU"),
        (["num_labeled_images=99"], r"99"),
    ],
)
def test_what_contradicts_the_data_leaves_nothing_behind(tmp_path, wrong, said):
    from pixvox.errors import PixvoxError

    with pytest.raises(PixvoxError, match=said):
        train([*TINY, *wrong], runs_dir=str(tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()


def test_resuming_what_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match="no run at"):
        train(TINY, resume=tmp_path / "nothing")


def test_composed_configuration_trains_too(tmp_path):
    config = compose("train", [*TINY, "max_steps=1", f"runs_dir='{tmp_path}'"])
    assert train(config).summary["steps"] == 1
    with pytest.raises(ConfigError, match="not both"):
        train(config, epochs=3)


def test_part_of_ones_own_trains_by_config_dir(tmp_path, monkeypatch):
    (tmp_path / "my_head.py").write_text(
        "from pixvox.heads.fcn import FCN\n\n\nclass MyHead(FCN):\n    '''My own head.'''\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "configs" / "head").mkdir(parents=True)
    (tmp_path / "configs" / "head" / "mine.yaml").write_text(
        "_target_: my_head.MyHead\n_partial_: true\nnum_classes: ${num_classes}\nspatial_dims: ${spatial_dims}\n"
    )
    overrides = [text for text in TINY if not text.startswith("head=")]
    run = train(
        [*overrides, "head=mine", "neck=none", "max_steps=1"],
        config_dir=tmp_path / "configs",
        runs_dir=str(tmp_path / "runs"),
    )
    assert run.dir.name.endswith("_simple_mine")
    with pytest.raises(WeightsError, match="my_head"):
        load(run.dir)
    assert type(load(run.dir, trust=["my_head"]).head).__name__ == "MyHead"


def test_log_goes_to_the_folder_and_the_logger_is_left_as_it_was(run):
    assert "done in" in (run.dir / "run.log").read_text()
    assert not [h for h in logging.getLogger("pixvox").handlers if isinstance(h, logging.FileHandler)]


def test_scores_are_named_as_they_are_logged():
    assert [logged_name(name) for name in ("AP", "val_loss", "val/AP50")] == [
        "val/AP",
        "val/loss",
        "val/AP50",
    ]
