"""Global pooling over a whole image, for a network that sees the image tile by tile.

DeepLab's image pooling, BiSeNet's context and squeeze-and-excitation take the mean over all that the network sees. In a
tile that is another mean than in the image, so the same network segments a tile worse: a first pass over tiles gathers
the means of the image, a second one uses them. Pools of ``pixvox.layers`` take part; those inside networks of timm, as
in EfficientNet's squeeze-and-excitation, keep the mean of the tile.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from jaxtyping import Float
from torch import Tensor

_using: ContextVar[ImageMeans | None] = ContextVar("_using", default=None)


class ImageMeans:
    """The means that the global pools of a network give for an image.

    Pools are told apart by their order in a forward pass. What one gathers that comes after another was made with the
    other's mean of a tile, and so comes close to the mean of the image.

    Example:
        >>> import torch
        >>> tiles, means = torch.tensor([1.0, 2.0, 6.0]).view(3, 1, 1), ImageMeans()
        >>> with means.gather(torch.tensor([0.25, 0.5, 0.25])):
        ...     mean_of_image(tiles).flatten()
        tensor([1., 2., 6.])
        >>> with means.use():
        ...     mean_of_image(tiles[:1]).flatten()
        tensor([2.7500])
    """

    def __init__(self) -> None:
        self._sums: list[Tensor] = []
        self._total = 0.0
        self._shares: Tensor | None = None
        self._call = 0

    @property
    def found(self) -> bool:
        """Whether the network has a global pool at all."""
        return bool(self._sums)

    def state(self) -> dict[str, Any]:
        """Return what ``restored`` takes, as tensors and numbers."""
        return {"sums": [total.cpu() for total in self._sums], "total": self._total}

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> ImageMeans:
        """Return the means whose ``state`` was kept."""
        means = cls()
        means._sums, means._total = list(state["sums"]), float(state["total"])
        return means

    @contextmanager
    def gather(self, shares: Float[Tensor, " batch"]) -> Iterator[None]:
        """Note the means of a batch of tiles in the forward pass inside.

        Args:
            shares: How much of the image each tile stands for, in any unit.
        """
        self._total += float(shares.sum())
        with self._pass(shares):
            yield

    @contextmanager
    def use(self) -> Iterator[None]:
        """Let the forward pass inside have the means of the image."""
        with self._pass(None):
            yield

    @contextmanager
    def _pass(self, shares: Tensor | None) -> Iterator[None]:
        self._shares, self._call = shares, 0
        token = _using.set(self)
        try:
            yield
        finally:
            _using.reset(token)

    def of(self, means: Float[Tensor, "batch channels *ones"]) -> Float[Tensor, "batch channels *ones"]:
        """Return what the next pool of a forward pass is to give where a tile alone gives ``means``."""
        call, self._call = self._call, self._call + 1
        if self._shares is None:
            return (self._sums[call] / self._total).to(means).expand_as(means)
        weights = self._shares.to(means.device).view(-1, *[1] * (means.dim() - 1))
        sums = (means.float() * weights).sum(dim=0, keepdim=True)
        if call == len(self._sums):
            self._sums.append(sums)
        else:
            self._sums[call] += sums
        return means


def mean_of_image(means: Float[Tensor, "batch channels *ones"]) -> Float[Tensor, "batch channels *ones"]:
    """Return the means that a global pool gives: those given, but in a tile those of its image."""
    image = _using.get()
    return means if image is None else image.of(means)
