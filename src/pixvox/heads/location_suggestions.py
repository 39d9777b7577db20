"""What the heads of the SOLO family make of a dataset's fingerprint: grids and candidates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pixvox.data.suggestions import Suggestion, by
from pixvox.heads.locations import grids_of, ranges_of

if TYPE_CHECKING:
    from pixvox.data.fingerprint import Fingerprint

SOLO = "SOLO (Wang et al., 2020, https://arxiv.org/abs/1912.04488)"
_CELLS = 2  # along the side of a small object, so that two neighbours hardly ever want the same cell
_FEWEST = 4
_CANDIDATES = 4  # cells that see the same object, before suppression


def suggest_locations(
    facts: Fingerprint, strides: Sequence[Sequence[int]], patch: Sequence[int], most: int
) -> list[Suggestion]:
    """Return options of the heads by their names; see ``LocationHead``.

    Args:
        facts: The fingerprint, in the pixels that the network sees.
        strides: Strides of each level, per axis in array order.
        patch: Size of the training images.
        most: Most cells along an axis.
    """
    if not len(facts.object_sides):
        return []
    crowd = facts.count(99.9)
    found = [
        Suggestion(
            "num_grids", _grids(facts, strides, patch, most),
            f"sides {by(facts.side(5))} (5th percentile) to {by(facts.side(95))} (95th), patches of {by(patch)}",
            f"{_CELLS} cells along a small object of each level keep neighbours in cells of their own; from {_FEWEST} "
            f"to {most} along an axis", SOLO,
        )
    ]  # fmt: skip
    candidates = 100 * math.ceil(_CANDIDATES * crowd / 100)
    if candidates > 500:
        read = f"an image holds up to {crowd:.0f} objects (99.9th percentile)"
        found.append(
            Suggestion("num_candidates", candidates, read, f"{_CANDIDATES} cells may see the same object")
        )
    return found


def _grids(
    facts: Fingerprint, strides: Sequence[Sequence[int]], patch: Sequence[int], most: int
) -> list[list[int]]:
    """Return the cells along each axis for each level; a level without objects keeps the default."""
    sides = np.maximum(facts.object_sides, 1.0)
    scale = np.exp(np.log(sides).mean(axis=1))
    grids = []
    for usual, (least, greatest) in zip(
        grids_of("auto", len(strides), len(patch)), ranges_of("auto", strides), strict=True
    ):
        own = sides[(scale >= least) & (scale <= greatest)]
        wanted = _CELLS * np.array(patch) / np.percentile(own, 5, axis=0) if len(own) else np.array(usual)
        grids.append([min(most, max(_FEWEST, math.ceil(cells))) for cells in wanted])
    return grids
