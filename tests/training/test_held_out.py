import csv
import json

import pytest
import torch

import pixvox
from pixvox.errors import ConfigError
from pixvox.evaluation import evaluate
from pixvox.files import finite
from pixvox.methods.supervised import Supervised

pytestmark = pytest.mark.usefixtures("no_pictures")

SMALL = [
    "data=digits", "head=fcn", "backbone=simple", "backbone.channels=[4,8,8,8]", "data.train.task=semantic",
    "data.train.num_images=4", "data.val.num_images=2", "data.test.num_images=3", "batch_size=2", "epochs=2",
    "num_workers=0", "logger=none",
]  # fmt: skip


def test_the_best_checkpoint_is_scored_on_the_test_split_at_the_end(tmp_path, monkeypatch):
    tested = {}
    step = Supervised.test_step

    def seen(self, batch, index):
        tested.update({name: value.clone() for name, value in self.state_dict().items()})
        return step(self, batch, index)

    monkeypatch.setattr(Supervised, "test_step", seen)
    run = pixvox.train([*SMALL, "test=true", "ema_decay=0.5", "learning_rate=0.05", f"runs_dir={tmp_path}"])
    summary = json.loads((run.dir / "summary.json").read_text())
    assert summary["test"] == finite(run.summary["test"])
    again = evaluate(run.dir, split="test")
    shared = set(again) & set(summary["test"])
    assert len(shared) > 3
    for name in shared:
        assert finite(again[name]) == pytest.approx(summary["test"][name], abs=1e-6)
    assert summary["best"] and summary["test"] != summary["best"]
    averaged = torch.load(run.dir / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(value, averaged[name]) for name, value in tested.items())
    assert tested
    with (run.dir / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [1, 3, 4]
    assert rows[-1]["test/mIoU"]


def test_a_run_that_cannot_be_tested_does_not_start(tmp_path):
    with pytest.raises(
        ConfigError, match=r"test=true needs a test split, and digits has none.*test_fraction"
    ):
        pixvox.train([*SMALL, "data.test=null", "test=true", f"runs_dir={tmp_path}"])
    with pytest.raises(ConfigError, match=r"test=true needs a test split"):
        pixvox.train(["data=shapes", "data.train.num_images=3", "test=true", f"runs_dir={tmp_path}"])
    assert not list(tmp_path.iterdir())
