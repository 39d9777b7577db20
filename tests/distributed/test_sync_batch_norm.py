import pytest
import torch
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from torch import nn

from pixvox.assembly import build_trainer
from pixvox.configuration import compose
from pixvox.distributed.strategies import check_support
from pixvox.distributed.sync_batch_norm import SyncBatchNorms
from pixvox.errors import ConfigError
from pixvox.models import create_model
from pixvox.training.run_folder import RunFolder

NETWORKS = [("repvgg", 2), ("mobilenetv3", 2), ("mobilenetv3", 3), ("resnet18", 2)]


@pytest.mark.parametrize(("backbone", "dims"), NETWORKS)
def test_norms_keep_what_timm_puts_behind_them(backbone, dims):
    torch.manual_seed(0)
    model = create_model("fcn", backbone, 2, dims, 3).eval()
    image = torch.randn(1, 3, *(32,) * dims)
    expected = model(image)["logits"]
    plugin = SyncBatchNorms()
    synced = plugin.apply(model)
    norms = [module for module in synced.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert norms and all(isinstance(module, nn.SyncBatchNorm) for module in norms)
    assert torch.equal(synced(image)["logits"], expected)
    with torch.no_grad():
        for module in norms:
            module.weight.add_(0.5)
            module.running_mean.add_(0.25)
    changed = synced(image)["logits"]
    reverted = plugin.revert(synced)
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in reverted.modules())
    assert torch.equal(reverted(image)["logits"], changed)
    assert not torch.equal(changed, expected)


def test_trainer_gets_the_plugin_beside_the_users_own(tmp_path):
    config = compose(
        "train",
        ["trainer=ddp", "trainer.sync_batchnorm=true", "logger=none", "trainer.accelerator=cpu",
         "+trainer.plugins=[{_target_: lightning.pytorch.plugins.io.AsyncCheckpointIO}]"],
    )  # fmt: skip
    trainer = build_trainer(config, RunFolder(tmp_path), None, "max")
    assert isinstance(trainer.strategy._layer_sync, SyncBatchNorms)
    assert isinstance(trainer.strategy.checkpoint_io, AsyncCheckpointIO)


def test_sharded_training_refuses_what_it_would_not_do():
    with pytest.raises(ConfigError, match="sync_batchnorm=true does nothing with trainer=fsdp2"):
        check_support(compose("train", ["trainer=fsdp2", "+trainer.sync_batchnorm=true"]))
