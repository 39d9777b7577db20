"""Which parts of a model are sharded over processes, and gathered together when they compute."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

WHOLE = (nn.MultiheadAttention,)
"""Modules that read the weights of their children without calling them: gathered as one."""


def units(model: nn.Module, min_parameters: int) -> list[nn.Module]:
    """Return the modules to gather one at a time, inner ones first, the model itself last.

    A module is a unit when it has ``min_parameters`` beyond those of units inside it. So stages and blocks of
    any backbone or head are found by their size, without being named.

    Args:
        model: A module that is called as a whole.
        min_parameters: Fewest parameters of a unit; many small messages cost more than they save.

    Example:
        >>> model = nn.Sequential(nn.Linear(10, 10), nn.Sequential(nn.Linear(10, 5), nn.Linear(5, 2)))
        >>> [type(unit).__name__ for unit in units(model, min_parameters=60)]
        ['Linear', 'Sequential', 'Sequential']
    """
    found: list[nn.Module] = []
    taken: set[Tensor] = set()

    def visit(module: nn.Module) -> None:
        if not isinstance(module, WHOLE):
            for child in module.children():
                visit(child)
        own = {parameter for parameter in module.parameters() if parameter not in taken}
        large = sum(parameter.numel() for parameter in own) >= min_parameters
        if module is model or (large and _is_called(module)):
            found.append(module)
            taken.update(own)

    visit(model)
    return found


def _is_called(module: nn.Module) -> bool:
    """Lists and dictionaries of modules are never called, so nothing would gather their weights."""
    return not isinstance(module, (nn.ModuleList, nn.ModuleDict))


def shard(model: nn.Module, device: torch.device, min_parameters: int = 100_000) -> None:
    """Shard a model over all processes, in place; once is enough.

    Args:
        model: The same in every process.
        device: Where this process computes.
        min_parameters: Fewest parameters that are gathered at once.
    """
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    if isinstance(model, FSDPModule):
        return
    mesh: DeviceMesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for unit in units(model, min_parameters):
        fully_shard(unit, mesh=mesh)


def local_part(tensor: Tensor) -> Tensor:
    """Return the share of a tensor that this process holds: all of it, unless it is sharded."""
    from torch.distributed.tensor import DTensor

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
