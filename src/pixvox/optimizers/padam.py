"""Padam: a power of Adam's second moment, between Adam and SGD."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class Padam(Optimizer):
    """Partially adaptive moments: AMSGrad's second moment to the power ``partial`` instead of a half.

    "Closing the Generalization Gap of Adaptive Gradient Methods in Training Deep Neural Networks" (Chen et al.,
    2020, https://arxiv.org/abs/1806.06763). With gradient ``g`` (weight decay added), ``m`` and ``v`` its running
    first and second moments and ``u`` the largest ``v`` so far::

        p -= lr * sqrt(1 - beta2 ** t) / (1 - beta1 ** t) * m / (sqrt(u) + eps) ** (2 * partial)

    At ``partial=0.5`` this is Adam with AMSGrad but for the place of ``eps``; at 0 it is SGD with momentum
    ``beta1`` and a corrected start. Good learning rates lie between those of the two, the paper's at 0.1.

    Args:
        params: Parameters or groups of them.
        lr: Learning rate.
        betas: Decay of the first and second moment, each in [0, 1).
        eps: Added to the root of the second moment.
        weight_decay: Added to the gradient as this share of the parameter.
        partial: The power; the paper's in [0, 0.5], negative ones are taken too.
        amsgrad: Keep the largest second moment; else the second moment itself.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> weight = torch.tensor([1.0], requires_grad=True)
        >>> optimizer = Padam([weight], lr=0.1, partial=0.0)
        >>> (2 * weight).sum().backward()
        >>> optimizer.step()
        >>> round(weight.item(), 4)  # 1 - 0.1 * sqrt(0.001) / 0.1 * 0.2
        0.9937
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] | list[float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        partial: float = 0.25,
        amsgrad: bool = True,
    ) -> None:
        if lr < 0 or eps < 0 or weight_decay < 0:
            raise ValueError(f"lr, eps and weight_decay are 0 or more, got {lr}, {eps} and {weight_decay}")
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas are two numbers in [0, 1), got {list(betas)}")
        if partial > 0.5:
            raise ValueError(f"partial={partial}: it is at most 0.5, which is Adam; 0 is SGD with momentum")
        defaults = {
            "lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay, "partial": partial,
            "amsgrad": amsgrad,
        }  # fmt: skip
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update the parameters; return what ``closure`` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        if gradient.is_sparse:
            raise ValueError("Padam does not take sparse gradients; use optimizer=sgd")
        state: dict[str, Any] = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())  # a tensor on the host, as in torch's own optimisers
            for moment in ("exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if group["amsgrad"] else [])):
                state[moment] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        state["step"] += 1
        steps, (beta1, beta2) = float(state["step"]), group["betas"]
        if group["weight_decay"]:
            gradient = gradient.add(parameter, alpha=group["weight_decay"])
        first, second = state["exp_avg"], state["exp_avg_sq"]
        first.lerp_(gradient, 1 - beta1)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        if group["amsgrad"]:
            second = torch.maximum(state["max_exp_avg_sq"], second, out=state["max_exp_avg_sq"])
        scale = second.sqrt().add_(group["eps"]).pow_(2 * group["partial"])
        size = group["lr"] * (1 - beta2**steps) ** 0.5 / (1 - beta1**steps)
        parameter.addcdiv_(first, scale, value=-float(size))
