"""The families of foreign checkpoints that can be loaded, one module each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from torch import Tensor

from pixvox.weights import deformable_detr, lw_detr, mask2former, maskdino, rf_detr, solo, upernet

if TYPE_CHECKING:
    from pixvox.segmenter import Segmenter


@runtime_checkable
class Family(Protocol):
    """What the module of a family offers."""

    def matches(self, state: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> bool:
        """Tell whether a checkpoint is of this family.

        Args:
            state: Its tensors by name.
            config: Content of the ``config.json`` beside it, None when there is none.
        """

    def build(self, state: Mapping[str, Tensor], config: Mapping[str, Any] | None, source: Path) -> Segmenter:
        """Return the model that the checkpoint is of, with its weights.

        Args:
            state: Its tensors by name.
            config: Content of the ``config.json`` beside it, None when there is none.
            source: The folder or file it came from, for messages.

        Raises:
            WeightsError: If a key is missing or has no counterpart.
        """


FAMILIES: tuple[Family, ...] = (mask2former, maskdino, deformable_detr, lw_detr, rf_detr, solo, upernet)
NAMES = "Mask2Former, Mask DINO, Deformable DETR, LW-DETR, RF-DETR, UPerNet and mmdet's SOLO heads"
"""Of the families, for messages."""


def find_family(state: Mapping[str, Tensor], config: Mapping[str, Any] | None) -> Family | None:
    """Return the family that a checkpoint is of, None when it is of none that is known."""
    return next((family for family in FAMILIES if family.matches(state, config)), None)
