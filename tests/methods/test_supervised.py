from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from pixvox.backbones.simple import Simple
from pixvox.callbacks.nan_guard import NaNGuard, NonFiniteLossError, state_is_finite
from pixvox.errors import ConfigError
from pixvox.heads.fcn import FCN
from pixvox.methods.supervised import Supervised
from pixvox.optimizers.schedules import constant, cosine
from pixvox.segmenter import Segmenter
from pixvox.structures import Batch, Geometry, Segmentation


def segmenter(dims=2):
    torch.manual_seed(0)
    backbone = Simple(spatial_dims=dims, in_channels=1, channels=(4, 8), strides=(2, 4))
    head = FCN(backbone.channels, backbone.strides, num_classes=2, spatial_dims=dims)
    model = Segmenter(backbone, None, head)
    model.config = {"not": "stored"}
    return model


class Poisoned(Supervised):
    """The loss of the batch of "2a.png" is NaN."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * float("nan") if "2a.png" in batch.sources else loss


def batches(count=4, dims=2):
    """Bright bars on noise."""
    size = (8, 12, 16)[-dims:]
    made = []
    for i in range(count):
        generator = torch.Generator().manual_seed(i)
        images = torch.rand((2, 1, *size), generator=generator)
        labels = torch.zeros((2, *size), dtype=torch.long)
        labels[..., 2:6] = 1
        images = images + 2 * labels[:, None]
        geometries = [Geometry.identity(size)] * 2
        truths = [Segmentation(class_map=label) for label in labels]
        made.append(Batch(images, labels, geometries, truths=truths, sources=[f"{i}a.png", f"{i}b.png"]))
    return made


class Always:
    """A dataset of ready batches."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def loader(items):
    return DataLoader(Always(items), batch_size=None)


class Count:
    """A metric that counts."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.images = 0

    def update(self, predictions, truths):
        assert all(p.size == t.size for p, t in zip(predictions, truths, strict=True))
        self.images += len(predictions)

    def compute(self):
        return {"images": float(self.images)}


def fit(method, train, val=None, callbacks=(), **options):
    options = {"max_epochs": 2, **options}
    trainer = pl.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, callbacks=list(callbacks), **options,
    )  # fmt: skip
    trainer.fit(method, loader(train), loader(val) if val is not None else None)
    return trainer


SGD = partial(torch.optim.SGD, lr=0.1)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("channels_last", [False, True])
def test_loss_falls_and_scores_are_logged(dims, channels_last):
    train = batches(dims=dims)
    method = Supervised(segmenter(dims), SGD, partial(cosine, warmup=0), Count(), channels_last=channels_last)
    images = method.segmenter.normalize(train[0].images)
    before = method.segmenter.loss(images, train[0].targets)["cross_entropy"].item()
    trainer = fit(method, train, train[:2], max_epochs=5)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert logged["val/images"] == 4
    assert logged["train/loss"] == pytest.approx(logged["train/cross_entropy"])
    assert logged["train/loss"] < before
    assert {"val/loss", "val/cross_entropy", "learning_rate"} <= logged.keys()


def test_channels_last_changes_layout_and_not_results():
    plain, reordered = (Supervised(segmenter(), SGD, channels_last=flag) for flag in (False, True))
    convolutions = [m for m in reordered.segmenter.modules() if isinstance(m, torch.nn.Conv2d)]
    assert all(m.weight.is_contiguous(memory_format=torch.channels_last) for m in convolutions)
    images = torch.rand(2, 1, 12, 16)
    outputs = [m.segmenter.eval()(images)["logits"] for m in (plain, reordered)]
    torch.testing.assert_close(*outputs)


def test_schedule_spans_the_optimizer_steps_of_the_run():
    seen = []

    def scheduler(optimizer, total_steps):
        seen.append(total_steps)
        return constant(optimizer, total_steps, warmup=0)

    fit(Supervised(segmenter(), SGD, scheduler), batches(4), max_epochs=3)
    fit(Supervised(segmenter(), SGD, scheduler), batches(4), max_epochs=3, accumulate_grad_batches=2)
    fit(Supervised(segmenter(), SGD, scheduler), batches(4), max_epochs=-1, max_steps=7)
    assert seen == [12, 6, 7]


def test_run_without_end_has_no_schedule():
    method = Supervised(segmenter(), SGD, partial(cosine, warmup=0))
    with pytest.raises(ConfigError, match="epochs=N or max_steps=N"):
        fit(method, batches(1), max_epochs=-1)


def test_backbone_factor_reaches_the_optimizer():
    method = Supervised(segmenter(), SGD, backbone_learning_rate_factor=0.5)
    rates = {group["name"]: group["lr"] for group in method.configure_optimizers().param_groups}
    assert rates["backbone"] == 0.05
    assert rates["model"] == 0.1


def test_optimizer_without_a_rate_is_refused():
    with pytest.raises(ConfigError, match="learning rate"):
        Supervised(segmenter(), torch.optim.SGD)


def test_unlabelled_batch_is_refused():
    batch = batches(1)[0]
    batch.targets = None
    with pytest.raises(ConfigError, match="needs labels"):
        fit(Supervised(segmenter(), SGD), [batch])


def test_guard_stops_before_weights_are_nan_and_names_the_images():
    method = Poisoned(segmenter(), SGD)
    with pytest.raises(NonFiniteLossError, match=r"step 2 .*2a\.png, 2b\.png"):
        fit(method, batches(4), callbacks=[NaNGuard()])
    weights = dict(method.segmenter.named_parameters())
    assert all(bool(value.isfinite().all()) for value in weights.values())


def test_without_the_guard_weights_do_become_nan():
    method = Poisoned(segmenter(), SGD)
    fit(method, batches(4), max_epochs=1)
    assert not state_is_finite(method)


def test_guard_sees_gradients_of_a_finite_loss():
    class Explode(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * float("inf")

    class Exploding(Supervised):
        def training_step(self, batch, batch_idx):
            return Explode.apply(super().training_step(batch, batch_idx))

    with pytest.raises(NonFiniteLossError, match="not finite at step 0"):
        fit(Exploding(segmenter(), SGD), batches(1), callbacks=[NaNGuard()])


def test_guard_names_all_images_of_an_accumulated_step():
    with pytest.raises(NonFiniteLossError, match=r"images 2a\.png, 2b\.png, 3a\.png, 3b\.png"):
        fit(Poisoned(segmenter(), SGD), batches(4), callbacks=[NaNGuard()], accumulate_grad_batches=2)
