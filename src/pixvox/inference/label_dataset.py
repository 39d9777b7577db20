"""Write predictions as a dataset to train on: images beside labels, whole or not at all."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from pixvox.errors import ConfigError, DataError
from pixvox.inference.results import result_name, smallest_type, to_coco
from pixvox.structures import Segmentation


class LabelDataset:
    """A folder that ``pixvox train --data`` takes: ``images/train`` with COCO JSON, or with label maps.

    Objects of images become a COCO file; objects of volumes, and classes, label maps. Images in which nothing was found
    go to ``images/unlabelled``: that nothing is there is not known. Everything is written to a temporary folder beside
    ``out`` that is renamed at the end of a ``with`` block.

    Args:
        out: Folder to make; it must not exist, or be empty.
        task: ``"instance"`` or ``"semantic"``.
        spatial_dims: 2 for images, 3 for volumes.
        class_names: Names by class index.

    Raises:
        DataError: If ``out`` holds something already.
        ConfigError: If these are objects of several classes in volumes, which label maps cannot tell apart, or panoptic
            segments.
    """

    def __init__(self, out: str | Path, task: str, spatial_dims: int, class_names: Sequence[str]) -> None:
        self.out = Path(out)
        if self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise DataError(f"{out} exists already; choose another folder, or remove it first")
        if task == "panoptic":
            raise ConfigError("panoptic predictions have no dataset of labels here; leave out --as-labels")
        if task == "instance" and spatial_dims == 3 and len(class_names) > 1:
            raise ConfigError(
                f"this model finds objects of {len(class_names)} classes in volumes, but a label map tells objects of "
                "one class; leave out --as-labels: the tables of each volume hold the classes"
            )
        self.task, self.spatial_dims, self.class_names = task, spatial_dims, list(class_names)
        self.coco = task == "instance" and spatial_dims == 2
        self.pictures: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.taken: set[str] = set()
        self.empty = True  # as long as no image has a label

    def __enter__(self) -> LabelDataset:
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.partial = Path(tempfile.mkdtemp(prefix=f".{self.out.name}.", dir=self.out.parent))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            shutil.rmtree(self.partial, ignore_errors=True)

    def add(self, result: Segmentation, image: Path) -> bool:
        """Add an image and its labels; return whether there were any.

        Args:
            result: Of one image; ``class_map`` may hold ``ignore_index`` where nothing is known.
            image: Its file, which is copied.
        """
        name = self._free(image.name)
        found = bool(len(result.instances)) if result.instances is not None else self._known(result)
        self.empty &= not found
        target = _folder(self.partial / "images" / ("train" if found else "unlabelled")) / name
        if image.is_dir():
            shutil.copytree(image, target)
        else:
            shutil.copy2(image, target)
        if found and self.coco:
            self._annotate(result, name)
        elif found:
            self._write_labels(result, name)
        return found

    @staticmethod
    def _known(result: Segmentation) -> bool:
        return result.class_map is not None and bool((result.class_map != result.ignore_index).any())

    def _annotate(self, result: Segmentation, name: str) -> None:
        number = len(self.pictures) + 1
        height, width = result.size
        self.pictures.append({"id": number, "file_name": name, "height": height, "width": width})
        for annotation in to_coco(result, image_id=number):
            annotation.pop("score", None)
            self.annotations.append({"iscrowd": 0, **annotation, "id": len(self.annotations) + 1})

    def _write_labels(self, result: Segmentation, name: str) -> None:
        labels = result.label_map().cpu().numpy()
        labels = labels.astype(smallest_type(labels))
        folder = _folder(self.partial / "labels" / "train")
        stem = result_name(Segmentation(source=name))
        if labels.ndim == 2 and labels.dtype != np.uint32:
            from PIL import Image

            Image.fromarray(labels).save(folder / f"{stem}.png")
            return
        import tifffile

        metadata = {"axes": "ZYX"[-labels.ndim :]}
        tifffile.imwrite(
            folder / f"{stem}.tif", labels, photometric="minisblack", metadata=metadata, compression="zlib"
        )

    def _finish(self) -> None:
        described: dict[str, Any] = {
            "name": self.out.name, "task": self.task, "dims": self.spatial_dims, "classes": self.class_names,
        }  # fmt: skip
        if self.coco:
            categories = [{"id": label + 1, "name": each} for label, each in enumerate(self.class_names)]
            coco = {"images": self.pictures, "annotations": self.annotations, "categories": categories}
            _write_json(_folder(self.partial / "annotations") / "instances_train.json", coco)
            described["annotation_format"] = "coco"
        _write_json(self.partial / "dataset.json", described)
        self.partial.chmod(0o755)  # a temporary folder is private
        if self.out.exists():
            self.out.rmdir()
        self.partial.rename(self.out)

    def _free(self, name: str) -> str:
        """Return the name, numbered when an image of another folder has its stem already."""
        stem = result_name(Segmentation(source=name))
        suffix, number, free = name[len(stem) :], 1, stem
        while free in self.taken:
            number += 1
            free = f"{stem}_{number}"
        self.taken.add(free)
        return free + suffix


def confident(result: Segmentation, threshold: float) -> Segmentation:
    """Return a result with what is less sure left out: instances removed, pixels ignored.

    Args:
        result: Instances with scores, or a class map with probabilities.
        threshold: Least score or probability.
    """
    if result.instances is not None:
        scores = result.instances.scores
        result.instances = result.instances if scores is None else result.instances[scores >= threshold]
    elif result.probabilities is not None:
        sure, labels = result.probabilities.max(dim=0)
        result.class_map = torch.where(sure >= threshold, labels, result.ignore_index)
    return result


def _folder(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def _write_json(path: Path, content: dict[str, Any] | Sequence[Any]) -> None:
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")
