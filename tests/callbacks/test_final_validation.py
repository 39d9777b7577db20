"""A run ends with a validation, however many epochs lie between two."""

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from pixvox.callbacks.final_validation import FinalValidation


class Counting(pl.LightningModule):
    """Remembers the steps after which it was validated."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.validated = []

    def training_step(self, batch, batch_idx):
        return (self.weight * batch).mean()

    def validation_step(self, batch, batch_idx):
        self.validated.append(self.global_step)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize(
    ("every", "limits", "steps"),
    [
        (2, {"max_epochs": 5}, [6, 12, 15]),
        (3, {"max_epochs": 6}, [9, 18]),
        (9, {"max_epochs": 2}, [6]),
        (4, {"max_epochs": -1, "max_steps": 8}, [8]),
        (2, {"max_epochs": 5, "limit_val_batches": 0}, []),
    ],
)
def test_last_epoch_or_step_is_validated(every, limits, steps):
    module, loader = Counting(), DataLoader(torch.ones(3, 1), batch_size=1)
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, num_sanity_val_steps=0, check_val_every_n_epoch=every,
        callbacks=[FinalValidation()], **{"limit_val_batches": 1, **limits},
    )  # fmt: skip
    trainer.fit(module, loader, DataLoader(torch.ones(1, 1)))
    assert module.validated == steps
