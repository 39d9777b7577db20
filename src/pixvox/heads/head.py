"""What every head is: three methods and what it tells about itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from pixvox.ranges import check_at_least, check_shares
from pixvox.structures import Features, Geometry, Instances, Segmentation, Targets

if TYPE_CHECKING:
    from pixvox.data.fingerprint import Fingerprint
    from pixvox.data.suggestions import Suggestion

Outputs = dict[str, Any]
"""Raw tensors of a head by name; design and docs list the names that other parts may read."""


class Head(nn.Module, ABC):
    """Turns features into predictions.

    ``forward`` gives raw outputs, ``loss`` compares them with the truth, ``postprocess`` turns them into
    ``Segmentation``. Nothing outside a head knows which head it is.

    Args:
        spatial_dims: 2 for images, 3 for volumes.
        num_classes: Classes of the data; a head that needs a background class adds it inside.
        score_threshold: Instances below this are not given out.
        confident_score: From this score on an instance counts in label maps, matched scores and pictures of
            evaluation, unless they are told another; the scales of scores differ between heads.
        pseudo_label_threshold: Instances, or pixels, above this teach a student; the scales of scores differ
            between heads, so each names its own.
    """

    task: str
    """``"instance"``, ``"semantic"`` or ``"panoptic"``."""
    tasks: ClassVar[tuple[str, ...]] = ()
    """What the argument ``task`` may be, for heads that have one; no such argument when empty."""
    supported_dims: ClassVar[tuple[int, ...]] = (2, 3)
    branches: ClassVar[tuple[str, ...]] = ()
    """Names of the levels, for a head that takes those of one backbone, which are no pyramid; see ``Backbone``."""
    gives_probabilities: bool = False
    """Set it to have ``probabilities`` of classes in semantic results, for a student to learn from; they take a map per
    class."""

    def __init__(
        self,
        spatial_dims: int,
        num_classes: int,
        score_threshold: float = 0.0,
        pseudo_label_threshold: float = 0.7,
        confident_score: float = 0.5,
    ) -> None:
        super().__init__()
        if spatial_dims not in self.supported_dims:
            raise ValueError(
                f"{type(self).__name__} exists for spatial_dims in {self.supported_dims}, got {spatial_dims}; "
                f"pixvox.list_heads(spatial_dims={spatial_dims}) lists the heads that do"
            )
        check_at_least(1, num_classes=num_classes)
        check_shares(
            score_threshold=score_threshold,
            pseudo_label_threshold=pseudo_label_threshold,
            confident_score=confident_score,
        )
        self.spatial_dims = spatial_dims
        self.num_classes = num_classes
        self.score_threshold = score_threshold
        self.pseudo_label_threshold = pseudo_label_threshold
        self.confident_score = confident_score

    @classmethod
    def known_tasks(cls) -> tuple[str, ...]:
        """Return all tasks that this kind of head can be built for."""
        return cls.tasks or (cls.task,)

    def blocks(self) -> list[nn.Module]:
        """Return the parts that gradient checkpointing computes twice: those that keep much and cost little."""
        return []

    @classmethod
    def suggest(
        cls,
        facts: Fingerprint,
        options: Mapping[str, Any],
        strides: Sequence[Sequence[int]],
        patch: Sequence[int],
    ) -> list[Suggestion]:
        """Return values for options of this head that follow from a dataset's fingerprint.

        Args:
            facts: The fingerprint, in the pixels that the network sees.
            options: The options as they stand.
            strides: Strides of the levels that the head will get, per axis in array order.
            patch: Size of the training images in array order.
        """
        return []

    @abstractmethod
    def forward(self, features: Features, targets: Targets | None = None) -> Outputs:
        """Return raw outputs; heads that sample or denoise use ``targets``.

        In eval mode the outputs can always be post-processed, with targets or without.
        """

    @abstractmethod
    def loss(self, outputs: Outputs, targets: Targets) -> dict[str, Tensor]:
        """Return the terms to add up, by name; no parameter is used here that ``forward`` did not use."""

    @abstractmethod
    def postprocess(self, outputs: Outputs, geometries: Sequence[Geometry]) -> list[Segmentation]:
        """Return predictions in the frame that each geometry names as its original."""


def instances_of(targets: Targets, name: str) -> Sequence[Instances]:
    """Return targets that are instances.

    Args:
        targets: Of a batch.
        name: The head that asks, for the error.

    Raises:
        ValueError: If they are label maps.
    """
    if isinstance(targets, Tensor):
        raise ValueError(
            f"{name} learns from instances, but was given label maps of classes; "
            "use a semantic head such as head=fcn, or a dataset with task: instance"
        )
    return targets
