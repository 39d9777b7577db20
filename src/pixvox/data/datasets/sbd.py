"""The Semantic Boundaries Dataset, whose label maps are MATLAB files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from pixvox.data.datasets.paired_files import PairedFiles
from pixvox.errors import DataError


def sbd(split: str = "train", root: str | Path | None = None, **options: Any) -> PairedFiles:
    """Open one split of SBD: 8,498 images to train on, 2,857 to validate, with the 21 classes of PASCAL VOC.

    "Semantic Contours from Inverse Detectors" (Hariharan et al., 2011, https://doi.org/10.1109/ICCV.2011.6126343).
    Its train split shares images with the val split of VOC 2012: whoever evaluates there takes the list
    ``train_noval.txt`` as ``split="train_noval"``.

    Args:
        split: Name of the list of images: ``"train"``, ``"val"`` or ``"train_noval"``.
        root: Folder that holds ``img``, ``cls`` and the lists, or ``benchmark_RELEASE``.
        **options: Further options of ``PairedFiles``.

    Raises:
        DataError: If files are missing or do not match.
    """
    return PairedFiles(
        **{
            "images": "img/{name}.jpg",
            "labels": "cls/{name}.mat",
            "label_space": "SBD",
            "name": "sbd",
            "split": split,
            "root": root,
            "inside": "benchmark_RELEASE/dataset",
            "names_file": "{split}.txt",
            "reader": read_sbd_classes,
            **options,
        }
    )


def read_sbd_classes(path: Path) -> UInt8[np.ndarray, "height width"]:
    """Read the classes of a file of ``cls``.

    Raises:
        DataError: If it is damaged, or another kind of MATLAB file.
    """
    from scipy.io import loadmat

    try:
        labels = loadmat(path, variable_names=["GTcls"])["GTcls"]["Segmentation"][0, 0]
        return np.asarray(labels, dtype=np.uint8)
    except Exception as error:  # SciPy raises what its reader stumbles over
        raise DataError(
            f"{path}: a label map of SBD is a MATLAB file with GTcls.Segmentation, this one is damaged or something "
            f"else ({error})"
        ) from error
