from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pixvox.callbacks.snapshots import Snapshots
from pixvox.metrics.collection import Metrics
from pixvox.metrics.semantic import SemanticScores
from pixvox.structures import Batch, Geometry, Segmentation


class Trainer(pl.Trainer):
    """What the callback asks of a trainer."""

    global_step, sanity_checking, is_global_zero, current_epoch = 7, False, True, 0
    loggers, default_root_dir = [], ""

    def __init__(self, folder):
        self.default_root_dir = str(folder)
        self.loggers = [TensorBoardLogger(folder, name=None, version="")]


@pytest.fixture
def trainer(tmp_path):
    return Trainer(tmp_path)


def validate(callback, trainer, instances=False):
    """Show the callback a validation of two batches with three images each."""
    labels = torch.tensor([[0, 0, 1], [0, 2, 2]])
    truths = [Segmentation(class_map=labels, image=torch.rand(3, 2, 3), source=f"{i}.png") for i in range(3)]
    batch = Batch(torch.rand(3, 3, 2, 3), None, [Geometry.identity((2, 3))] * 3, truths=truths)
    metrics = Metrics({} if instances else {"semantic": SemanticScores(3)}, "max:mIoU")
    metrics.update(truths, truths)
    module = pl.LightningModule()
    module.metrics = metrics
    callback.on_validation_epoch_start(trainer, module)
    for index in range(2):
        callback.on_validation_batch_end(trainer, module, {"predictions": truths}, batch, index)
    callback.on_validation_end(trainer, module)


def written(trainer):
    return sorted(path.name for path in Path(trainer.default_root_dir, "val").glob("*"))


def test_every_epoch_leaves_its_pictures_and_loggers_get_them(trainer):
    callback = Snapshots(max_images=4)
    for epoch in range(2):
        trainer.current_epoch = epoch
        validate(callback, trainer)
        assert len(callback._pairs) == 4
    assert written(trainer) == ["cm_0000.png", "cm_0001.png", "snapshot_0000.png", "snapshot_0001.png"]
    trainer.loggers[0].experiment.flush()
    events = EventAccumulator(trainer.default_root_dir).Reload()
    assert set(events.Tags()["images"]) == {"val_snapshot", "val_cm"}
    assert [image.step for image in events.Images("val_cm")] == [7, 7]


def test_tasks_without_class_maps_have_no_confusion_matrix(trainer):
    validate(Snapshots(), trainer, instances=True)
    assert written(trainer) == ["snapshot_0000.png"]


def test_sanity_checks_and_epochs_in_between_leave_nothing(trainer):
    trainer.current_epoch = 1
    validate(Snapshots(every=2), trainer)
    trainer.sanity_checking, trainer.current_epoch = True, 0
    validate(Snapshots(), trainer)
    assert written(trainer) == []
