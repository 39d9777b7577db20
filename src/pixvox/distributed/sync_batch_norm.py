"""Batch norms that look at the images of all processes."""

from __future__ import annotations

from lightning.pytorch.plugins.layer_sync import TorchSyncBatchNorm
from timm.layers.norm_act import SyncBatchNormAct
from torch import nn


class SyncBatchNorms(TorchSyncBatchNorm):
    """Lightning's plugin, with what networks of timm do behind a norm in the same module: its activation.

    torch's conversion makes a plain norm of such a module, and the network would train without non-linearity.
    """

    def __init__(self) -> None:
        super().__init__()
        self._originals: dict[str, nn.Module] = {}

    def apply(self, model: nn.Module) -> nn.Module:
        """Replace the batch norms; what belongs to one of them goes with it."""
        self._originals = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and hasattr(module, "act")
        }
        model = super().apply(model)
        for name, original in self._originals.items():
            synced = model.get_submodule(name)
            synced.__class__ = SyncBatchNormAct
            synced.drop, synced.act = original.drop, original.act
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Put the norms of one process back, with what they have learned."""
        modes = {name: module.training for name, module in model.named_modules()}
        model = TorchSyncBatchNorm().revert(model)  # it calls itself, part by part
        for name, module in model.named_modules():
            module.training = modes[name]  # Lightning's new norms would learn
        for name, original in self._originals.items():
            learned = model.get_submodule(name)
            original.load_state_dict(learned.state_dict())
            original.train(learned.training).to(next(learned.buffers()).device)
            model.set_submodule(name, original)
        return model
