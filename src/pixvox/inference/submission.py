"""Class maps as benchmarks take them: pictures with a dataset's own values, zipped."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np

from pixvox.data.label_space import IGNORED, LabelSpace, get_label_space
from pixvox.errors import ConfigError, DataError
from pixvox.inference.results import result_name, smallest_type
from pixvox.structures import Segmentation

_CITYSCAPES = ("_leftImg8bit", "_pred_labelIds")
"""Ending of the names of Cityscapes' images, and of what its benchmark calls predictions."""


class Submission:
    """A zip of PNG files with the values that a benchmark's own label maps hold.

    ``berlin_000000_000019_leftImg8bit.png`` becomes ``berlin_000000_000019_pred_labelIds.png``, as Cityscapes'
    benchmark wants it; pictures of others keep their names. The file appears when the block ends well.

    Args:
        path: The zip; its folder is made when missing.
        values: Value by class index, see ``label_values``.

    Example:
        >>> from tempfile import mkdtemp
        >>> import torch
        >>> found = Segmentation(class_map=torch.tensor([[0, 1]]), source="ulm_1_leftImg8bit.png")
        >>> with Submission(Path(mkdtemp()) / "submission.zip", (7, 26)) as submission:
        ...     submission.add(found)
        'ulm_1_pred_labelIds.png'
    """

    def __init__(self, path: str | Path, values: Sequence[int]) -> None:
        self.path = Path(path)
        self.values = np.array(values, dtype=np.int64)
        self._names: set[str] = set()

    def __enter__(self) -> Submission:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._part = self.path.with_name(f".{os.getpid()}.{self.path.name}")
        self._zip = zipfile.ZipFile(self._part, "w", zipfile.ZIP_STORED)  # PNG is compressed already
        return self

    def add(self, result: Segmentation) -> str:
        """Write a class map; return the name of its file.

        Raises:
            DataError: If it is no class map of an image, holds what is no class, or its name is taken.
        """
        from PIL import Image

        if result.class_map is None or result.spatial_dims != 2:
            raise DataError(
                f"{result.source or 'a result'} is no class map of an image; benchmarks take those"
            )
        name = f"{_name(result)}.png"
        if name in self._names:
            raise DataError(f"two images are called {name}; a submission needs one name for each")
        labels = result.class_map.cpu().numpy()
        if labels.size and not 0 <= int(labels.min()) <= int(labels.max()) < len(self.values):
            raise DataError(
                f"{result.source or name} holds classes {labels.min()}..{labels.max()}, but values are known for "
                f"{len(self.values)}"
            )
        buffer = io.BytesIO()
        Image.fromarray(self.values[labels].astype(smallest_type(self.values))).save(buffer, format="PNG")
        self._zip.writestr(name, buffer.getvalue())
        self._names.add(name)
        return name

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._zip.close()
        if kind is None:
            os.replace(self._part, self.path)
        self._part.unlink(missing_ok=True)


def write_submission(results: Iterable[Segmentation], path: str | Path, values: Sequence[int]) -> Path:
    """Write class maps as a zip; see ``Submission`` for the names and the arguments."""
    with Submission(path, values) as submission:
        for result in results:
            submission.add(result)
    return submission.path


def label_values(chosen: str, class_names: Sequence[str]) -> tuple[int, ...]:
    """Return the value of each class in the label maps of a dataset.

    Args:
        chosen: A label space, such as ``"Cityscapes"``, or the values themselves, as in ``"7,8,11"``.
        class_names: Classes of the model.

    Raises:
        ConfigError: If there are other classes than values, or a class has no value or several.

    Example:
        >>> label_values("Cityscapes", ("car", "road"))
        (26, 7)
    """
    parts = [part.strip() for part in chosen.split(",")]
    if all(part.isdecimal() for part in parts):
        if len(parts) != len(class_names):
            raise ConfigError(
                f"--label-values: {len(parts)} values for {len(class_names)} classes ({', '.join(class_names)})"
            )
        return tuple(int(part) for part in parts)
    space = get_label_space(chosen)
    if space.masks != "values":
        raise ConfigError(
            f"the label maps of {space.name} hold colours; give the values themselves: 0,1,2,..."
        )
    return tuple(_value(space, name) for name in class_names)


def _value(space: LabelSpace, class_name: str) -> int:
    """Return the only value that stands for a class; of the class of all others the lowest that nothing else has."""
    if class_name not in space.class_names:
        raise ConfigError(
            f"the model's class {class_name!r} is none of {space.name} ({', '.join(space.class_names)}); give the "
            "values themselves: --label-values 0,1,2,..."
        )
    label = space.class_names.index(class_name)
    values = [code for code, of in space.codes.items() if of == label]
    if not values and space.others == label:
        taken = {code for code, of in space.codes.items() if of != IGNORED}
        return next(value for value in range(len(taken) + 1) if value not in taken)
    if len(values) != 1:
        raise ConfigError(
            f"class {class_name!r} of {space.name} stands for {len(values)} values ({values}); a prediction needs one: "
            "train on a label space without groups, or give the values themselves"
        )
    return values[0]


def _name(result: Segmentation) -> str:
    name = result_name(result)
    image, prediction = _CITYSCAPES
    return name.removesuffix(image) + prediction if name.endswith(image) else name
