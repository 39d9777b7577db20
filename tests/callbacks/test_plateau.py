from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from pixvox.backbones.simple import Simple
from pixvox.errors import ConfigError
from pixvox.heads.fcn import FCN
from pixvox.methods.supervised import Supervised
from pixvox.optimizers.torch_schedule import TorchSchedule
from pixvox.segmenter import Segmenter
from pixvox.structures import Batch, Geometry, Segmentation

SCORES = [0.1, 0.2, 0.2, 0.2, 0.3, 0.3, 0.3, 0.3]
"""Of the validations in their order."""


class Scripted:
    """A metric that says what it was told to say, by the epoch."""

    def __init__(self):
        self.epoch = 0

    def update(self, predictions, truths):
        pass

    def compute(self):
        return {"score": SCORES[self.epoch]}

    def reset(self):
        pass


class Epochs(pl.Callback):
    def __init__(self):
        self.rates = []

    def on_train_epoch_start(self, trainer, module):
        module.metrics.epoch = trainer.current_epoch
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def batches():
    images, labels = torch.rand(2, 1, 8, 12), torch.zeros(2, 8, 12, dtype=torch.long)
    truths = [Segmentation(class_map=label) for label in labels]
    return [Batch(images, labels, [Geometry.identity((8, 12))] * 2, truths=truths)] * 3


def fit(folder, epochs, resume=None, schedule=None, every=1):
    torch.manual_seed(0)
    backbone = Simple(in_channels=1, channels=(4,), strides=(2,))
    model = Segmenter(backbone, None, FCN(backbone.channels, backbone.strides, num_classes=2))
    model.config = {"not": "stored"}
    schedule = schedule or TorchSchedule(
        "ReduceLROnPlateau", monitor="score", mode="max", patience=1, factor=0.1
    )
    method = Supervised(model, partial(torch.optim.SGD, lr=1.0), schedule, Scripted())
    seen = Epochs()
    last = pl.callbacks.ModelCheckpoint(dirpath=folder, filename="last", save_on_train_epoch_end=True, every_n_epochs=1,
                                        enable_version_counter=False)  # fmt: skip
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, max_epochs=epochs, callbacks=[seen, last], check_val_every_n_epoch=every,
    )  # fmt: skip
    loader = DataLoader(batches(), batch_size=None)
    trainer.fit(method, loader, loader, ckpt_path=resume, weights_only=False)
    return seen.rates


def test_rate_falls_after_validations_without_improvement(tmp_path):
    # patience 1: the second validation in a row that is not better lowers the rate from the next epoch on
    assert fit(tmp_path, 8) == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.1, 0.01])


@pytest.mark.parametrize("stop", [2, 3, 4, 5])
def test_resumed_run_counts_every_validation(tmp_path, stop):
    whole = fit(tmp_path / "whole", 8)
    first = fit(tmp_path / "halves", stop)
    second = fit(tmp_path / "halves", 8, resume=tmp_path / "halves" / "last.ckpt")
    assert first + second == whole


def test_unknown_score_is_named_with_the_nearest(tmp_path):
    schedule = TorchSchedule("ReduceLROnPlateau", monitor="scor", mode="max")
    with pytest.raises(ConfigError, match="did you mean val/score"):
        fit(tmp_path, 1, schedule=schedule)


def test_other_schedules_are_stepped_once_an_epoch(tmp_path):
    schedule = TorchSchedule("StepLR", step_size=2, gamma=0.5)
    assert fit(tmp_path, 5, schedule=schedule) == pytest.approx([1, 1, 0.5, 0.5, 0.25])


def test_epochs_without_validation_are_not_counted(tmp_path):
    rates = fit(tmp_path, 8, every=2)  # scores 0.2, 0.2, 0.3, 0.3
    assert rates == [1.0] * 8
