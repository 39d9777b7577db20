from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel

from pixvox.callbacks import step_timer
from pixvox.callbacks.step_timer import StepTimer

TRAINER = pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
RUN = (TRAINER, BoringModel())


@pytest.fixture
def clock(monkeypatch):
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(step_timer.time, "perf_counter", lambda: now.seconds)
    return now


def step(timer, clock, data, forward, backward, update):
    """One step in the order of Lightning's hooks."""
    clock.seconds += data
    timer.on_train_batch_start(*RUN, None, 0)
    clock.seconds += forward
    timer.on_before_backward(*RUN, torch.zeros(()))
    clock.seconds += backward
    timer.on_after_backward(*RUN)
    clock.seconds += update
    timer.on_train_batch_end(*RUN, None, None, 0)


def test_each_part_of_a_step_has_its_share(clock):
    timer = StepTimer()
    timer.on_train_epoch_start(*RUN)
    step(timer, clock, 9, 9, 9, 9)  # starting up
    for _ in range(2):
        step(timer, clock, 1, 2, 4, 3)
    assert timer.shares() == {"data": 0.1, "forward": 0.2, "backward": 0.4, "optimizer": 0.3}
    assert timer.summary()["step"]["seconds"] == 10
    assert (
        timer.line()
        == "10 s per step: waiting for data 10.0%, forward 20.0%, backward 40.0%, optimiser 30.0%"
    )


def test_checkpoints_and_validation_are_no_waiting_for_data(clock):
    timer = StepTimer(skip=0)
    timer.on_train_epoch_start(*RUN)
    step(timer, clock, 1, 1, 1, 1)
    timer.on_save_checkpoint(*RUN, {})
    clock.seconds += 50
    step(timer, clock, 1, 1, 1, 1)
    clock.seconds += 70
    timer.on_validation_end(*RUN)
    step(timer, clock, 1, 1, 1, 1)
    assert timer.seconds["data"] == 2


def test_nothing_is_said_before_a_step_was_measured():
    assert StepTimer().summary() == StepTimer().shares() == {}


def test_order_of_the_hooks_is_lightnings():
    """The loss comes before ``on_before_backward``, whatever clears gradients in between."""

    class Slow(BoringModel):
        def training_step(self, batch, batch_idx):
            torch.linalg.svd(torch.rand(300, 300))
            return super().training_step(batch, batch_idx)

    timer = StepTimer()
    trainer = pl.Trainer(
        max_steps=4, callbacks=[timer], logger=False, enable_checkpointing=False, accelerator="cpu", devices=1,
        enable_progress_bar=False, enable_model_summary=False, limit_val_batches=0,
    )  # fmt: skip
    trainer.fit(Slow())
    assert timer.shares()["forward"] > 0.5
