import pytest
import torch
from torch import nn

from pixvox.distributed.sync_batch_norm import SyncBatchNorms
from pixvox.models import create_model

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
