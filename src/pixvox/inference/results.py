"""Results as COCO annotations, as a table in physical units, and as files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from pixvox.errors import DataError
from pixvox.files import whole_file
from pixvox.structures import Instances, Segmentation
from pixvox.table_file import save_table

if TYPE_CHECKING:
    from pixvox.inference.volume_files import TableKind

AXES = "xyz"
_MAX_UINT16 = 65535


def to_coco(
    segmentation: Segmentation, image_id: int = 1, category_ids: Sequence[int] | None = None
) -> list[dict[str, Any]]:
    """Return the instances as COCO annotations, or as COCO results when they have scores.

    Args:
        segmentation: Instances with masks, boxes or both.
        image_id: COCO's id of the image.
        category_ids: COCO's id of each class index; by default the index + 1.

    Returns:
        Dictionaries with ``bbox`` (``[x, y, (z,) w, h, (d)]``), ``area``, ``segmentation`` (compressed RLE)
        and ``score`` or ``iscrowd``; ids count from 1.

    Raises:
        DataError: If there are no instances, or a class has no category id.

    Example:
        >>> cell = Segmentation(Instances(masks=torch.tensor([[0, 1, 1]])))
        >>> to_coco(cell)[0]["bbox"], to_coco(cell)[0]["area"]
        ([1.0, 0.0, 2.0, 1.0], 2.0)
    """
    instances = _instances(segmentation).to("cpu")
    labels = instances.labels.tolist()
    if category_ids is not None and labels and max(labels) >= len(category_ids):
        raise DataError(
            f"{len(category_ids)} category ids were given, but an instance has class {max(labels)}; "
            "give one id per class, in the order of the class indices"
        )
    corners = instances.boxes.double()
    low, high = corners.chunk(2, dim=1)
    boxes = torch.cat([low, high - low], dim=1).tolist()
    areas = (high - low).prod(dim=1) if instances.masks is None else instances.masks.areas()
    rles = instances.masks.rle() if instances.masks is not None else None
    annotations: list[dict[str, Any]] = []
    for i, label in enumerate(labels):
        annotation: dict[str, Any] = {
            "id": i + 1,
            "image_id": image_id,
            "category_id": label + 1 if category_ids is None else int(category_ids[label]),
            "bbox": boxes[i],
            "area": float(areas[i]),
        }
        if rles is not None:
            annotation["segmentation"] = dict(rles[i])
        if instances.scores is not None:
            annotation["score"] = float(instances.scores[i])
        else:
            annotation["iscrowd"] = int(instances.ignore[i])
        annotations.append(annotation)
    return annotations


def table(segmentation: Segmentation) -> list[dict[str, Any]]:
    """Return one row per instance, or one per class of a class map.

    Instances: ``id`` (as in the label map), ``class``, ``score``, ``size`` in pixels or voxels,
    ``centroid_x``, ``centroid_y``, ..., the corners of the box, ``touches_border``, and with an image
    ``mean_intensity`` (one per channel when there are several). Coordinates are those of boxes: the centre of
    the first pixel is 0.5. With a known spacing follow ``size_um2`` or ``size_um3``, ``centroid_x_um``, ...

    Classes: ``id``, ``class``, ``size``, ``share`` of the pixels that are not ignored, ``size_um2``.

    Example:
        >>> cell = Segmentation(Instances(masks=torch.tensor([[0, 1, 1]])), class_names=("cell",))
        >>> row = table(cell)[0]
        >>> row["class"], row["size"], row["centroid_x"], row["touches_border"]
        ('cell', 2, 2.0, True)
    """
    if segmentation.instances is None and segmentation.class_map is not None:
        return _class_rows(segmentation, segmentation.class_map)
    instances = _instances(segmentation).to("cpu")
    spacing, unit = _spacing(segmentation)
    order = list(range(len(instances)))
    if instances.scores is not None:
        order = instances.scores.argsort(descending=True, stable=True).tolist()
    sizes, centroids, means = _measure(instances, segmentation)
    letters = AXES[: segmentation.spatial_dims]
    length = torch.tensor(segmentation.size[::-1], dtype=torch.float32)
    low, high = instances.boxes.chunk(2, dim=1)
    touches = ((low <= 0) | (high >= length)).any(dim=1)
    rows = []
    for number, i in enumerate(order, 1):
        row: dict[str, Any] = {"id": number, "class": _class_name(segmentation, int(instances.labels[i]))}
        if instances.scores is not None:
            row["score"] = round(float(instances.scores[i]), 6)
        row["size"] = int(sizes[i])
        row |= {f"centroid_{axis}": round(float(c), 3) for axis, c in zip(letters, centroids[i], strict=True)}
        for side, corner in (("0", low[i]), ("1", high[i])):
            row |= {f"{axis}{side}": float(c) for axis, c in zip(letters, corner, strict=True)}
        row["touches_border"] = bool(touches[i])
        row |= {name: round(float(values[i]), 4) for name, values in means.items()}
        if spacing is not None:
            row[f"size_{unit}{len(spacing)}"] = float(f"{sizes[i] * float(np.prod(spacing)):.6g}")
            row |= {
                f"centroid_{axis}_{unit}": round(float(c) * step, 4)
                for axis, c, step in zip(letters, centroids[i], spacing[::-1], strict=True)
            }
        rows.append(row)
    return rows


def _measure(
    instances: Instances, segmentation: Segmentation
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], dict[str, npt.NDArray[np.float64]]]:
    """Return sizes, centroids ``(n, dims)`` as (x, y[, z]) and mean intensities, by mask or else by box."""
    low, high = (corner.double().numpy() for corner in instances.boxes.chunk(2, dim=1))
    if instances.masks is None:
        return (high - low).prod(axis=1), (low + high) / 2, {}
    from pixvox.metrics.overlaps import elements

    inside = elements(instances.masks)
    count = len(instances)
    sizes = np.bincount(inside.owners, minlength=count).astype(np.float64)
    full = np.maximum(sizes, 1)
    indices = np.unravel_index(inside.positions, segmentation.size)[::-1]
    centroids = np.stack([np.bincount(inside.owners, axis, count) / full for axis in indices], axis=1) + 0.5
    means = {}
    if segmentation.image is not None:
        image = segmentation.image.detach().cpu().reshape(segmentation.image.shape[0], -1).numpy()
        for channel, values in enumerate(image):
            name = "mean_intensity" if len(image) == 1 else f"mean_intensity_{channel}"
            means[name] = np.bincount(inside.owners, values[inside.positions], count) / full
    return sizes, centroids, means


def _class_rows(segmentation: Segmentation, class_map: torch.Tensor) -> list[dict[str, Any]]:
    """Return a row per class of a class map, absent classes with size 0."""
    values = class_map.cpu().reshape(-1)
    values = values[(values != segmentation.ignore_index) & (values >= 0)].long()
    counts = torch.bincount(values, minlength=len(segmentation.class_names)).tolist()
    spacing, unit = _spacing(segmentation)
    total = max(1, sum(counts))
    rows = []
    for label, count in enumerate(counts):
        row: dict[str, Any] = {
            "id": label,
            "class": _class_name(segmentation, label),
            "size": count,
            "share": round(count / total, 6),
        }
        if spacing is not None:
            row[f"size_{unit}{len(spacing)}"] = float(f"{count * float(np.prod(spacing)):.6g}")
        rows.append(row)
    return rows


def save(
    segmentation: Segmentation,
    folder: str | Path,
    name: str | None = None,
    table_kind: TableKind = "csv",
    page: bool = False,
) -> list[Path]:
    """Write label map, table, COCO file and overlay; each file appears whole or not at all.

    Args:
        segmentation: The result; the overlay shows its image.
        folder: Made when missing.
        name: Beginning of the file names; by default that of the source.
        table_kind: ``"csv"`` or ``"parquet"``.
        page: Also write ``NAME.html``, slices with the labels over them and the table, for any browser.

    Returns:
        The files: ``NAME_labels.png`` (instances: 16 bit; classes: palette) or ``.ome.tif`` (volumes and more
        than 65535 ids, with spacing), ``NAME_table.csv``, ``NAME_coco.json`` (instances of images) and
        ``NAME_overlay.png``.
    """
    from pixvox.visualization.overlay import overlay

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    name = result_name(segmentation) if name is None else name
    files = []
    has_labels = segmentation.class_map is not None or (
        segmentation.instances is not None and segmentation.instances.masks is not None
    )
    if has_labels:
        files.append(save_labels(segmentation, folder, f"{name}_labels"))
    rows = table(segmentation)
    files.append(save_table(folder / f"{name}_table.{table_kind}", [_columns(rows)]))
    if segmentation.instances is not None and segmentation.spatial_dims == 2:
        files.append(folder / f"{name}_coco.json")
        with whole_file(files[-1]) as part:
            part.write_text(json.dumps(_coco_document(segmentation)), encoding="utf-8")
    files.append(folder / f"{name}_overlay.png")
    from PIL import Image

    with whole_file(files[-1]) as part:
        Image.fromarray(overlay(segmentation)).save(part, format="PNG")
    if page and has_labels:
        files.append(_save_page(segmentation, rows, folder / f"{name}.html"))
    return files


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the columns of rows; without rows, those that every table of objects has."""
    if not rows:
        return {
            "id": np.zeros(0, np.int64),
            "class": [],
            "score": np.zeros(0),
            "size": np.zeros(0, np.int64),
        }
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return {
        name: values if isinstance(values[0], str) else np.array(values) for name, values in columns.items()
    }


