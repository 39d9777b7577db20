"""From any image to a result in its own frame: read, resize, normalise, run, and back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pixvox.data.collate import Collate
from pixvox.data.sample import Sample
from pixvox.data.transforms.resample import Resample, spacing_per_axis
from pixvox.data.transforms.resize import Resize
from pixvox.errors import ConfigError, DataError
from pixvox.inference.inputs import is_many, samples
from pixvox.inference.procedure import Procedure
from pixvox.structures import Segmentation

if TYPE_CHECKING:
    from pixvox.segmenter import Segmenter

POLICIES = ("none", "fit", "exact", "shortest")
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Predictor:
    """Segments images one after the other, each in its own frame.

    What is not given comes from ``model.config["inference"]``, so that a model predicts at the size that it
    was trained or published with; without that, images keep their size.

    Args:
        model: Segmenter; its mode is restored afterwards.
        resize: ``"none"``; ``"fit"``: as large as fits into ``size``; ``"exact"``: to ``size``, whatever the
            aspect; ``"shortest"``: the shortest edge becomes ``size``, but the longest at most ``max_size``,
            with the rounding and the interpolation of torchvision's detection models.
        size: Target length in pixels or voxels, one for all axes or per axis in array order.
        max_size: Longest edge for ``"shortest"``, in pixels or voxels.
        spacing: Size of a pixel or voxel, one for all axes or per axis in array order, to which images are resampled
            before; 0 for none. Results are in the original grid.
        spacing_unit: Unit of ``spacing`` and ``image_spacing``, ``"um"`` or ``"mm"``.
        image_spacing: Size of a pixel or voxel of the images, whatever their files say.
        score_threshold: Lowest score of an instance, in [0, 1]; None for that of the head.
        precision: ``"fp32"``, or ``"bf16"`` or ``"fp16"`` for autocast.
        batch_size: Images per forward pass; they are padded to one size.
        keep_image: Keep each image in its result, for drawing and mean intensities.
        **test_time: Options of ``pixvox.inference.procedure.Procedure``: ``tile_size``, ``tta``, ``clean_up``, ...

    Raises:
        ConfigError: If an option has no such value.
    """

    def __init__(
        self,
        model: Segmenter,
        resize: str | None = None,
        size: int | tuple[int, ...] | list[int] | None = None,
        max_size: int | None = None,
        spacing: float | Sequence[float] | None = None,
        spacing_unit: str | None = None,
        image_spacing: float | Sequence[float] | None = None,
        score_threshold: float | None = None,
        precision: str = "fp32",
        batch_size: int = 1,
        keep_image: bool = True,
        **test_time: Any,
    ) -> None:
        trained = dict(model.config.get("inference") or {})
        self.model = model
        self.procedure = Procedure.of(model, test_time)
        self.resize = resize or trained.get("resize") or "none"
        self.size = size if size is not None else trained.get("size")
        self.max_size = max_size if max_size is not None else trained.get("max_size")
        self.spacing_unit = spacing_unit or trained.get("spacing_unit") or "um"
        self.resample = self._resample(spacing if spacing is not None else trained.get("spacing"))
        self.image_spacing = self._image_spacing(
            image_spacing if image_spacing is not None else trained.get("image_spacing")
        )
        self.score_threshold = score_threshold
        self.precision = precision
        self.batch_size = batch_size
        self.keep_image = keep_image
        if self.resize not in POLICIES:
            raise ConfigError(f"resize must be one of {', '.join(POLICIES)}; got {self.resize!r}")
        if self.resize != "none" and self.size is None:
            raise ConfigError(f"resize={self.resize!r} needs the target: size=512, or size=(height, width)")
        if self.resize == "shortest" and not isinstance(self.size, int):
            raise ConfigError(
                f"resize='shortest' needs one length for the shortest edge, got size={self.size}"
            )
        if precision not in PRECISIONS:
            raise ConfigError(f"precision must be one of {', '.join(PRECISIONS)}; got {precision!r}")
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
        if score_threshold is not None and not 0 <= score_threshold <= 1:
            raise ConfigError(f"score_threshold must lie in [0, 1], got {score_threshold}")

    def __call__(self, inputs: Any) -> Segmentation | list[Segmentation]:
        """Return the result of a single input, or a list for a folder, a list or a batch.

        Args:
            inputs: A path, a folder, a list of inputs, a PIL image, an array ``(*spatial)``,
                ``(*spatial, channels)`` or ``(channels, *spatial)``, an **un-normalised** tensor
                ``(channels, *spatial)`` or ``(batch, channels, *spatial)``, or a Zarr array.

        Raises:
            DataError: If an input cannot be read, or its dimensions or channels are not the model's.
        """
        results = list(self.stream(inputs))
        return results if is_many(inputs, self.model.spatial_dims) else results[0]

    def stream(self, inputs: Any) -> Iterator[Segmentation]:
        """Yield results one at a time: a folder of any length needs the memory of one batch."""
        found = samples(inputs, self.model.spatial_dims, self.model.in_channels)
        while batch := list(islice(found, self.batch_size)):
            yield from self.predict_samples(batch)

    def predict_samples(self, batch: list[Sample]) -> list[Segmentation]:
        """Segment samples in one forward pass; results are on the CPU."""
        resized = Collate(self.model.size_divisor)([self._resized(sample) for sample in batch])
        with self._ready():
            results = self.procedure(resized)
        finished = []
        for sample, result in zip(batch, results, strict=True):
            result.source = sample.source
            result.image = sample.image if self.keep_image else None
            finished.append(result)
        return finished

    def without_resampling(self) -> Predictor:
        """Return a predictor that does the same, but takes images at the spacing that they have."""
        same = copy(self)
        same.resample = None
        return same

    def class_scores(self, images: Tensor, intensity_ranges: Tensor) -> Tensor:
        """Return logits ``(batch, classes, *spatial)`` of un-normalised pieces of images; see ``Scores``."""
        with self._ready():
            return self.procedure.scores(images, intensity_ranges)

    @contextlib.contextmanager
    def _ready(self) -> Iterator[None]:
        """Let the model predict as it is asked to, and be as it was afterwards."""
        device = next(self.model.parameters()).device
        dtype = PRECISIONS[self.precision]
        with (
            _evaluation_mode(self.model),
            _score_threshold(self.model, self.score_threshold),
            torch.inference_mode(),
            torch.autocast(device.type, dtype, enabled=dtype != torch.float32),
        ):
            yield

    def _resample(self, spacing: float | Sequence[float] | None) -> Resample | None:
        """Return what brings images to a spacing; None where they keep theirs."""
        if spacing is None or spacing == 0:
            return None
        try:
            spacing_per_axis(spacing, self.model.spatial_dims)
            return Resample(spacing, self.spacing_unit)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"inference.spacing: {error}") from error

    def _image_spacing(self, spacing: float | Sequence[float] | None) -> tuple[float, ...] | None:
        """Return the spacing that images are said to have, per axis."""
        if spacing is None:
            return None
        try:
            Resample(spacing)  # refuses lengths of 0
            return spacing_per_axis(spacing, self.model.spatial_dims)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"inference.image_spacing: {error}") from error

    def _placed(self, sample: Sample) -> Sample:
        """Return the sample with the spacing that it is said to have."""
        if self.image_spacing is None:
            return sample
        return replace(sample, spacing=self.image_spacing, unit=self.spacing_unit)

    def _resized(self, sample: Sample) -> Sample:
        """Return the sample at the size that the model is given, with the way back."""
        sample = self._placed(sample)
        if self.resample is not None:
            if sample.spacing is None:
                raise DataError(missing_spacing(sample.source, self.resample))
            sample = self.resample(sample, torch.Generator())
        if self.resize == "none" or self.size is None:
            return sample
        if self.resize == "shortest" and isinstance(self.size, int):
            return _resize_shortest(sample, self.size, self.max_size)
        mode = cast(Literal["fit", "exact"], self.resize)
        return Resize(self.size, mode)(sample, torch.Generator())


def predict(model: Segmenter, inputs: Any, **options: Any) -> Segmentation | list[Segmentation]:
    """Segment inputs; see ``Predictor`` for options and ``Predictor.__call__`` for inputs."""
    return Predictor(model, **options)(inputs)


def confident_score(model: Segmenter) -> float:
    """Return the score from which objects are written into label maps and tables: far fewer than are ranked."""
    return max(model.head.score_threshold, model.head.confident_score)


def missing_spacing(source: str, resample: Resample) -> str:
    """Return what to tell of an image that cannot be resampled, because nobody knows its spacing."""
    return (
        f"{source or 'an image'} does not say how large its pixels or voxels are, but this model sees images at a "
        f"spacing of {resample.spacing} {resample.unit}; give it as inference.image_spacing=[...] (image_spacing=... "
        "in Python), one length per axis, or set inference.spacing=0 to segment the image as it is"
    )


def _resize_shortest(sample: Sample, size: int, max_size: int | None) -> Sample:
    """Scale the shortest edge to ``size``: lengths rounded down and no anti-aliasing, as torchvision does."""
    factor = size / min(sample.size)
    if max_size is not None:
        factor = min(factor, max_size / max(sample.size))
    mode = {2: "bilinear", 3: "trilinear"}[sample.spatial_dims]

    def interpolate(image: Tensor) -> Tensor:
        return F.interpolate(
            image[None], scale_factor=factor, mode=mode, recompute_scale_factor=True, align_corners=False
        )[0]

    resized = interpolate(sample.image)
    spacing = sample.spacing
    if spacing is not None:
        spacing = tuple(
            step * before / now
            for step, before, now in zip(spacing, sample.size, resized.shape[1:], strict=True)
        )
    return Sample(
        image=resized,
        spacing=spacing,
        unit=sample.unit,
        source=sample.source,
        index=sample.index,
        intensity_range=sample.intensity_range,
        original_size=sample.original_size or sample.size,
    )


@contextlib.contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into eval mode, and every module back into its own mode: frozen parts stay frozen."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextlib.contextmanager
def _score_threshold(model: Segmenter, threshold: float | None) -> Iterator[None]:
    """Let the head give out instances from another score on."""
    before = model.head.score_threshold
    if threshold is not None:
        model.head.score_threshold = threshold
    try:
        yield
    finally:
        model.head.score_threshold = before
