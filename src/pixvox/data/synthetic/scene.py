"""What all synthetic pictures are made of: an image, its truth, and the rule of what may cover what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pixvox.data.sample import Sample, intensity_range


@dataclass(frozen=True)
class Scene:
    """One image (channels, height, width), its label map with ids 1..n, and the class of each id."""

    image: np.ndarray
    label_map: np.ndarray
    labels: np.ndarray

    def with_ground(self, label: int) -> Scene:
        """Return the scene with all that is no object as one more region, of the class ``label``."""
        ground = self.label_map == 0
        if not ground.any():
            return self
        label_map = np.where(ground, len(self.labels) + 1, self.label_map).astype(self.label_map.dtype)
        return Scene(self.image, label_map, np.append(self.labels, label))

    def sample(self, source: str, index: int, semantic: bool, percentiles: tuple[float, float]) -> Sample:
        """Return the sample; a semantic one has a background class in front."""
        sample = Sample(
            image=torch.from_numpy(self.image.astype(np.float32)),
            source=source,
            index=index,
            intensity_range=intensity_range(self.image, percentiles),
        )
        if semantic:
            of_class = np.concatenate([[0], self.labels + 1])
            sample.class_map = torch.from_numpy(of_class[self.label_map])
            return sample
        sample.layers = torch.from_numpy(self.label_map)[None]
        sample.labels = torch.from_numpy(self.labels)
        sample.ignore = torch.zeros(len(self.labels), dtype=torch.bool)
        return sample


def may_cover(
    mask: np.ndarray, label_map: np.ndarray, full: Sequence[int], overlap: float, min_area: int
) -> bool:
    """Return whether a new object may be put over the earlier ones.

    Args:
        mask: The new object.
        label_map: What is seen of the objects 1..n.
        full: Area of each object as drawn, before later ones covered a part.
        overlap: Largest share of an object that may be covered.
        min_area: Pixels of which less is no object.
    """
    if int(mask.sum()) < min_area:
        return False
    after = np.bincount(label_map[~mask], minlength=len(full) + 1)[1:]
    return all(
        seen >= max(min_area, (1 - overlap) * area) for seen, area in zip(after.tolist(), full, strict=True)
    )
