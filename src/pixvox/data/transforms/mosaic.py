"""Put parts of several images side by side."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import torch
from torch import Tensor

from pixvox.data.sample import Sample
from pixvox.data.transforms.compose import Transform, happens, uniform
from pixvox.data.transforms.copy_paste import fit_onto
from pixvox.data.transforms.crop import cut, patch_start


class Mosaic(Transform):
    """Divide the image at a random point and fill each part with a piece of another sample.

    "YOLOv4: Optimal Speed and Accuracy of Object Detection" (Bochkovskiy et al., 2020,
    https://arxiv.org/abs/2004.10934), at the size of the image and without scaling: an image takes pieces of three
    others, a volume of seven. Objects and scales of several images share one batch item; contexts end abruptly,
    so the last epochs of a training should go without it. Samples with and without annotations are not mixed.

    Args:
        probability: Probability of a change.
        margin: Least distance of the point from the border, as a share of each length, 0..0.5.

    Raises:
        ValueError: If ``margin`` is outside 0..0.5.
    """

    def __init__(self, probability: float = 0.5, margin: float = 0.25) -> None:
        if not 0 <= margin <= 0.5:
            raise ValueError(f"margin must lie in 0..0.5, got {margin}")
        self.probability = probability
        self.margin = margin

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """Return the mosaic; without further samples of its kind, the sample."""
        if not happens(generator, self.probability) or sample.further is None:
            return sample
        size = sample.size
        point = [round(uniform(generator, self.margin, 1 - self.margin) * length) for length in size]
        spans = [
            (slice(0, middle), slice(middle, length)) for middle, length in zip(point, size, strict=True)
        ]
        placed: list[tuple[tuple[slice, ...], Sample]] = []
        for i, part in enumerate(product(*spans)):
            lengths = [span.stop - span.start for span in part]
            if min(lengths) > 0:
                whole = sample if i == 0 else fit_onto(sample.further(generator), sample)
                placed.append((part, cut(whole, patch_start(whole, lengths, 0.0, generator), lengths)))
        if any(part.annotated != sample.annotated for _, part in placed):
            return sample
        return _joined(sample, placed)


def _joined(sample: Sample, placed: list[tuple[tuple[slice, ...], Sample]]) -> Sample:
    """Return the parts on one canvas, their objects numbered on."""
    image, class_map = torch.empty_like(sample.image), sample.class_map
    class_map = class_map.clone() if class_map is not None else None
    depth = max((len(part.layers) for _, part in placed if part.layers is not None), default=0)
    layers = sample.layers.new_zeros((depth, *sample.size)) if sample.layers is not None else None
    labels: list[Tensor] = []
    ignore: list[Tensor] = []
    count = 0
    for region, part in placed:
        image[(slice(None), *region)] = part.image
        if class_map is not None and part.class_map is not None:
            class_map[region] = part.class_map.to(class_map.dtype)
        if layers is None or part.layers is None or part.labels is None or part.ignore is None:
            continue
        numbers = torch.where(part.layers > 0, part.layers + count, part.layers)
        layers[(slice(0, len(numbers)), *region)] = numbers.to(layers.dtype)
        labels.append(part.labels)
        ignore.append(part.ignore)
        count += len(part.labels)
    return replace(
        sample,
        image=image,
        layers=layers,
        labels=torch.cat(labels) if layers is not None else None,
        ignore=torch.cat(ignore) if layers is not None else None,
        class_map=class_map,
        original_size=None,
    )
