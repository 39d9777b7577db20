"""A student and its teacher on two processes."""

import pytest
import torch

from pixvox.cli import run
from pixvox.overrides import override
from small_runs import TINY

STEADY = [
    "backbone.norm=group", "head.norm=group", "head.dropout=0", "optimizer=sgd", "scheduler=constant",
    "scheduler.warmup=0", "learning_rate=0.02", "warmup_steps=1", "unsup_rampup_steps=0", "method.decay=0.9",
]  # fmt: skip


@pytest.mark.slow
def test_a_mean_teacher_of_class_maps_on_two_processes_equals_one(tmp_path):
    states = []
    for name, options in (
        ("one", ["batch_size=4"]),
        ("two", ["batch_size=2", "trainer.devices=2", "trainer=ddp"]),
    ):
        folder = tmp_path / name
        assert run(["train", *TINY, *STEADY, override("run_dir", str(folder)), *options]) == 0
        states.append(torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"])
    one, two = states
    assert one.keys() == two.keys()
    changed = 0
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=0, atol=1e-5, msg=key)
        changed += key.startswith("teacher.") and not torch.equal(
            value, one[key.replace("teacher", "segmenter", 1)]
        )
    assert changed, "the teacher is no copy of the student"
