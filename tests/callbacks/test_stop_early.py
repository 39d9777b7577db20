import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from pixvox.callbacks.stop_early import StopEarly


class Stuck(pl.LightningModule):
    """Its score never changes."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def training_step(self, batch, index):
        return self.weight.sum()

    def validation_step(self, batch, index):
        self.log("val/score", torch.tensor(0.5))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def epochs(folder, patience, resume=None, longest=9):
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        max_epochs=longest, callbacks=[StopEarly("val/score", patience, mode="max")],
        enable_checkpointing=False, num_sanity_val_steps=0,
    )  # fmt: skip
    loader = DataLoader(torch.zeros(2, 1), num_workers=0)
    trainer.fit(Stuck(), loader, loader, ckpt_path=resume, weights_only=True)
    trainer.save_checkpoint(folder / "last.ckpt")
    return trainer.current_epoch


def test_resuming_a_run_that_had_stopped_learns_nothing_more(tmp_path):
    assert epochs(tmp_path, patience=2) == 3
    assert epochs(tmp_path, patience=2, resume=tmp_path / "last.ckpt") == 3


@pytest.mark.parametrize(("first", "then", "expected"), [(2, 4, 5), (2, 1, 4)])
def test_resumed_run_has_the_patience_that_it_is_given(tmp_path, first, then, expected):
    epochs(tmp_path, patience=first)
    assert epochs(tmp_path, patience=then, resume=tmp_path / "last.ckpt") == expected


def test_a_run_that_ends_for_another_reason_goes_on(tmp_path):
    assert epochs(tmp_path, patience=3, longest=2) == 2
    assert epochs(tmp_path, patience=3, resume=tmp_path / "last.ckpt") == 4
