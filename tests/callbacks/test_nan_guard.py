from contextlib import nullcontext

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from pixvox.callbacks.nan_guard import NaNGuard, NonFiniteLossError, state_is_finite


class Net(pl.LightningModule):
    """A batch norm and a layer; a batch of NaN spoils both."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))

    def training_step(self, batch, index):
        return self.net(batch).pow(2).mean()

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.1)


def fit(bad, skip, batches=5, **options):
    data = [torch.rand(4, 3, generator=torch.Generator().manual_seed(i)) for i in range(batches)]
    for index in bad:
        data[index][:] = float("nan")
    guard, net = NaNGuard(skip=skip), Net()
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, max_epochs=1,
        enable_model_summary=False, callbacks=[guard], **options,
    )  # fmt: skip
    trainer.fit(net, DataLoader(data, batch_size=None))
    return net, guard


def test_left_out_steps_change_neither_weights_nor_running_means(caplog):
    net, guard = fit(bad=[2], skip=1)
    assert state_is_finite(net)
    assert guard.skipped == ["step 2 of epoch 0: unknown"]
    assert "1 steps were left out" in caplog.text
    without, _ = fit(bad=[4], skip=1)
    assert not all(torch.equal(a, b) for a, b in zip(net.parameters(), without.parameters(), strict=True))


def test_one_more_than_allowed_stops_and_the_count_outlives_a_resume():
    with pytest.raises(NonFiniteLossError, match=r"skip_nan_steps=5"):
        fit(bad=[1, 3], skip=1)
    _, guard = fit(bad=[1], skip=2)
    again = NaNGuard(skip=2)
    again.load_state_dict(guard.state_dict())
    assert again.skipped == guard.skipped != []


def test_whole_accumulated_step_is_left_out():
    net, guard = fit(bad=[3], skip=1, batches=6, accumulate_grad_batches=2)
    assert state_is_finite(net)
    assert len(guard.skipped) == 1


@pytest.mark.parametrize(("precision", "loss", "refused"), [
    ("16-mixed", 1.0, False),
    ("16-mixed", float("nan"), True),
    ("32-true", 1.0, True),
])  # fmt: skip
def test_infinite_gradients_of_a_finite_loss_are_the_business_of_the_loss_scale(precision, loss, refused):
    net, guard = Net(), NaNGuard()
    optimizer = net.configure_optimizers()
    for parameter in net.parameters():
        parameter.grad = torch.full_like(parameter, float("inf"))
    trainer = type("Scaled", (pl.Trainer,), {"precision": precision})(accelerator="cpu", logger=False)
    guard.on_before_backward(trainer, net, torch.tensor(loss))
    with pytest.raises(NonFiniteLossError) if refused else nullcontext():
        guard.on_before_optimizer_step(trainer, net, optimizer)
