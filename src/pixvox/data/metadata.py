"""What a dataset says of itself: enough to build a model for it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from pixvox.structures import IGNORE_INDEX

Task = Literal["instance", "semantic"]
"""What a label map can be read for."""


@dataclass(frozen=True)
class Metadata:
    """Task, dimensions, classes and channels of a dataset.

    Args:
        task: ``"instance"`` (objects), ``"semantic"`` (a class for each pixel or voxel) or ``"panoptic"`` (objects,
            and one region for each stuff class).
        spatial_dims: 2 for images, 3 for volumes.
        class_names: Names by class index; a semantic task counts its background here, an instance task has
            none.
        in_channels: Channels of the images.
        ignore_index: Value of semantic label maps that is neither learned nor scored, whatever the files use.
        spacing: Size of a pixel or voxel per axis in array order, when all files share it.
        unit: Unit of ``spacing``, ``"um"`` or ``"mm"``.
        name: Name of the dataset, for logs and pictures.
        is_thing: Panoptic tasks: for each class whether its objects are told apart; None is all.

    Raises:
        ValueError: If a field is out of range.

    Example:
        >>> Metadata("instance", 2, ("cell",), in_channels=1).num_classes
        1
    """

    task: Task | Literal["panoptic"]
    spatial_dims: int
    class_names: tuple[str, ...]
    in_channels: int
    ignore_index: int = IGNORE_INDEX
    spacing: tuple[float, ...] | None = None
    unit: str = "um"
    name: str = ""
    is_thing: tuple[bool, ...] | None = None

    def __post_init__(self) -> None:
        if self.task not in ("instance", "semantic", "panoptic"):
            raise ValueError(f"task must be 'instance', 'semantic' or 'panoptic', got {self.task!r}")
        if self.is_thing is not None and len(self.is_thing) != len(self.class_names):
            raise ValueError(
                f"is_thing has {len(self.is_thing)} entries for {len(self.class_names)} classes; give one per class"
            )
        if self.spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims must be 2 (images) or 3 (volumes), got {self.spatial_dims}")
        if not self.class_names:
            raise ValueError("a dataset needs at least one class name")
        if self.spacing is not None and len(self.spacing) != self.spatial_dims:
            raise ValueError(f"spacing {self.spacing} needs {self.spatial_dims} values, in array order")

    @property
    def num_classes(self) -> int:
        """Number of classes; a semantic background counts, an instance background does not exist."""
        return len(self.class_names)

    def to_dict(self) -> dict[str, Any]:
        """Return plain types, for JSON and checkpoints."""
        plain = asdict(self)
        plain["class_names"] = list(self.class_names)
        plain["is_thing"] = list(self.is_thing) if self.is_thing is not None else None
        plain["spacing"] = list(self.spacing) if self.spacing is not None else None
        return plain
