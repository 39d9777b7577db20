"""Write a synthetic dataset to disk, whole or not at all, the same bits for the same seed."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from pixvox.data.options import check_options
from pixvox.data.synthetic.digits import Digits
from pixvox.data.synthetic.nuclei3d import Nuclei3d
from pixvox.data.synthetic.shapes import Shapes
from pixvox.errors import ConfigError, DataError
from pixvox.progress import progress
from pixvox.signatures import nearest, signature
from pixvox.structures import Masks

Kind = Literal["shapes", "digits", "nuclei3d"]

_MAKERS: dict[str, Callable[..., Shapes | Digits | Nuclei3d]] = {
    "shapes": Shapes,
    "digits": Digits,
    "nuclei3d": Nuclei3d,
}

_FAR = 1_000_000_007


def make_dataset(
    kind: Kind,
    out: str | Path,
    num_train: int = 200,
    num_val: int = 50,
    num_test: int = 0,
    seed: int = 0,
    format: Literal["tiff", "zarr"] = "tiff",  # noqa: A002 - the word users know
    **options: Any,
) -> Path:
    """Make a dataset with train, val and test splits.

    Everything is written to a temporary folder beside ``out`` that is renamed at the end.

    Args:
        kind: ``"shapes"`` or ``"digits"`` (2-D; PNG, COCO JSON with RLE), or ``"nuclei3d"`` (3-D; volumes and
            label maps).
        out: Folder to make; it must not exist, or be empty.
        num_train: Images of the train split.
        num_val: Images of the val split.
        num_test: Images of the test split; handwritten digits then come from MNIST's own test part.
        seed: Seed of everything.
        format: File format of volumes.
        **options: Those of ``Shapes``, ``Digits`` or ``Nuclei3d``, such as ``image_size``.

    Returns:
        The folder.

    Raises:
        ConfigError: If an option is unknown or of another type.
        DataError: If ``out`` holds something already, or an option is out of range.
    """
    out = Path(out)
    numbers = {
        "num_train": num_train, "num_val": num_val, "num_test": num_test, "seed": seed, "format": format,
    }  # fmt: skip
    check_options(numbers, make_dataset)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} exists already; choose another folder, or remove it first")
    if kind not in _MAKERS:
        raise DataError(f"kind must be one of {', '.join(_MAKERS)}, got {kind!r}")
    if format not in ("tiff", "zarr"):
        raise DataError(f"format must be 'tiff' or 'zarr', got {format!r}")
    if num_train < 1 or num_val < 0 or num_test < 0:
        raise DataError(
            f"num_train must be at least 1, num_val and num_test at least 0, got {num_train}, {num_val}, {num_test}"
        )
    if seed < 0:
        raise DataError(f"seed must be 0 or above, got {seed}")
    maker = _MAKERS[kind]
    for name in options:
        if name not in signature(maker).annotations:
            near = nearest(name, [*numbers, *signature(maker).annotations])
            raise ConfigError(f"{kind} takes no option {name!r}; {near}")
    check_options(options, maker, given=("num_images", "seed"))
    _check_image_size(options.get("image_size", 64), 3 if kind == "nuclei3d" else 2)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        # No split of one seed equals a split of another.
        splits = {
            "train": (num_train, 2 * seed),
            "val": (num_val, 2 * seed + 1),
            "test": (num_test, _FAR + seed),
        }
        for split, (count, split_seed) in splits.items():
            if count == 0:
                continue
            own = dict(options)
            if kind == "digits" and split == "test":
                own["mnist_train"] = False
            try:
                made = maker(count, split_seed, **own)
                if isinstance(made, Nuclei3d):
                    _write_nuclei(made, partial, split, format)
                else:
                    _write_pictures(made, partial, split)
            except ValueError as error:
                raise DataError(f"{kind}: {error}") from error
        partial.chmod(0o755)  # a temporary folder is private
        if out.exists():
            out.rmdir()
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def _check_image_size(size: int | Sequence[int], axes: int) -> None:
    lengths = [size] * axes if isinstance(size, int) else list(size)
    if len(lengths) != axes or min(lengths) < 1:
        raise DataError(f"image_size must be one positive length, or {axes} in array order, got {size}")


def _write_pictures(shapes: Shapes | Digits, root: Path, split: str) -> None:
    """Write PNG pictures, and a COCO file of compressed RLE; or class maps for a semantic task."""
    from PIL import Image

    images = _folder(root / "images" / split)
    semantic = shapes.metadata.task == "semantic"
    listed: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in progress(range(len(shapes)), len(shapes), f"{shapes.metadata.name}, {split}"):
        scene = shapes.render(index)
        name = f"{index:06d}.png"
        picture = scene.image.transpose(1, 2, 0) if shapes.channels == 3 else scene.image[0]
        Image.fromarray(picture).save(images / name)
        if semantic:
            classes = np.concatenate([[0], scene.labels + 1]).astype(np.uint8)
            Image.fromarray(classes[scene.label_map]).save(_folder(root / "labels" / split) / name)
            continue
        listed.append({"id": index + 1, "file_name": name, "height": shapes.height, "width": shapes.width})
        masks = Masks.from_label_map(torch.from_numpy(scene.label_map))
        corners, areas = masks.boxes().tolist(), masks.areas().tolist()
        for rle, (x0, y0, x1, y1), area, label in zip(
            masks.rle(), corners, areas, scene.labels.tolist(), strict=True
        ):
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": index + 1, "category_id": label + 1, "iscrowd": 0,
                    "bbox": [x0, y0, x1 - x0, y1 - y0], "area": area, "segmentation": rle,
                }
            )  # fmt: skip
    description = {
        "name": shapes.metadata.name, "origin": "synthetic", "task": shapes.metadata.task, "dims": 2
    }  # fmt: skip
    if semantic:
        _write_json(root / "dataset.json", description | {"classes": list(shapes.metadata.class_names)})
        return
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(shapes.classes)]
    coco = {"images": listed, "annotations": annotations, "categories": categories}
    _write_json(_folder(root / "annotations") / f"instances_{split}.json", coco)
    described = description | {"classes": list(shapes.classes), "annotation_format": "coco"}
    _write_json(root / "dataset.json", described)


def _write_nuclei(nuclei: Nuclei3d, root: Path, split: str, file_format: str) -> None:
    images, labels = _folder(root / "images" / split), _folder(root / "labels" / split)
    write, suffix = (_write_tiff, ".tif") if file_format == "tiff" else (_write_zarr, ".zarr")
    spacing = nuclei.spacing.tolist()
    for index in progress(range(len(nuclei)), len(nuclei), f"nuclei3d, {split}"):
        volume = nuclei.render(index)
        write(images / f"{index:06d}{suffix}", volume.image, spacing)
        write(labels / f"{index:06d}{suffix}", _smallest_ids(volume.label_map), spacing)
    described = {
        "name": "nuclei3d", "origin": "synthetic", "task": "instance", "dims": 3,
        "classes": list(nuclei.metadata.class_names), "axes": "ZYX", "voxel_size_um": spacing,
    }  # fmt: skip
    _write_json(root / "dataset.json", described)


def _smallest_ids(label_map: np.ndarray) -> np.ndarray:
    """Return ids as uint16 where they fit: ids never wrap."""
    return label_map.astype(np.uint16 if int(label_map.max()) <= 65535 else np.uint32)


def _write_tiff(path: Path, volume: np.ndarray, spacing: list[float]) -> None:
    import tifffile

    z, y, x = spacing
    if volume.dtype == np.uint32:  # a type that ImageJ does not know; the spacing is in dataset.json as well
        tifffile.imwrite(path, volume, photometric="minisblack", metadata={"axes": "ZYX"})
        return
    metadata = {"axes": "ZYX", "spacing": z, "unit": "um"}
    tifffile.imwrite(
        path, volume, imagej=True, photometric="minisblack", resolution=(1 / x, 1 / y), metadata=metadata
    )


def _write_zarr(path: Path, volume: np.ndarray, spacing: list[float]) -> None:
    import zarr

    zarr.create_array(
        store=str(path),
        data=volume,
        chunks=tuple(min(length, 64) for length in volume.shape),
        dimension_names=["z", "y", "x"],
        attributes={"spacing": spacing, "unit": "um"},
        # An empty chunk that is not stored cannot be told from a lost one.
        config={"write_empty_chunks": True},
    )


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content) + "\n")
