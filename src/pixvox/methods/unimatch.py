"""Learn classes of pixels from two strong views of unlabelled images at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pixvox.data.transforms.erasing import random_box
from pixvox.distributed.world import world_mean
from pixvox.errors import ConfigError
from pixvox.methods.mean_teacher import MeanTeacher
from pixvox.ranges import check_shares
from pixvox.segmenter import Segmenter
from pixvox.structures import IGNORE_INDEX, Batch, Features


class UniMatch(MeanTeacher):
    """Two strong views, whose features lose complementary channels, both learn what the teacher sees in the weak one.

    "UniMatch V2: Pushing the Limit of Semi-Supervised Semantic Segmentation" (Yang et al., 2024,
    https://arxiv.org/abs/2410.10777). The strong views are cut and mixed among the images of a batch ("CutMix", Yun et
    al., 2019, https://arxiv.org/abs/1905.04899), labels alike. Pixels that the teacher is not sure of take part in the
    mean with a loss of 0. For classes of pixels or voxels; objects learn with ``MeanTeacher``.

    Args:
        segmenter: The student, for semantic segmentation.
        dropout: Share of the images whose features lose half of their channels in each view: those that one view
            loses, the other keeps.
        cut_mix: Share of the images of each view that get a box of another image.
        cut_mix_share: Least and greatest share of the image that such a box covers.
        options: Further arguments of ``MeanTeacher``.

    Raises:
        ConfigError: If the model is not for semantic segmentation, or a number makes no sense.
    """

    strong_views = 2

    def __init__(
        self,
        segmenter: Segmenter,
        *args: Any,
        dropout: float = 0.5,
        cut_mix: float = 0.5,
        cut_mix_share: Sequence[float] = (0.02, 0.4),
        **options: Any,
    ) -> None:
        if segmenter.task != "semantic":
            raise ConfigError(
                f"method=unimatch is for semantic segmentation, this model for {segmenter.task}; choose "
                "method=mean_teacher"
            )
        if len(cut_mix_share) != 2 or not 0 < cut_mix_share[0] <= cut_mix_share[1] <= 1:
            raise ConfigError(
                f"method.cut_mix_share is an ascending range within 0..1, got {list(cut_mix_share)}"
            )
        try:
            check_shares(dropout=dropout, cut_mix=cut_mix)
        except ValueError as error:
            raise ConfigError(f"method: {error}") from error
        super().__init__(segmenter, *args, **options)
        self.dropout = dropout
        self.cut_mix, self.cut_mix_share = cut_mix, cut_mix_share

    def learn_from_teacher(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Return the student's loss on both strong views, and what to tell of their labels."""
        labels = self.pseudo_labels(batch)
        generator = torch.Generator()
        generator.manual_seed(sum(batch.seeds) % 2**32) if batch.seeds else generator.seed()
        mixed = [self._mixed(view, labels.targets, batch, generator) for view in batch.views]
        ranges, targets = batch.intensity_ranges, torch.cat([maps for _, maps in mixed])
        both = replace(
            batch,
            images=torch.cat([images for images, _ in mixed]),
            targets=targets,
            views=[],
            inside=None,
            geometries=2 * batch.geometries,
            intensity_ranges=None if ranges is None else torch.cat([ranges, ranges]),
            seeds=None if batch.seeds is None else 2 * batch.seeds,
        )
        loss = self.taught(both, lambda features: self._disturbed(features, generator))
        # The loss is a mean over what is known; what is not counts as 0.
        known = (targets != IGNORE_INDEX).sum()
        pixels = 2 * (batch.valid_sizes.prod(dim=1) if batch.inside is None else batch.inside).sum()
        share = (world_mean(known) / world_mean(pixels)).to(loss.device)
        return loss * share, self._facts(labels, batch)

    def _mixed(
        self,
        images: Float[Tensor, "batch channels *spatial"],
        labels: Any,
        batch: Batch,
        generator: torch.Generator,
    ) -> tuple[Tensor, Int[Tensor, "batch *spatial"]]:
        """Return images and labels with boxes from the batch in the other order.

        Images are not normalised yet: what is pasted is brought to the range of intensities of the image that gets it.
        Nothing is pasted into padding.
        """
        mixed, maps = images.clone(), labels.clone()
        for i, geometry in enumerate(batch.geometries):
            if torch.rand((), generator=generator) < self.cut_mix:
                other = len(images) - 1 - i
                box = random_box(geometry.valid_size, self.cut_mix_share, 3.0, generator)
                pasted = images[other][(slice(None), *box)]
                if batch.intensity_ranges is not None:
                    pasted = _at_range(pasted, batch.intensity_ranges[other], batch.intensity_ranges[i])
                mixed[i][(slice(None), *box)] = pasted
                maps[i][box] = labels[other][box]
        return mixed, maps

    def _disturbed(self, features: Features, generator: torch.Generator) -> Features:
        """Drop channels of some images: in the first view some, in the second the others."""
        count = len(features.images) // 2
        whole = torch.rand(count, 1, generator=generator) >= self.dropout
        levels = []
        for level in features.levels:
            first = 2.0 * (torch.rand(count, level.shape[1], generator=generator) < 0.5)
            factors = torch.cat([torch.where(whole, 1.0, first), torch.where(whole, 1.0, 2.0 - first)])
            shape = (*factors.shape, *(1,) * (level.dim() - 2))
            levels.append(level * factors.reshape(shape).to(level))
        return replace(features, levels=tuple(levels))


def _at_range(
    pixels: Float[Tensor, "channels *box"],
    own: Float[Tensor, "channels 2"],
    wanted: Float[Tensor, "channels 2"],
) -> Tensor:
    """Return pixels of one range of intensities as those of another; a range without width is only shifted."""
    shape = (-1,) + (1,) * (pixels.dim() - 1)
    low, high = (bound.reshape(shape) for bound in own.unbind(-1))
    first, last = (bound.reshape(shape) for bound in wanted.unbind(-1))
    factor = torch.where(high > low, (last - first) / (high - low), 1.0)
    return (pixels - low) * factor + first
