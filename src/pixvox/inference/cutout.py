"""Cut a class out of an image: on transparency, a colour or another picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from pixvox.errors import DataError
from pixvox.files import whole_file
from pixvox.inference.clean_up import fill_holes
from pixvox.structures import Segmentation

EVERY_CLASS = "all"
"""Stands for the objects of every class, unless a class has this name."""

_FORMATS = {".png": "PNG", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF", ".jpg": "JPEG", ".jpeg": "JPEG"}


@dataclass(frozen=True)
class CutOut:
    """What was cut out.

    Args:
        image: RGBA where the rest is transparent, RGB where it has a background.
        mask: What is shown of the original image, before its edge was softened.
        found: False when there was nothing to cut out: then ``mask`` is empty, or full when inverted.
    """

    image: UInt8[np.ndarray, "height width channels"]
    mask: Bool[np.ndarray, "height width"]
    found: bool

    def save(self, path: str | Path) -> Path:
        """Write the picture; the suffix says the format (PNG, WebP and TIFF keep transparency, JPEG does not).

        Raises:
            DataError: If the suffix is none of these, or the format cannot be transparent as the picture is.
        """
        from PIL import Image

        path = Path(path)
        kind = _FORMATS.get(path.suffix.lower())
        if kind is None:
            raise DataError(f"{path}: a cut-out is written as {', '.join(_FORMATS)}, not {path.suffix!r}")
        if kind == "JPEG" and self.image.shape[2] == 4:
            raise DataError(f"{path}: JPEG knows no transparency; write a .png, or choose a background")
        with whole_file(path) as part:
            Image.fromarray(self.image).save(part, format=kind)
        return path


def cut_out(
    segmentation: Segmentation,
    of: str | int | None = None,
    score_threshold: float = 0.7,
    mask_threshold: float = 0.5,
    background: Any = None,
    invert: bool = False,
    closing: int = 0,
    max_hole: int = 0,
    feather: float = 0.0,
) -> CutOut:
    """Show only the pixels of a class, at the size of the original image.

    The objects of the class whose score is above ``score_threshold`` are united, or the pixels of the class taken
    where there is a class map alone. 8-bit images keep their values; others are stretched to 8 bits for the eye.

    Args:
        segmentation: A result that kept its image.
        of: Name or index of the class; None and ``"all"`` take the objects of every class.
        score_threshold: Objects must be above it, in [0, 1]; truth without scores is kept whole.
        mask_threshold: Probability above which a pixel belongs to the class, for results with ``probabilities``.
            The masks of objects were cut at 0.5 when they were made.
        background: None for transparency; a colour as a name (``"white"``), ``"#rrggbb"`` or three numbers in
            [0, 255]; or a picture (path, PIL image, array or tensor), scaled to cover the image and centred.
        invert: Show what does not belong to the class instead.
        closing: Bridge gaps up to about twice this many pixels (morphological closing with a disc).
        max_hole: Fill holes of up to this many pixels; what touches the border is no hole.
        feather: Standard deviation, in pixels, by which the edge fades; 0 keeps it sharp.

    Raises:
        DataError: If there is no such class, no image, a volume, a number of pixels below 0, or a background that
            cannot be read.

    Example:
        >>> grey = torch.full((1, 2, 3), 200.0)
        >>> from pixvox.structures import Instances
        >>> cell = Instances(masks=torch.tensor([[0, 1, 1], [0, 0, 0]]), scores=torch.tensor([0.9]))
        >>> picture = cut_out(Segmentation(cell, image=grey, class_names=("cell",)), "cell")
        >>> picture.image[0, :, 3].tolist(), picture.found
        ([0, 255, 255], True)
    """
    _refuse_volume(segmentation.spatial_dims)
    if segmentation.image is None:
        raise DataError("this result did not keep its image; predict with keep_image=True")
    chosen = class_index(segmentation.class_names, of)
    mask = _class_mask(segmentation, chosen, score_threshold, mask_threshold).cpu().numpy()
    found = bool(mask.any())
    mask = _mend(mask, closing, max_hole)
    if invert:
        mask = ~mask
    alpha = _soft_edge(mask, feather)
    return CutOut(_compose(_eight_bit(segmentation.image), alpha, background), mask, found)


def prepare(options: Mapping[str, Any], spatial_dims: int, class_names: Sequence[str]) -> dict[str, Any]:
    """Check the options of ``cut_out`` once before many images, and read the background.

    Raises:
        DataError: If there is no such class, the images are volumes, or the background cannot be read.
    """
    _refuse_volume(spatial_dims)
    prepared = {**options, "of": class_index(class_names, options.get("of"))}
    if options.get("background") is not None:
        prepared["background"] = _picture(options["background"])
    return prepared


def _refuse_volume(spatial_dims: int) -> None:
    if spatial_dims != 2:
        raise DataError(
            "cut-outs exist for images; of a volume, label_map() > 0 gives the voxels to keep, "
            "and save() writes labels and overlay"
        )


def class_index(class_names: Sequence[str], of: str | int | None) -> int | None:
    """Return the index of a class, or None for all of them.

    Args:
        class_names: Names by class index.
        of: Name, index, None or ``"all"``.

    Raises:
        DataError: If there is no such class.

    Example:
        >>> class_index(("cell", "debris"), "debris"), class_index(("cell", "debris"), "all")
        (1, None)
    """
    if of is None or (of == EVERY_CLASS and of not in class_names):
        return None
    if isinstance(of, str) and of in class_names:
        return list(class_names).index(of)
    if isinstance(of, str) and not of.isdecimal():
        raise DataError(
            f"there is no class {of!r} to cut out; the classes are {', '.join(class_names) or 'not named'}"
        )
    index = int(of)
    if index < 0 or (class_names and index >= len(class_names)):
        raise DataError(
            f"there is no class {index} to cut out; classes count from 0 to {len(class_names) - 1}"
        )
    return index


def _class_mask(
    segmentation: Segmentation, chosen: int | None, score_threshold: float, mask_threshold: float
) -> Bool[Tensor, "height width"]:
    """Return the pixels of a class: of its objects, else of the class map."""
    instances, probabilities = segmentation.instances, segmentation.probabilities
    if instances is not None and instances.masks is not None:
        kept = ~instances.ignore
        if chosen is not None:
            kept = kept & (instances.labels == chosen)
        if segmentation.class_map is None or bool(kept.any()):
            _refuse_threshold(mask_threshold, "the masks of objects were cut at 0.5 when they were made")
            if instances.scores is not None:
                kept = kept & (instances.scores > score_threshold)
            return instances.masks[kept].label_map() > 0
    if segmentation.class_map is None:
        raise DataError("this result has neither masks nor a class map: there is nothing to cut along")
    if chosen is None:
        raise DataError("a class map has a class for every pixel; name the one to cut out")
    if probabilities is not None and chosen < len(probabilities):
        return probabilities[chosen] > mask_threshold
    _refuse_threshold(mask_threshold, "this class map came without probabilities")
    return segmentation.class_map == chosen


def _refuse_threshold(mask_threshold: float, why: str) -> None:
    if mask_threshold != 0.5:
        raise DataError(f"mask_threshold={mask_threshold} has no effect here: {why}; leave it at 0.5")


def _mend(
    mask: Bool[np.ndarray, "height width"], closing: int, max_hole: int
) -> Bool[np.ndarray, "height width"]:
    """Bridge gaps, then fill small holes."""
    if closing < 0 or max_hole < 0:
        raise DataError(f"closing and max_hole are numbers of pixels from 0 on, got {closing} and {max_hole}")
    if closing:
        import cv2

        # A frame as wide as the disc: near the border nothing is bridged that would not be inside.
        framed = np.pad(mask.astype(np.uint8), closing)
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * closing + 1,) * 2)
        closed = cv2.morphologyEx(framed, cv2.MORPH_CLOSE, disc).astype(bool)
        mask = closed[closing:-closing, closing:-closing] | mask
    if max_hole:
        mask = fill_holes(mask, max_hole)
    return mask


def _soft_edge(mask: Bool[np.ndarray, "height width"], feather: float) -> Float[np.ndarray, "height width"]:
    """Return how much of each pixel is shown, in [0, 1]."""
    if not 0 <= feather < math.inf:
        raise DataError(f"feather is a number of pixels from 0 on, got {feather}")
    alpha = mask.astype(np.float32)
    if feather > 0:
        import cv2

        alpha = np.asarray(cv2.GaussianBlur(alpha, (0, 0), feather), dtype=np.float32)
    return alpha


def _eight_bit(image: Tensor) -> UInt8[np.ndarray, "height width 3"]:
    """Return the image as RGB: 8-bit values as they are, others stretched."""
    from pixvox.visualization.contrast import Contrast

    values = image.detach().cpu().float()
    whole = bool((values == values.round()).all()) if values.numel() else False
    if whole and values.shape[0] in (1, 3) and 1 < float(values.max()) <= 255 and float(values.min()) >= 0:
        rgb = values.expand(3, *values.shape[1:]).to(torch.uint8)
        return np.ascontiguousarray(rgb.permute(1, 2, 0).numpy())
    return Contrast.of(image).rgb(image)


def _compose(
    image: UInt8[np.ndarray, "height width 3"], alpha: Float[np.ndarray, "height width"], background: Any
) -> UInt8[np.ndarray, "height width channels"]:
    """Put the shown part on transparency or on a background."""
    if background is None:
        opacity = (alpha * 255).round().astype(np.uint8)
        # Colours under full transparency are dropped: nobody finds what was cut away in the file.
        shown = np.where(opacity[..., None] > 0, image, 0).astype(np.uint8)
        return np.concatenate([shown, opacity[..., None]], axis=2)
    behind = _background(background, image.shape[:2]).astype(np.float32)
    mixed = behind + alpha[..., None] * (image.astype(np.float32) - behind)
    return np.asarray(mixed.round(), dtype=np.uint8)


def _background(background: Any, size: tuple[int, ...]) -> UInt8[np.ndarray, "height width 3"]:
    """Return a colour or a picture as RGB at ``size``."""
    from PIL import Image, ImageOps

    picture = _picture(background)
    if isinstance(picture, Image.Image):
        fitted = ImageOps.fit(picture.convert("RGB"), (size[1], size[0]), Image.Resampling.LANCZOS)
        return np.asarray(fitted, dtype=np.uint8)
    return np.broadcast_to(np.array(picture, dtype=np.uint8), (*size, 3))


def _picture(background: Any) -> Any:
    """Return a PIL image, or a colour as three numbers."""
    from PIL import Image, ImageColor, ImageOps

    if isinstance(background, Image.Image):
        return ImageOps.exif_transpose(background)
    if isinstance(background, str | Path) and Path(background).is_file():
        from pixvox.inference.inputs import samples

        (sample,) = samples(str(background), 2, 3)
        return Image.fromarray(_eight_bit(sample.image))
    if isinstance(background, str):
        try:
            return ImageColor.getrgb(background)[:3]
        except ValueError as error:
            raise DataError(
                f"background {background!r} is neither a file nor a colour; write a path, white or '#rrggbb'"
            ) from error
    if isinstance(background, Tensor):
        return Image.fromarray(_eight_bit(background))
    if isinstance(background, np.ndarray) and background.ndim > 1:
        from pixvox.inference.inputs import channels_first

        return _picture(torch.from_numpy(channels_first(background, 2, 3).astype(np.float32)))
    numbers = background if isinstance(background, tuple | list | np.ndarray) else ()
    if len(numbers) == 3 and all(0 <= float(number) <= 255 for number in numbers):
        return tuple(int(number) for number in numbers)
    raise DataError(
        f"background {background!r} is none: give a colour's name, three numbers in [0, 255], a path, "
        "a PIL image, an array or a tensor"
    )
