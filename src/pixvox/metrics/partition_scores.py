"""Scores of label maps as partitions of the voxels, as in connectomics: they need no matching of objects."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from jaxtyping import Float

from pixvox.metrics.contingency import ContingencyTable
from pixvox.metrics.metric import ratio


def adapted_rand_error(table: ContingencyTable) -> dict[str, float]:
    """Return ``ARAND``, 1 minus the F score of pairs of voxels, with ``ARAND_precision`` and ``ARAND_recall``.

    Of all pairs of voxels within a predicted object, the precision is the share that lies within one true object; the
    recall is the same the other way round. Voxels that are background in the truth are left out, as in SNEMI3D;
    predicted background is one more object, as in scikit-image: what is missed of many objects counts as merged.
    "Crowdsourcing the creation of image segmentation algorithms for connectomics" (Arganda-Carreras et al., 2015,
    https://doi.org/10.3389/fnana.2015.00142).
    """
    overlaps = table.overlaps
    missed = _uncovered(overlaps.true, overlaps.true_sizes, overlaps.counts)
    predicted = np.bincount(overlaps.predicted, overlaps.counts, len(overlaps.predicted_ids))
    both = _pairs_within(overlaps.counts) + _pairs_within(missed)
    same_predicted = _pairs_within(predicted) + _pairs_within(missed.sum())
    same_true = _pairs_within(overlaps.true_sizes)
    return {
        "ARAND": 1 - float(ratio(2 * both, same_predicted + same_true)),
        "ARAND_precision": float(ratio(both, same_predicted)),
        "ARAND_recall": float(ratio(both, same_true)),
    }


def variation_of_information(table: ContingencyTable) -> dict[str, float]:
    """Return ``VOI = VOI_split + VOI_merge`` in bits, 0 for equal partitions.

    The split part is the entropy of the prediction within true objects, which grows when objects are cut; the merge
    part is that of the truth within predicted ones, which grows when objects run together. Background is an object on
    both sides. "Comparing clusterings: an information based distance" (Meilă, 2007,
    https://doi.org/10.1016/j.jmva.2006.11.013).
    """
    overlaps = table.overlaps
    spurious = _uncovered(overlaps.predicted, overlaps.predicted_sizes, overlaps.counts)
    missed = _uncovered(overlaps.true, overlaps.true_sizes, overlaps.counts)
    neither = table.voxels - overlaps.counts.sum() - spurious.sum() - missed.sum()
    joint = _entropy([overlaps.counts, spurious, missed, neither], table.voxels)
    predicted = _entropy([overlaps.predicted_sizes, missed.sum() + neither], table.voxels)
    true = _entropy([overlaps.true_sizes, spurious.sum() + neither], table.voxels)
    # Differences of equal entropies may be a rounding below 0.
    split, merge = (float(np.maximum(0, joint - side)) for side in (true, predicted))
    return {"VOI": split + merge, "VOI_split": split, "VOI_merge": merge}


def _uncovered(
    index: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]
) -> Float[np.ndarray, " objects"]:
    """Return how many voxels of each object are background on the other side."""
    rest: npt.NDArray[np.float64] = sizes.astype(np.float64) - np.bincount(index, counts, len(sizes))
    return rest


def _pairs_within(sizes: npt.ArrayLike) -> float:
    """Return twice the number of pairs of voxels within objects of these sizes."""
    values = np.asarray(sizes, dtype=np.float64)
    return float((values * (values - 1)).sum())


def _entropy(parts: list[npt.ArrayLike], voxels: int) -> float:
    """Return the entropy in bits of a partition into parts of these sizes; NaN of nothing."""
    sizes = np.concatenate([np.atleast_1d(np.asarray(part, dtype=np.float64)) for part in parts])
    share = ratio(sizes[sizes > 0], voxels)
    return float(-(share * np.log2(share)).sum()) if voxels else float("nan")