def _save_page(segmentation: Segmentation, rows: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Write slices of the image with the labels over them; black where the result keeps no image."""
    from pixvox.data.volumes.open import open_volume
    from pixvox.visualization.html_page import write_page

    axes = "ZYX"[-segmentation.spatial_dims :]
    image = segmentation.image
    shown = np.zeros((1, *segmentation.size), np.uint8) if image is None else image.detach().cpu().numpy()
    volume = open_volume(shown, axes=f"C{axes}")
    volume.source = segmentation.source or path.stem
    volume.spacing, volume.unit = _spacing(segmentation)
    labels = open_volume(segmentation.label_map().cpu().numpy(), axes=axes)
    is_classes = segmentation.instances is None
    return write_page(
        volume, labels, rows, path, class_names=segmentation.class_names if is_classes else None
    )


def _coco_document(segmentation: Segmentation) -> dict[str, Any]:
    """Return a COCO file of one image: also with scores, which COCO's readers pass over."""
    annotations = to_coco(segmentation)
    labels = [annotation["category_id"] for annotation in annotations]
    count = max([len(segmentation.class_names), *labels])
    height, width = segmentation.size
    source = Path(segmentation.source or "image").name
    return {
        "images": [{"id": 1, "file_name": source, "height": height, "width": width}],
        "categories": [{"id": i + 1, "name": _class_name(segmentation, i)} for i in range(count)],
        "annotations": [{"iscrowd": 0, **annotation} for annotation in annotations],
    }


def save_labels(segmentation: Segmentation, folder: Path, name: str) -> Path:
    """Write the label map in the smallest of the usual types that holds every id: ids never wrap.

    Args:
        segmentation: Objects or a class map.
        folder: Where to write.
        name: Of the file, without ``.png`` or ``.ome.tif``.
    """
    labels = segmentation.label_map().cpu().numpy()
    semantic = segmentation.instances is None or segmentation.instances.masks is None
    labels = labels.astype(smallest_type(labels, at_least_16_bit=not semantic))
    if labels.ndim == 2 and labels.dtype != np.uint32:
        from PIL import Image

        path = folder / f"{name}.png"
        picture = Image.fromarray(labels)
        if labels.dtype == np.uint8:
            from pixvox.visualization.colors import IGNORE_COLOR, palette

            picture = picture.convert("P")
            colors = palette(256)
            if segmentation.ignore_index < 256:
                colors[segmentation.ignore_index] = IGNORE_COLOR
            picture.putpalette(colors.tobytes())
        with whole_file(path) as part:
            picture.save(part, format="PNG")
        return path
    import tifffile

    path = folder / f"{name}.ome.tif"
    metadata: dict[str, Any] = {"axes": "ZYX"[-labels.ndim :]}
    spacing, unit = _spacing(segmentation)
    if spacing is not None:
        for axis, step in zip("XYZ", spacing[::-1], strict=False):
            metadata |= {f"PhysicalSize{axis}": step, f"PhysicalSize{axis}Unit": _OME_UNITS[unit]}
    with whole_file(path) as part:
        tifffile.imwrite(part, labels, ome=True, metadata=metadata, compression="zlib")
    return path


_OME_UNITS = {"um": "µm", "mm": "mm"}


def smallest_type(labels: npt.NDArray[np.integer], at_least_16_bit: bool = False) -> np.dtype[Any]:
    """Return uint8, uint16 or uint32, whichever holds all values.

    Raises:
        OverflowError: If a value is negative or above uint32.

    Example:
        >>> smallest_type(np.array([0, 65535])), smallest_type(np.array([0, 65536]))
        (dtype('uint16'), dtype('uint32'))
    """
    low, high = int(labels.min(initial=0)), int(labels.max(initial=0))
    for kind in (np.uint16, np.uint32) if at_least_16_bit else (np.uint8, np.uint16, np.uint32):
        if low >= 0 and high <= np.iinfo(kind).max:
            return np.dtype(kind)
    raise OverflowError(
        f"label values {low}..{high} do not fit into 32 bits without sign; renumber them from 1"
    )


def result_name(segmentation: Segmentation) -> str:
    """Return how the files of a result are called: as its source, without folder and suffix."""
    return name_of(Path(segmentation.source or "result"))


def name_of(path: Path) -> str:
    """Return the name of a file without folder and suffix.

    Example:
        >>> name_of(Path("scans/brain.ome.zarr"))
        'brain'
    """
    from pixvox.data.images import suffix_of

    suffix = suffix_of(path)
    return path.name[: -len(suffix)] if suffix else path.name


def _instances(segmentation: Segmentation) -> Instances:
    if segmentation.instances is None:
        raise DataError("this segmentation has no instances; class maps have table(), label_map() and save()")
    return segmentation.instances


def _spacing(segmentation: Segmentation) -> tuple[tuple[float, ...] | None, str]:
    geometry = segmentation.geometry
    return (None, "um") if geometry is None else (geometry.spacing, geometry.unit)


def _class_name(segmentation: Segmentation, label: int) -> str:
    names = segmentation.class_names
    return names[label] if label < len(names) else str(label)
