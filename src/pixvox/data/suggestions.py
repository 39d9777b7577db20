"""From the fingerprint of a dataset to values of the configuration, each with its reason.

The rules are pure functions. Here are those for the data; backbones, necks and heads know their own options and
answer for them (``suggest`` of each), so that nothing here knows which of them is used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from pixvox.data.fingerprint import Fingerprint

NNUNET = "nnU-Net (Isensee et al., 2021, https://doi.org/10.1038/s41592-020-01008-z)"
DETR = "DETR (Carion et al., 2020, https://arxiv.org/abs/2005.12872)"
FPN_PAPER = "FPN (Lin et al., 2017, https://arxiv.org/abs/1612.03144)"

_QUERIES_PER_OBJECT = 1.5
_LEAST_CELLS = 4  # feature cells that the coarsest level keeps along each axis
_LARGEST_BATCH = 16  # beyond it a learning rate found for small batches no longer serves
_DATA_SHARE = 0.05  # of all pixels of the dataset that one batch may hold
_MEMORY_SHARE = 0.6  # of the free memory that a step may take
_SATURATED = 0.01
_SPACINGS_DIFFER = 1.1  # of two images, on one axis
_RARE = 0.01


@dataclass(frozen=True)
class Suggestion:
    """One value of the configuration.

    Args:
        key: Key of the configuration, such as ``"image_size"``.
        value: What it should be, of plain types.
        read: The facts it follows from.
        why: The rule.
        source: Paper or tool that the rule comes from; empty for a rule of this package.
    """

    key: str
    value: Any
    read: str
    why: str
    source: str = ""


@dataclass(frozen=True)
class Budget:
    """What the machine at hand can hold and do.

    Args:
        device: ``"cpu"``, ``"cuda"`` or another kind of device.
        memory: Free bytes for a training.
        how: Where that number comes from.
    """

    device: str
    memory: int
    how: str

    def patch_pixels(self, spatial_dims: int) -> int:
        """Return the pixels or voxels that one patch may hold.

        On an accelerator 1024 x 1024, and in 3-D 128 x 128 x 128, the size of nnU-Net's patches; on a CPU, where
        time and not memory is short, 256 x 256 and 2^19 voxels.
        """
        if self.device == "cpu":
            return 2**16 if spatial_dims == 2 else 2**19
        return 2**20 if spatial_dims == 2 else 2**21

    def batch_pixels(self, spatial_dims: int) -> int:
        """Return the pixels or voxels that one step may hold: eight full patches, in 3-D two."""
        return self.patch_pixels(spatial_dims) * (8 if spatial_dims == 2 else 2)


@dataclass(frozen=True)
class StepMemory:
    """Memory of a training step.

    Args:
        fixed: Bytes of weights, gradients and optimiser, whatever the batch.
        per_image: Bytes that each image of the batch adds.
        how: How they were found.
    """

    fixed: int
    per_image: int
    how: str


def suggest_reading(
    facts: Fingerprint, percentiles: Sequence[float] | None, adam_from_scratch: bool
) -> list[Suggestion]:
    """Return what follows from intensities and kind of image: normaliser, transforms, learning rate.

    Args:
        facts: The fingerprint.
        percentiles: Those that normalisation uses now; None when they cannot be set.
        adam_from_scratch: True when no weights are loaded and the optimiser is of Adam's kind.
    """
    found = []
    limits = "; ".join(
        f"{lowest:g} | {low:g} .. {high:g} | {highest:g}"
        for lowest, low, high, highest in facts.channel_ranges
    )
    read = f"{', '.join(facts.dtypes) or 'number type unknown'}, lowest | percentiles | highest: {limits}"
    if is_photographs(facts):
        found.append(
            Suggestion(
                "normalizer", "imagenet", f"8-bit pictures in colour; {read}",
                "their scale means something: fixed mean and deviation", "torchvision, timm: ImageNet statistics",
            )
        )  # fmt: skip
    else:
        found.append(
            Suggestion(
                "normalizer", "percentile", read,
                "intensities have no common scale: each image by its own percentiles, clipped beyond", NNUNET,
            )
        )  # fmt: skip
    filled = facts.foreground[facts.foreground > 0]
    covered = float(np.percentile(filled, 5)) if len(filled) else 1.0
    sparse = percentiles is not None and covered < 2 * (100 - percentiles[1]) / 100
    if percentiles is not None and sparse and not is_photographs(facts) and facts.metadata.task == "instance":
        high = round(100 - 100 * covered / 4, 4)
        found.append(
            Suggestion(
                "data.options.percentiles", [percentiles[0], high],
                f"objects cover as little as {covered:.2%} of an image (5th percentile)",
                f"the upper percentile must lie inside the objects; at {percentiles[1]:g} it would cut them off",
            )
        )  # fmt: skip
    if adam_from_scratch:
        found.append(
            Suggestion(
                "learning_rate", 1e-3, "random weights, an optimiser of Adam's kind",
                "the usual step of Adam; published weights would ask for a tenth of it",
                "Adam (Kingma & Ba, 2015, https://arxiv.org/abs/1412.6980)",
            )
        )  # fmt: skip
    found.append(_transforms(facts))
    return found


def is_photographs(facts: Fingerprint) -> bool:
    """Tell whether the images are 8-bit pictures in colour without a physical scale."""
    return facts.coloured and facts.spatial_dims == 2 and facts.spacing is None


def _transforms(facts: Fingerprint) -> Suggestion:
    """Whole pictures where objects fill a good part of them, patches where size in pixels means something."""
    if is_photographs(facts) and len(facts.object_sides):
        share = max(large / length for large, length in zip(facts.side(95), facts.median_size, strict=True))
        if share > 0.25:
            return Suggestion(
                "transforms", "fit", f"pictures in colour, objects up to {share:.0%} of their side (95th percentile)",
                "a patch would cut large objects: whole pictures are resized to fit, with scale jitter",
                "Mask R-CNN (He et al., 2017, https://arxiv.org/abs/1703.06870)",
            )  # fmt: skip
    return Suggestion(
        "transforms", "crops", f"images of {by(facts.median_size)} (median)",
        "size in pixels means something: patches at native resolution, nothing is resized", NNUNET,
    )  # fmt: skip


def suggest_size(
    facts: Fingerprint, divisor: Sequence[int], budget: Budget, whole_pictures: bool
) -> tuple[Suggestion, float]:
    """Return the size of patches or resized pictures, and by how much pictures are resized.

    Args:
        facts: The fingerprint.
        divisor: The model pads to multiples of it, per axis.
        budget: What the machine can do.
        whole_pictures: True when images are resized to fit, False when patches are cut.
    """
    dims, allowed = facts.spatial_dims, budget.patch_pixels(facts.spatial_dims)
    if whole_pictures:
        # Pictures are looked at whole, so they may be larger than patches on a CPU.
        side = min(max(facts.median_size), math.isqrt(max(allowed, 2**18)))
        side = max(divisor[0], side // divisor[0] * divisor[0])
        factor = min(1.0, side / max(facts.median_size))
        return Suggestion(
            "image_size", side, f"median size {by(facts.median_size)}; {budget.device}",
            f"the longer side of the median picture, within {allowed} pixels; scale {factor:.2f}",
        ), factor  # fmt: skip
    size = [_up(length, step) for length, step in zip(facts.median_size, divisor, strict=True)]
    least = list(divisor)
    if len(facts.object_sides):  # a patch holds large objects whole, with as much again around them
        least = [
            min(length, _up(2 * side, step))
            for length, side, step in zip(size, facts.side(95), divisor, strict=True)
        ]
    scale = facts.relative_spacing
    while math.prod(size) > allowed:
        shrinkable = [axis for axis in range(dims) if size[axis] - divisor[axis] >= least[axis]]
        if not shrinkable:
            break
        longest = max(shrinkable, key=lambda axis: size[axis] * scale[axis])
        size[longest] -= divisor[longest]
    read = f"median size {by(facts.median_size)}"
    if len(facts.object_sides):
        read += f", objects up to {by(facts.side(95))} (95th percentile)"
    if facts.spacing is not None:
        read += f", spacing {by(facts.spacing)} {facts.unit}"
    return Suggestion(
        "image_size", size, read,
        f"begin with the median image, shorten the physically longest axis until {allowed} "
        f"{'pixels' if dims == 2 else 'voxels'} are not exceeded ({budget.device}), keep twice the large objects, "
        f"multiples of {by(divisor)}",
        NNUNET,
    ), 1.0  # fmt: skip


def suggest_batch(
    facts: Fingerprint, size: Sequence[int], budget: Budget, step: StepMemory | None
) -> Suggestion:
    """Return the images of one step, which work, data and memory limit each in its way.

    Args:
        facts: The fingerprint.
        size: Size of patches or pictures.
        budget: What the machine can hold and do.
        step: What a step takes, when it was measured.
    """
    pixels = math.prod(size)
    work = budget.batch_pixels(facts.spatial_dims) // pixels
    share = math.prod(facts.median_size) * facts.num_images * _DATA_SHARE / pixels
    limits = {"work": work, f"{_DATA_SHARE:.0%} of the data": int(share), "largest": _LARGEST_BATCH}
    read = f"patches of {by(size)} on {budget.device}, {facts.num_images} images"
    if step is not None:
        limits["memory"] = int((_MEMORY_SHARE * budget.memory - step.fixed) // max(1, step.per_image))
        read += (
            f"; {budget.memory / 2**30:.1f} GiB free ({budget.how}), a step takes {step.fixed / 2**20:.0f} MiB + "
            f"{step.per_image / 2**20:.0f} MiB per image ({step.how})"
        )
    floor = 1 if limits.get("memory", 2) < 2 else 2
    value = max(floor, min(limits.values()))
    listed = ", ".join(f"{name} {max(0, limit)}" for name, limit in limits.items())
    return Suggestion(
        "batch_size", value, read,
        f"the least of: {listed}; at least 2 where memory allows, as batch statistics and gradients need", NNUNET,
    )  # fmt: skip


def query_count(objects: float) -> int:
    """Return the queries that a head with a fixed number of them needs: half as many again as it must find.

    DETR asks 100 for images with 7 objects on average and 63 at most: a query answers for one object, so fewer
    queries than objects leave some unfound. So at least 100 here, and a multiple of 50.

    Args:
        objects: Objects in the most crowded image that the head will see.

    Example:
        >>> query_count(7), query_count(358)
        (100, 550)
    """
    return max(100, 50 * math.ceil(_QUERIES_PER_OBJECT * objects / 50))


def notes(facts: Fingerprint) -> list[str]:
    """Return what is worth knowing but has no value to set."""
    said = []
    if len(facts.objects_per_image) and facts.metadata.task == "instance":
        crowd = facts.count(99.9)
        said.append(
            f"a head with a fixed number of queries needs about {query_count(crowd)}: an image holds up to "
            f"{crowd:.0f} objects (99.9th percentile), half as many again, at least 100; after {DETR}"
        )
    if facts.saturated > _SATURATED:
        said.append(
            f"{facts.saturated:.1%} of the pixels stand at the highest value of their image: the detector was "
            "saturated, or the file was clipped; details there are lost"
        )
    if facts.broken:
        said.append(f"{facts.broken} images cannot be read and are not counted; pixvox data check names them")
    if facts.spacing is not None and facts.spacing_ratio > _SPACINGS_DIFFER:
        said.append(
            f"{'pixels' if facts.spatial_dims == 2 else 'voxels'} are up to {facts.spacing_ratio:.2g} times as long in "
            f"one image as in another: transforms.spacing=[{','.join(f'{step:g}' for step in facts.spacing)}] (the "
            f"median, {facts.unit}) brings all to one size; after {NNUNET}"
        )
    rare = [name for name, share in facts.class_shares.items() if share < _RARE]
    if rare and len(facts.class_shares) > 1:
        said.append(
            f"{len(rare)} of {len(facts.class_shares)} classes hold less than {_RARE:.0%} each "
            f"({', '.join(rare[:5])}{', ...' if len(rare) > 5 else ''}): look at their own scores, not at the mean"
        )
    if facts.touching > 0.2:
        said.append(
            f"{facts.touching:.0%} of the objects touch another one: look at matched scores, "
            "not at overlap with the foreground"
        )
    if len(facts.object_sides) and min(facts.side(10)[-2:]) < 8:
        said.append(
            f"a tenth of the objects is narrower than 8 pixels ({by(facts.side(10))}): a backbone with a finer first "
            "stride, or images enlarged beforehand, may find more of them"
        )
    return said


def pyramid_strides(facts: Fingerprint, first: int, levels: int) -> list[list[int]]:
    """Return the strides of a pyramid per level and axis.

    Each level halves every axis but two kinds: an axis whose voxels are by then still twice as long as the
    shortest, and one that would be left with too few cells. So a coarse z stays as it is until the plane has
    caught up.

    Args:
        facts: The fingerprint.
        first: Stride of the finest level in the plane.
        levels: Number of levels.

    Example:
        >>> from pixvox.data.metadata import Metadata
        >>> from pixvox.data.fingerprint import Fingerprint
        >>> import numpy as np
        >>> thick = Fingerprint(Metadata("instance", 3, ("cell",), 1), 9, np.array([[32, 256, 256]]),
        ...                     spacing=(2.0, 0.5, 0.5))
        >>> pyramid_strides(thick, first=2, levels=4)
        [[1, 2, 2], [1, 4, 4], [2, 8, 8], [4, 16, 16]]
    """
    strides = [1] * facts.spatial_dims
    found: list[list[int]] = []
    while len(found) < levels:
        if strides[-1] >= first:
            found.append(list(strides))
        steps = halving(facts, strides)
        if max(steps) == 1 and strides[-1] < first:
            first = strides[-1]
        strides = [stride * step for stride, step in zip(strides, steps, strict=True)]
    return found


def suggest_depth_strides(facts: Fingerprint, count: int, first: int = 1) -> list[Suggestion]:
    """Return the strides along depth of a backbone that makes the plane smaller in ``count`` places; none for images.

    Args:
        facts: The fingerprint.
        count: Places, each of which halves the plane, but for the first.
        first: How often the first one halves it: twice for patches of 4 x 4 pixels.

    Example:
        >>> from pixvox.data.metadata import Metadata
        >>> from pixvox.data.fingerprint import Fingerprint
        >>> import numpy as np
        >>> thick = Fingerprint(Metadata("instance", 3, ("cell",), 1), 9, np.array([[32, 256, 256]]),
        ...                     spacing=(2.0, 0.5, 0.5))
        >>> suggest_depth_strides(thick, 4)[0].value, suggest_depth_strides(thick, 3, first=2)[0].value
        ([1, 1, 2, 2], [1, 2, 2])
    """
    if facts.spatial_dims == 2:
        return []
    reached, halvings = [1, 1, 1], []
    for _ in range(first + count - 1):
        halvings.append(halving(facts, reached)[0])
        reached = [reached[0] * halvings[-1], reached[1] * 2, reached[2] * 2]
    return [
        Suggestion(
            "depth_strides",
            [math.prod(halvings[:first]), *halvings[first:]],
            f"spacing {by(facts.spacing) if facts.spacing else 'unknown'}, {facts.median_size[0]} planes (median)",
            "depth is not halved while its voxels are twice as long as those in the plane, or cells run out",
            NNUNET,
        )
    ]


def halving(facts: Fingerprint, strides: Sequence[int]) -> list[int]:
    """Return 2 for each axis that the next level should halve, 1 for the others.

    Args:
        facts: The fingerprint.
        strides: Strides reached so far, per axis.
    """
    lengths = [step * stride for step, stride in zip(facts.relative_spacing, strides, strict=True)]
    # The median over all axes: the least image decides nothing.
    cells = [length / stride for length, stride in zip(facts.median_size, strides, strict=True)]
    large = [count >= 2 * _LEAST_CELLS for count in cells]
    shortest = min((length for length, enough in zip(lengths, large, strict=True) if enough), default=0.0)
    return [
        2 if enough and length < 2 * shortest else 1 for length, enough in zip(lengths, large, strict=True)
    ]


def by(values: Sequence[float]) -> str:
    """Write lengths per axis.

    Example:
        >>> by((12.5, 30))
        '12.5 x 30'
    """
    return " x ".join(f"{value:g}" for value in values)


def _up(length: float, step: int) -> int:
    return math.ceil(length / step) * step
