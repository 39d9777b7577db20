"""How the processes of a training share model and gradients: strategies of Lightning that a configuration names."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from pixvox.distributed.launch import on_cuda
from pixvox.errors import ConfigError

if TYPE_CHECKING:
    from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy


def ddp(find_unused_parameters: bool = False, timeout: float = 1800.0) -> DDPStrategy:
    """Return distributed data parallelism: each process holds the model, and gradients are averaged.

    "PyTorch Distributed: Experiences on Accelerating Data Parallel Training" (Li et al., 2020,
    https://arxiv.org/abs/2006.15704). Processes exchange by NCCL on NVIDIA GPUs and by gloo on CPUs.

    Args:
        find_unused_parameters: Look for parameters without a gradient in every step. No part of pixvox needs
            it; a part of your own that uses some parameters in some steps only does.
        timeout: Seconds to wait for the other processes before giving up.
    """
    from lightning.pytorch.strategies import DDPStrategy

    return DDPStrategy(
        find_unused_parameters=find_unused_parameters, timeout=timedelta(seconds=_positive(timeout))
    )


def fsdp2(timeout: float = 1800.0) -> ModelParallelStrategy:
    """Return fully sharded data parallelism: each process holds a share of weights, gradients and moments.

    "PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel" (Zhao et al., 2023,
    https://arxiv.org/abs/2304.11277), in its second form (``torch.distributed.fsdp.fully_shard``), on GPUs and
    CPUs; ``pixvox.distributed.sharding`` chooses what is gathered at once. Checkpoints are whole files, as of any
    other training: they load and resume anywhere.

    Args:
        timeout: Seconds to wait for the other processes before giving up.
    """
    from lightning.pytorch.strategies import ModelParallelStrategy

    return ModelParallelStrategy(
        data_parallel_size="auto",
        tensor_parallel_size="auto",
        save_distributed_checkpoint=False,
        timeout=timedelta(seconds=_positive(timeout)),
    )


def check_support(config: DictConfig) -> None:
    """Refuse what a strategy cannot do, before processes are started.

    Args:
        config: A composed configuration.

    Raises:
        ConfigError: If the trainer's strategy does not go with its precision, averages, tiles or batch norms.
    """
    sharded = str(OmegaConf.select(config, "trainer.strategy._target_")) == f"{__name__}.fsdp2"
    if sharded and config.precision not in ("32-true", "bf16-mixed"):
        raise ConfigError(
            f"precision={config.precision} does not go with trainer=fsdp2, whose gradients are sharded; choose "
            "precision=bf16-mixed or 32-true, or trainer=ddp"
        )
    if sharded and config.get("ema_decay") is not None:
        raise ConfigError(
            f"ema_decay={config.ema_decay} does not go with trainer=fsdp2: an average of sharded weights is not kept; "
            "choose trainer=ddp, or ema_decay=null"
        )
    if sharded and config.trainer.get("sync_batchnorm"):
        raise ConfigError(
            "trainer.sync_batchnorm=true does nothing with trainer=fsdp2; choose trainer=ddp, or a norm that does not "
            "look at the batch, such as backbone.norm=group"
        )
    if sharded and OmegaConf.select(config, "inference.tile_size"):
        raise ConfigError(
            f"inference.tile_size={config.inference.tile_size} does not go with trainer=fsdp2: processes whose images "
            "have other numbers of tiles would wait for one another for ever; choose trainer=ddp, or give it to pixvox "
            "evaluate and pixvox predict instead"
        )
    if config.trainer.get("sync_batchnorm") and not on_cuda(config):
        raise ConfigError(
            "trainer.sync_batchnorm=true works on GPUs only; on the CPU choose a norm that does not look at the batch, "
            "such as backbone.norm=group"
        )


def _positive(timeout: float) -> float:
    if timeout <= 0:
        raise ConfigError(f"trainer.strategy.timeout={timeout}: it takes seconds, more than 0")
    return timeout
