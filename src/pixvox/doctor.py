"""What this machine offers: versions, device, memory, extras."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from typing import Any

from pixvox.devices import device_summary
from pixvox.version import __version__

PACKAGES = (
    "torch", "torchvision", "timm", "lightning", "hydra-core", "numpy", "scipy", "numba", "tifffile", "zarr",
    "faster-coco-eval",
)  # fmt: skip
"""Packages whose versions belong to a run."""

EXTRAS = {
    "medical": ("nibabel", "NIfTI volumes"),
    "hdf5": ("h5py", "instances in HDF5 files"),
    "onnx": ("onnxruntime", "export to ONNX"),
    "omezarr": ("ngff_zarr", "writing OME-Zarr"),
    "parquet": ("pyarrow", "tables of millions of objects"),
    "napari": ("napari", "the viewer"),
    "wandb": ("wandb", "tracking with Weights & Biases"),
    "mlflow": ("mlflow", "tracking with MLflow"),
    "ray": ("ray", "distributed runs and sweeps"),
    "deepspeed": ("deepspeed", "sharded training"),
}
"""Extras by name: the module that shows they are installed, and what they are for."""


def examine() -> dict[str, Any]:
    """Return versions, device, memory and extras as plain types."""
    import torch

    return {
        "pixvox": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": package_versions(),
        "device": device_summary(),
        "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": _memory_gib(),
        "extras": {
            name: {
                "installed": importlib.util.find_spec(module) is not None,
                "for": purpose,
                "install": f'pip install "pixvox[{name}]"',
            }
            for name, (module, purpose) in EXTRAS.items()
        },
    }


def package_versions() -> dict[str, str | None]:
    """Return the installed versions of the packages that matter to a run."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def _memory_gib() -> float | None:
    """Return the memory of the machine, where the system tells it."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        return None
