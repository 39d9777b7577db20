"""How a model segments a batch: at once or in tiles, plain or augmented, as it comes or cleaned up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from torch import Tensor

from pixvox.data.label_space import label_space_of
from pixvox.data.transforms.crop import axis_lengths
from pixvox.errors import ConfigError
from pixvox.heads.head import Outputs
from pixvox.inference.class_scores import AtOnce, NetworkScores, Scores, Strip
from pixvox.inference.clean_up import CleanUp
from pixvox.inference.stitched_tiles import StitchedTiles
from pixvox.inference.test_time_augmentation import Augmented
from pixvox.inference.tiling import Blend, PoolOver, Tiled
from pixvox.layers import resize
from pixvox.normalizer import intensity_range
from pixvox.signatures import describe, example, fits, nearest, signature
from pixvox.structures import Batch, Geometry, Segmentation, Size

if TYPE_CHECKING:
    from pixvox.segmenter import Segmenter

Built = TypeVar("Built")

BLOCK_OPTIONS = ("blocks", "engine", "workers", "probabilities", "labels", "allow_missing_chunks")
"""Options of inference for what is written block by block; ``pixvox.inference.blockwise.Blockwise`` sees to them."""

FILE_OPTIONS = ("table", "page")
"""Options of inference for what ``pixvox predict`` writes, block by block or not."""

SIZES = ("resize", "size", "max_size", "spacing", "spacing_unit", "image_spacing")
"""Options of inference that say at which size images come; ``Predictor`` sees to them, an evaluation's transforms
do."""


class Procedure:
    """Segments batches of un-normalised images with a model.

    Scores wrap one another: tiles of augmented views of what the network says; objects of tiles are joined. Each piece
    is normalised by the range of the full image. Without tiles and views the model segments the batch as it is.

    Args:
        model: Segmenter.
        tile_size: Length of tiles in pixels or voxels of the network's input, one for all axes or per axis in array
            order; None or 0 for the whole image at once.
        overlap: Least share of a tile that the next one covers too, in [0, 1); for objects at most 0.5. By default 0.5,
            for objects 0.25.
        blend: ``"gaussian"``, ``"linear"`` or ``"constant"``, see ``pixvox.inference.tiling.Tiled``.
        tile_batch_size: Tiles that go through the network together.
        accumulator: ``"float32"`` or ``"float16"``: type in which scores of tiles are added up.
        pool_over: What global pools of the network take the mean of: ``"image"``, or ``"tile"``.
        join_iou: Least intersection over union, in the place that two tiles share, at which an object of one and an
            object of the other are the same, in (0, 1].
        tta: Options of ``pixvox.inference.test_time_augmentation.Augmented``; none for no augmentation.
        clean_up: Options of ``pixvox.inference.clean_up.CleanUp``; none to leave results as they are.

    Raises:
        ConfigError: If an option has no such value, or the model does not give class maps.
    """

    def __init__(
        self,
        model: Segmenter,
        tile_size: int | Sequence[int] | None = None,
        overlap: float | None = None,
        blend: Blend = "gaussian",
        tile_batch_size: int = 1,
        accumulator: Literal["float32", "float16"] = "float32",
        pool_over: PoolOver = "image",
        join_iou: float = 0.5,
        tta: Mapping[str, Any] | None = None,
        clean_up: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.pool_over = pool_over
        self.options: dict[str, Any] = {}
        self.stitched: StitchedTiles | None = None
        self.clean_up = (
            build(CleanUp, "clean_up", clean_up, class_names=model.class_names) if clean_up else None
        )
        scores: Scores = NetworkScores(model)
        if tta:
            _check_class_maps(model, "test-time augmentation")
            _check_flips(tta.get("flips") or (), model.spatial_dims)
            space = label_space_of(tuple(model.class_names))
            pairs = () if space is None else space.flip_pairs
            scores = build(Augmented, "tta", tta, scores=scores, flip_pairs=pairs)
        self.scores = scores
        self.pieces: Tiled | AtOnce | None = AtOnce(scores) if tta else None
        if tile_size:
            lengths = axis_lengths(tile_size, model.spatial_dims)
            if model.task == "instance":
                self.stitched = StitchedTiles(model, lengths, 0.25 if overlap is None else overlap, join_iou)
                return
            _check_class_maps(model, "tiling")
            share = 0.5 if overlap is None else overlap
            self.pieces = Tiled(
                scores, lengths, share, blend, tile_batch_size, accumulator, model.size_divisor, pool_over
            )

    @classmethod
    def of(cls, model: Segmenter, given: Mapping[Any, Any] | None = None) -> Procedure:
        """Return the procedure that the model was saved with, changed by what is given.

        Args:
            model: Its ``config["inference"]`` holds the options it was saved with.
            given: Options that win over these; None and left-out ones do not, and groups are merged.
        """
        options = merged(model.config.get("inference") or {}, given or {})
        rest = {
            key: value for key, value in options.items() if key not in (*SIZES, *BLOCK_OPTIONS, *FILE_OPTIONS)
        }
        procedure = build(cls, "", rest, model=model)
        procedure.options = rest
        return procedure

    def __call__(self, batch: Batch, outputs: Outputs | None = None) -> list[Segmentation]:
        """Return the predictions of a batch in the original frame of each image, on the CPU.

        Args:
            batch: Un-normalised images; where they are tiled, they may stay on the CPU.
            outputs: Raw outputs for the batch, where there are some already; of use only without tiles and views.
        """
        if self.pieces is not None:
            results = [self._class_map(self.pieces, batch, i) for i in range(len(batch))]
        elif self.stitched is not None:
            results = [self.stitched(batch, i) for i in range(len(batch))]
        elif outputs is not None:
            results = [result.to("cpu") for result in self.model.postprocess(outputs, batch.geometries)]
        else:
            results = self.model.segment(batch.to(next(self.model.parameters()).device))
        return results if self.clean_up is None else [self.clean_up(result) for result in results]

    def _class_map(self, pieces: Tiled | AtOnce, batch: Batch, index: int) -> Segmentation:
        """Return the class map of one image from the strips of its scores."""
        geometry = batch.geometries[index]
        image = batch.images[index][(slice(None), *(slice(0, length) for length in geometry.valid_size))]
        known = batch.intensity_ranges
        limits = intensity_range(image[None])[0] if known is None else known[index]
        strips = pieces.strips(image, limits)
        size, wanted = geometry.valid_size, self.model.head.gives_probabilities
        if wanted or geometry.original_size != size:
            result = _resized(_collect(strips, size, _scores), geometry, wanted)
        else:  # the best class of a strip needs no other strip
            result = Segmentation(class_map=_collect(strips, size, _best), geometry=geometry)
        result.class_names = self.model.class_names
        return result


def merged(trained: Mapping[str, Any], given: Mapping[Any, Any]) -> dict[str, Any]:
    """Return options with those given in front; what is None was not given, and groups are merged.

    Example:
        >>> merged({"tile_size": 256, "tta": {"flips": [-1]}}, {"tile_size": None, "tta": {"scales": [1, 2]}})
        {'tile_size': 256, 'tta': {'flips': [-1], 'scales': [1, 2]}}
    """
    options = dict(trained)
    for key, value in given.items():
        before = options.get(key)
        if isinstance(value, Mapping):
            value = merged(before if isinstance(before, Mapping) else {}, value)
        if value is not None and value != {}:
            options[key] = value
    return options


def _scores(logits: Tensor) -> Tensor:
    return logits.float()


def _best(logits: Tensor) -> Tensor:
    return logits.argmax(dim=0).cpu()


def _collect(strips: Iterator[Strip], size: Size, take: Callable[[Tensor], Tensor]) -> Tensor:
    """Return what is taken of each strip, put together to the size of the image."""
    whole: Tensor | None = None
    for strip in strips:
        part = take(strip.logits)
        axis = part.ndim - len(size) + strip.axis
        if whole is None:
            whole = part.new_empty((*part.shape[: part.ndim - len(size)], *size))
        whole.narrow(axis, strip.start, part.shape[axis]).copy_(part)
    if whole is None:
        raise ValueError("there are no strips to put together")
    return whole


def _resized(logits: Tensor, geometry: Geometry, probabilities: bool) -> Segmentation:
    """Return the class map at the original size, as semantic heads make it of the scores of a whole image."""
    original = resize(logits[None], geometry.original_size)[0]
    shares = original.softmax(dim=0) if probabilities else None
    return Segmentation(class_map=original.argmax(dim=0), probabilities=shares, geometry=geometry).to("cpu")


def _check_class_maps(model: Segmenter, what: str) -> None:
    if model.task != "semantic":
        raise ConfigError(
            f"{what} is for class maps so far, but this model gives {model.task} results; leave it out, or use a model "
            "for semantic segmentation"
        )


def _check_flips(axes: Sequence[int], spatial_dims: int) -> None:
    wrong = [axis for axis in axes if not -spatial_dims <= axis <= -1]
    if wrong:
        raise ConfigError(
            f"tta.flips={list(axes)}: the axes of {'images' if spatial_dims == 2 else 'volumes'} are "
            f"{', '.join(map(str, range(-1, -spatial_dims - 1, -1)))}, from the last to the first"
        )


def build(target: Callable[..., Built], group: str, options: Mapping[str, Any], **fixed: Any) -> Built:
    """Build what takes the options, once each is known to be one that it takes.

    Args:
        target: A class.
        group: Of the options below ``inference``; empty for these themselves.
        options: By name.
        **fixed: Further arguments, which are no options.

    Raises:
        ConfigError: If there is no such option, or its value has another type.
    """
    takes = signature(target).annotations
    for name, value in options.items():
        key = f"inference.{group}.{name}" if group else f"inference.{name}"
        if name not in takes or name in fixed:
            known = [each for each in takes if each not in fixed]
            raise ConfigError(f"{key}: there is no such option; {nearest(name, known)}")
        if not fits(value, takes[name]):
            hint = example(takes[name])
            raise ConfigError(
                f"{key}={value}: it takes {describe(takes[name])}{f', for example {key}={hint}' if hint else ''}"
            )
    return target(**options, **fixed)
