"""What a dataset says of itself: enough to build a model for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from pixvox.data.label_space import Color, LabelSpace, get_label_space
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
        is_thing: For each class whether it has objects that can be counted. Panoptic tasks tell these apart, all
            when None.
        colors: Colour of each class, red, green and blue in 0..255; None when the dataset has none of its own.
        flip_pairs: Pairs of classes that change places in a mirror, such as left and right arm.

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
    colors: tuple[Color, ...] | None = None
    flip_pairs: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if self.task not in ("instance", "semantic", "panoptic"):
            raise ValueError(f"task must be 'instance', 'semantic' or 'panoptic', got {self.task!r}")
        if self.is_thing is not None and len(self.is_thing) != len(self.class_names):
            raise ValueError(
                f"is_thing has {len(self.is_thing)} entries for {len(self.class_names)} classes; give one per class"
            )
        if self.colors is not None and len(self.colors) != len(self.class_names):
            raise ValueError(
                f"colors has {len(self.colors)} entries for {len(self.class_names)} classes; give one per class"
            )
        _check_pairs(self.flip_pairs, self.class_names)
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
        plain["colors"] = [list(color) for color in self.colors] if self.colors is not None else None
        plain["flip_pairs"] = [list(pair) for pair in self.flip_pairs]
        return plain

    def with_classes(self, class_names: tuple[str, ...], table: Sequence[int]) -> Metadata:
        """Return the metadata in another label space.

        What is known of a class stays with it: a new class has the colour of the first old one that it stands for,
        is a thing when all of them are, and changes places in a mirror as they do.

        Args:
            class_names: The new names, by class index.
            table: New class by old class, -1 for one that is left out.

        Example:
            >>> lip = resolve_metadata("LIP")
            >>> arms = lip.with_classes(("left arm", "right arm"), [-1] * 14 + [0, 1] + [-1] * 4)
            >>> arms.flip_pairs, arms.colors
            (((0, 1),), ((51, 170, 221), (0, 255, 255)))
        """
        old = [
            [place for place, new in enumerate(table) if new == label] for label in range(len(class_names))
        ]
        known = all(old)
        colors, things = self.colors, self.is_thing
        pairs = {(table[one], table[other]) for one, other in self.flip_pairs}
        return replace(
            self,
            class_names=class_names,
            colors=tuple(colors[places[0]] for places in old) if colors is not None and known else None,
            is_thing=tuple(all(things[place] for place in places) for places in old)
            if things is not None and known
            else None,
            flip_pairs=tuple(
                sorted({(min(pair), max(pair)) for pair in pairs if min(pair) >= 0 and pair[0] != pair[1]})
            ),
        )


def resolve_metadata(name: str, in_channels: int = 3) -> Metadata:
    """Return what is known of a public dataset without having it, by the name of its label space.

    Args:
        name: Such as ``"Cityscapes"``, ``"Cityscapes{category}"``, ``"coco{voc}"`` or ``"ADE20K"``; a page of the
            guide, ``docs/how-to/datasets.md``, lists all.
        in_channels: Channels of the images.

    Raises:
        DataError: If there is no such name; the message says which are near.

    Example:
        >>> data = resolve_metadata("Cityscapes")
        >>> data.num_classes, data.class_names[0], data.colors[0], data.ignore_index
        (19, 'road', (128, 64, 128), 255)
    """
    return metadata_of(get_label_space(name), in_channels)


def metadata_of(space: LabelSpace, in_channels: int = 3, name: str = "") -> Metadata:
    """Return the metadata of images whose pixels have the classes of a label space."""
    return Metadata(
        "semantic",
        2,
        space.class_names,
        in_channels,
        name=name or space.name,
        is_thing=space.is_thing,
        colors=space.colors,
        flip_pairs=space.flip_pairs,
    )


def _check_pairs(pairs: tuple[tuple[int, int], ...], class_names: tuple[str, ...]) -> None:
    """Refuse pairs that are no exchange of two classes each."""
    flat = [label for pair in pairs for label in pair]
    if len(set(flat)) != 2 * len(pairs) or not set(flat) <= set(range(len(class_names))):
        raise ValueError(
            f"flip_pairs={pairs} must be pairs of different classes in 0..{len(class_names) - 1}, each in one pair"
        )
