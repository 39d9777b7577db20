"""Draw the splits that a dataset does not have, by seed."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from pixvox.data.dataset import Dataset, Subset, seeded_subset
from pixvox.errors import DataError

logger = logging.getLogger(__name__)


def drawn_splits(dataset: Dataset, shares: Mapping[str, float], seed: int) -> dict[str, Dataset]:
    """Return disjoint random parts of a dataset by name, and what is left as ``train``.

    The same dataset and seed give the same parts. The first part is the same whatever the others are. Images
    without annotations stay in ``train``: nothing can be scored on them.

    Args:
        dataset: What is divided.
        shares: Share of the annotated images by name of the part, in (0, 1), together less than 1.
        seed: Seed of the draw.

    Raises:
        DataError: If a share is out of range, or there are too few images for every part to have one.

    Example:
        >>> from pixvox.data.synthetic.shapes import Shapes
        >>> parts = drawn_splits(Shapes(10, seed=0), {"val": 0.2, "test": 0.1}, seed=42)
        >>> {name: len(part) for name, part in parts.items()}
        {'train': 7, 'val': 2, 'test': 1}
    """
    for name, share in shares.items():
        if not 0 < share < 1:
            raise DataError(f"{name}_fraction must lie between 0 and 1, got {share}")
    if sum(shares.values()) >= 1:
        raise DataError(
            f"the shares {dict(shares)} leave nothing to train on; together they must stay below 1"
        )
    missing = set(dataset.unlabelled_indices())
    annotated = [index for index in range(len(dataset)) if index not in missing]
    name = dataset.metadata.name or "the dataset"
    if len(annotated) <= len(shares):
        raise DataError(
            f"{name} has {len(annotated)} annotated images, and no split {' and no split '.join(shares)}; "
            f"at least {len(shares) + 1} are needed"
        )
    chosen: dict[str, set[int]] = {}
    taken: list[int] = []
    for number, (part, share) in enumerate(shares.items()):
        spare = len(shares) - number  # at least one image for train and for each part to come
        wanted = min(max(1, round(share * len(annotated))), len(annotated) - len(taken) - spare)
        # A larger subset holds the smaller ones: what it has more is the next part.
        upto = seeded_subset(len(annotated), len(taken) + wanted, seed)
        chosen[part] = {annotated[place] for place in upto} - set(taken)
        taken += sorted(chosen[part])
        logger.info(
            "%s: no %s split: %d of %d images drawn with seed %d", name, part, wanted, len(annotated), seed
        )
    rest = set(taken)
    parts: dict[str, Dataset] = {
        "train": Subset(dataset, [index for index in range(len(dataset)) if index not in rest])
    }
    return parts | {part: Subset(dataset, sorted(indices)) for part, indices in chosen.items()}
