"""Boxes as offsets to anchors or proposals, and back."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


class BoxCoder:
    """Encode boxes relative to references: shifts of the centre in sizes, and logarithms of size ratios.

    "R-CNN" (Girshick et al., 2014, https://arxiv.org/abs/1311.2524), for any number of dimensions; in 2-D
    equal to torchvision's ``det_utils.BoxCoder``.

    Args:
        weights: Factors of the codes: one for centres and one for sizes, or one per coordinate.
        clip: Greatest logarithm of a size ratio that is decoded, against overflow.

    Example:
        >>> coder = BoxCoder(weights=(10.0, 5.0))
        >>> reference = torch.tensor([[0.0, 0, 0, 4, 4, 4]])
        >>> codes = coder.encode(torch.tensor([[2.0, 0, 0, 6, 4, 4]]), reference)
        >>> codes.tolist(), coder.decode(codes, reference).tolist()
        ([[5.0, 0.0, 0.0, 0.0, 0.0, 0.0]], [[2.0, 0.0, 0.0, 6.0, 4.0, 4.0]])
    """

    def __init__(self, weights: Sequence[float] = (1.0, 1.0), clip: float = math.log(1000.0 / 16)) -> None:
        if len(weights) not in (2, 4, 6):
            raise ValueError(
                f"weights are (centre, size) or one per coordinate (4 or 6), got {len(weights)}: {weights}"
            )
        self.weights = tuple(float(weight) for weight in weights)
        self.clip = clip

    def encode(
        self, boxes: Float[Tensor, "*batch sides"], references: Float[Tensor, "*batch sides"]
    ) -> Float[Tensor, "*batch sides"]:
        """Return the codes ``[dx, dy, (dz,) dw, dh, (dd)]`` of boxes relative to references, one to one."""
        centre, size = _centre_size(boxes)
        reference_centre, reference_size = _centre_size(references)
        codes = torch.cat(
            [(centre - reference_centre) / reference_size, (size / reference_size).log()], dim=-1
        )
        return codes * self._factors(codes)

    def decode(
        self, codes: Float[Tensor, "*batch sides"], references: Float[Tensor, "*#batch sides"]
    ) -> Float[Tensor, "*batch sides"]:
        """Return the boxes that codes stand for; references broadcast: ``(n, 1, sides)`` for all classes."""
        codes = codes / self._factors(codes)
        half = codes.shape[-1] // 2
        centre, size = _centre_size(references)
        centre = codes[..., :half] * size + centre
        size = codes[..., half:].clamp(max=self.clip).exp() * size
        return torch.cat([centre - size / 2, centre + size / 2], dim=-1)

    def _factors(self, codes: Tensor) -> Tensor:
        sides = codes.shape[-1]
        if len(self.weights) == 2:
            return codes.new_tensor([self.weights[0]] * (sides // 2) + [self.weights[1]] * (sides // 2))
        if len(self.weights) != sides:
            raise ValueError(f"{len(self.weights)} weights do not fit boxes of {sides} coordinates")
        return codes.new_tensor(self.weights)


def _centre_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    half = boxes.shape[-1] // 2
    size = boxes[..., half:] - boxes[..., :half]
    return boxes[..., :half] + size / 2, size
