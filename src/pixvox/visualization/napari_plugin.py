"""What napari offers when pixvox is installed beside it: results with their table, and models on layers.

``pixvox/napari.yaml`` tells napari of it; napari is imported by napari alone.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np

from pixvox.errors import DataError
from pixvox.table_file import read_rows, table_beside

if TYPE_CHECKING:
    import napari.layers
    import napari.types

    import pixvox.structures

LayerData = tuple[Any, dict[str, Any], str]
"""Values, options and kind of a layer, as napari takes it."""


def labels_reader(path: str | Sequence[str]) -> Callable[[str | Sequence[str]], list[LayerData]] | None:
    """Return what reads labels that pixvox wrote, ``NAME_labels.*``; None for other files, which others read.

    Args:
        path: What is opened; several files at once are those of a stack, which these are not.
    """
    from pixvox.inference.results import name_of

    several = not isinstance(path, str)
    return None if several or not name_of(Path(str(path))).endswith("_labels") else read_labels_layer


def read_labels_layer(path: str | Sequence[str]) -> list[LayerData]:
    """Return a labels layer with the levels of the pyramid, the spacing, and the table as its features.

    Of OME-Zarr nothing is read before it is shown.

    Args:
        path: Label map; ``NAME_table.csv`` or ``.parquet`` beside ``NAME_labels`` is its table.

    Raises:
        DataError: If the file cannot be read.
    """
    from pixvox.data.images import RASTER, read_labels
    from pixvox.data.volumes.open import open_volume
    from pixvox.inference.results import name_of

    file = Path(str(path))
    name = name_of(file)
    options: dict[str, Any] = {"name": name}
    table = table_beside(file, name.removesuffix("_labels"))
    if table is not None:
        options["features"] = features_of(table)
    if file.name.lower().endswith(RASTER):
        return [(read_labels(file), options, "labels")]
    volume = open_volume(file)
    if volume.channels != 1:
        raise DataError(f"{file}: has {volume.channels} channels, a label map has one")
    if volume.spacing is not None:
        options["scale"] = volume.spacing
    levels = _levels(file)
    if len(levels) > 1:
        return [(levels, options | {"multiscale": True}, "labels")]
    if levels:
        return [(levels[0], options, "labels")]
    return [(volume.read((slice(None),) * len(volume.size))[0], options, "labels")]


def features_of(table: Path) -> dict[str, list[Any]]:
    r"""Return the columns of a table; ``index`` tells napari which label a row is about.

    Example:
        >>> from tempfile import mkdtemp
        >>> path = Path(mkdtemp()) / "cells_table.csv"
        >>> _ = path.write_text("id,class,size\n7,cell,12.5\n")
        >>> features_of(path)
        {'index': [7], 'class': ['cell'], 'size': [12.5]}
    """
    rows = list(read_rows(table))
    columns = [column for column in (rows[0] if rows else []) if column is not None]
    values = {column: [_number(row[column]) for row in rows] for column in columns}
    return {"index": [int(number) for number in values.pop("id", range(1, len(rows) + 1))], **values}


# Annotations become the widget: all but those of napari itself are to be there without evaluation.
def segment(
    image: "napari.layers.Image", run: Annotated[Path, {"mode": "d"}]
) -> "napari.types.LayerDataTuple":
    """Segment an image layer with a trained model.

    Args:
        image: The layer; its pixels or voxels go to the model as they are.
        run: Run folder.
    """
    import pixvox

    values = image.data[0] if image.multiscale else image.data
    return result_layer(pixvox.load(run).predict(np.asarray(values)), image.name, image.scale)


def result_layer(result: "pixvox.structures.Segmentation", name: str, scale: Sequence[float]) -> LayerData:
    """Return the layer of what was found in the values of another; classes of a class map count from 1 there.

    Args:
        result: Objects or classes.
        name: Of the other layer.
        scale: Of the other layer, per axis in array order.
    """
    labels = result.label_map().cpu().numpy()
    if result.instances is None:
        labels = np.where(labels == result.ignore_index, 0, labels + 1)  # napari leaves 0 out
    rows = result.table()
    features: dict[str, list[Any]] = {
        column: [row[column] for row in rows] for column in (rows[0] if rows else ())
    }
    features["index"] = [number + (result.instances is None) for number in features.pop("id", [])]
    options = {"name": f"{name} labels", "scale": tuple(scale)[-labels.ndim :], "features": features}
    return labels, options, "labels"


def _levels(path: Path) -> list[Any]:
    """Return the arrays of an OME-Zarr, which are read where they are looked at; none of other files."""
    from pixvox.data.images import ZARR
    from pixvox.data.readers.zarr_array import open_zarr

    levels: list[Any] = []
    while path.name.lower().endswith(ZARR):
        try:
            levels.append(open_zarr(path, len(levels))[0])
        except DataError:
            break
    return levels


def _number(text: str | None) -> Any:
    """Return what a cell says as a number, if it is one."""
    for kind in (int, float):
        try:
            return kind(text or "")
        except ValueError:
            continue
    return text
