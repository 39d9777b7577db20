"""The model on one screen: normalise -> backbone -> neck -> head."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pixvox.backbones.backbone import Backbone
from pixvox.errors import ConfigError
from pixvox.heads.head import Head, Outputs
from pixvox.layers import pad_to_multiple
from pixvox.necks.neck import Neck, NoNeck
from pixvox.normalizer import Normalizer, PercentileNormalizer
from pixvox.signatures import locate
from pixvox.structures import Batch, Features, Geometry, Segmentation, Targets

PARTS = ("backbone", "neck", "head", "normalizer")
"""What a model is made of, by the keys of its configuration."""

if TYPE_CHECKING:
    from pixvox.inference.volume_prediction import VolumePrediction


class Segmenter(nn.Module):
    """A segmentation model of four parts that know only each other's channels and strides.

    ``forward`` and ``loss`` take normalised images; ``predict`` takes files, arrays and un-normalised
    tensors.

    Args:
        backbone: Images to feature maps.
        neck: Feature maps to feature maps; None hands them on as they are.
        head: Features to predictions.
        normalizer: Un-normalised to normalised images; by default by the percentiles of each image.
        class_names: Names by class index.

    Raises:
        ConfigError: If the parts are for different ``spatial_dims`` or ``branches``, or there are not as many names
            as classes.

    Example:
        >>> from pixvox.backbones.simple import Simple
        >>> from pixvox.heads.fcn import FCN
        >>> backbone = Simple(channels=(8, 16), strides=(2, 4))
        >>> head = FCN(in_channels=backbone.channels, strides=backbone.strides, num_classes=3)
        >>> model = Segmenter(backbone, None, head)
        >>> tuple(model(torch.zeros(1, 3, 37, 50))["logits"].shape)
        (1, 3, 37, 50)
    """

    def __init__(
        self,
        backbone: Backbone,
        neck: Neck | None,
        head: Head,
        normalizer: Normalizer | None = None,
        class_names: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if backbone.spatial_dims != head.spatial_dims:
            raise ConfigError(
                f"the backbone is for spatial_dims={backbone.spatial_dims}, the head for {head.spatial_dims}; "
                "build both with one spatial_dims"
            )
        _check_branches(type(backbone), type(head))
        if class_names and len(class_names) != head.num_classes:
            raise ConfigError(
                f"{len(class_names)} class names for {head.num_classes} classes: {list(class_names)}"
            )
        self.normalizer = normalizer or PercentileNormalizer()
        self.backbone = backbone
        self.neck = neck or NoNeck(backbone.channels, backbone.strides)
        self.head = head
        self.class_names = tuple(class_names) or tuple(f"class_{i}" for i in range(head.num_classes))
        self.config: dict[str, Any] = {}

    def forward(
        self,
        images: Float[Tensor, "batch channels *spatial"],
        targets: Targets | None = None,
        valid_sizes: Int[Tensor, "batch dims"] | None = None,
        seeds: Sequence[int] | None = None,
        perturb: Callable[[Features], Features] | None = None,
    ) -> Outputs:
        """Return the head's raw outputs; with targets they hold ``"losses"`` too.

        Args:
            images: Normalised images of any size.
            targets: Truth in the frame of ``images``.
            valid_sizes: The part of each image that is not padding, in array order; by default all of it.
            seeds: Seed of what the head draws for each image; by default it draws from torch's generator.
            perturb: Changes what the head is given, for methods that learn from disturbed features.
        """
        features = self.features(images, valid_sizes)
        features.seeds = seeds
        if perturb is not None:
            features = perturb(features)
        outputs: Outputs = self.head(features, targets)
        if targets is not None:
            outputs["losses"] = self.head.loss(outputs, targets)
        return outputs

    def features(
        self,
        images: Float[Tensor, "batch channels *spatial"],
        valid_sizes: Int[Tensor, "batch dims"] | None = None,
    ) -> Features:
        """Return what the head is given, for those who look at or perturb it."""
        self._check_images(images)
        if valid_sizes is None:
            valid_sizes = torch.tensor([images.shape[2:]] * images.shape[0], device=images.device)
        padded = pad_to_multiple(images, self.size_divisor)
        levels = self.neck(self.backbone(padded), valid_sizes)
        return Features(tuple(levels), self.neck.strides, padded, tuple(images.shape[2:]), valid_sizes)

    def loss(
        self, images: Tensor, targets: Targets, valid_sizes: Int[Tensor, "batch dims"] | None = None
    ) -> dict[str, Tensor]:
        """Return the loss terms by name, for normalised images."""
        losses: dict[str, Tensor] = self(images, targets, valid_sizes)["losses"]
        return losses

    def normalize(
        self, images: Tensor, intensity_ranges: Tensor | None = None, valid_sizes: Tensor | None = None
    ) -> Tensor:
        """Return normalised images with their padding set to zero; see ``pixvox.normalizer``."""
        normalized: Tensor = self.normalizer(images, intensity_ranges, valid_sizes)
        return normalized

    def postprocess(self, outputs: Outputs, geometries: Sequence[Geometry]) -> list[Segmentation]:
        """Return predictions in the original frame of each geometry, with class names."""
        device = next(self.parameters()).device.type
        with torch.autocast(device, enabled=False):  # places and thresholds need float32
            results = self.head.postprocess(outputs, geometries)
        for result, geometry in zip(results, geometries, strict=True):
            result.geometry = geometry
            result.class_names = self.class_names
        return results

    def run(
        self,
        batch: Batch,
        with_targets: bool = False,
        memory_format: torch.memory_format = torch.contiguous_format,
        perturb: Callable[[Features], Features] | None = None,
    ) -> Outputs:
        """Return the raw outputs of a collated batch of un-normalised images, on the model's device.

        Args:
            batch: As ``Collate`` makes it.
            with_targets: Hand the batch's targets over too, so that the outputs hold ``"losses"``.
            memory_format: Layout of the images, such as ``torch.channels_last``.
            perturb: See ``forward``.
        """
        valid_sizes = batch.valid_sizes
        images = self.normalize(batch.images, batch.intensity_ranges, valid_sizes)
        images = images.contiguous(memory_format=memory_format)
        targets = batch.targets if with_targets else None
        outputs: Outputs = self(images, targets, valid_sizes, batch.seeds, perturb)
        return outputs

    def segment(self, batch: Batch) -> list[Segmentation]:
        """Return the predictions of a collated batch in the original frame of each image, on the CPU."""
        return [result.to("cpu") for result in self.postprocess(self.run(batch), batch.geometries)]

    def predict(self, inputs: Any, **options: Any) -> Any:
        """Segment a path, folder, list, PIL image, array or **un-normalised** tensor, at its original size.

        Returns one ``Segmentation`` for a single input and a list otherwise; options are those of
        ``pixvox.inference.predictor``.
        """
        from pixvox.inference.predictor import predict

        return predict(self, inputs, **options)

    def predict_volume(
        self,
        volume: Any,
        out: str | Path,
        name: str | None = None,
        score_threshold: float | None = None,
        **options: Any,
    ) -> VolumePrediction:
        """Segment a volume or slide of any size block by block, and write labels and a table into a folder.

        Args:
            volume: A path, an array, or what ``pixvox.open_volume`` returns.
            out: Folder for ``NAME_labels.ome.zarr``, ``NAME_table.csv`` and the page ``NAME.html``; a run that was
                killed goes on.
            name: Beginning of their names; by default that of the file.
            score_threshold: Lowest score of an instance, in [0, 1]; by default the head's ``confident_score``.
            **options: ``tile_size``, ``overlap``, ``join_iou``, ``probabilities``, ``engine``, ``page`` and others of
                ``pixvox.inference.blockwise.Blockwise``.
        """
        from pixvox.inference.blockwise import predict_in_blocks

        return predict_in_blocks(self, volume, Path(out), name, score_threshold, options)

    def save_pretrained(
        self, folder: str | Path, metrics: Mapping[str, float] | None = None, licence: str = "unknown"
    ) -> Path:
        """Write weights, configuration and a model card into a folder that ``pixvox.load`` reads.

        Args:
            folder: Made if it does not exist.
            metrics: Scores to tell in the card, by name.
            licence: Of the weights, as the Hugging Face hub names it.
        """
        from pixvox.weights.pretrained_folder import save_folder

        return save_folder(self, folder, metrics, licence)

    @property
    def task(self) -> str:
        """``"instance"``, ``"semantic"`` or ``"panoptic"``."""
        return self.head.task

    @property
    def spatial_dims(self) -> int:
        """2 for images, 3 for volumes."""
        return self.backbone.spatial_dims

    @property
    def in_channels(self) -> int:
        """Channels of the images."""
        return self.backbone.in_channels

    @property
    def num_classes(self) -> int:
        """Classes, without any background a head adds inside."""
        return self.head.num_classes

    @property
    def size_divisor(self) -> tuple[int, ...]:
        """Sizes are padded to multiples of this inside, per axis in array order."""
        return self.backbone.size_divisor

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Segmenter:
        """Build a model from a plain dictionary.

        Args:
            config: ``backbone``, ``neck``, ``head`` and ``normalizer``, each with its ``_target_`` (neck
                and head ``_partial_``: their channels and strides are asked of the part before), and
                ``class_names``.

        Raises:
            ConfigError: If a part cannot be built from its arguments.
        """
        backbone = _instantiate("backbone", config["backbone"])
        _check_branches(type(backbone), locate(config["head"]["_target_"]))
        neck = _instantiate("neck", config["neck"], in_channels=backbone.channels, strides=backbone.strides)
        head = _instantiate("head", config["head"], in_channels=neck.channels, strides=neck.strides)
        normalizer = _instantiate("normalizer", config["normalizer"])
        model = cls(backbone, neck, head, normalizer, tuple(config.get("class_names") or ()))
        model.config = dict(config)
        return model

    def _check_images(self, images: Tensor) -> None:
        if images.dim() != self.spatial_dims + 2 or images.shape[1] != self.in_channels:
            axes = ", ".join(("depth", "height", "width")[-self.spatial_dims :])
            raise ValueError(
                f"this model takes images (batch, channels, {axes}) with {self.in_channels} channels, "
                f"got {tuple(images.shape)}"
            )


def _check_branches(backbone: Any, head: Any) -> None:
    """Refuse a head for the branches of one network over another one, and the other way round."""
    given, wanted = backbone.branches, getattr(head, "branches", ())
    if given == wanted:
        return
    if wanted:
        raise ConfigError(
            f"{head.__name__} takes the branches {', '.join(wanted)}, which {backbone.__name__} does not give; leave "
            f"backbone= out, or choose backbone={head.__module__.rpartition('.')[2]}"
        )
    raise ConfigError(
        f"{backbone.__name__} gives the branches {', '.join(given)}, no pyramid, to its own head alone, not to "
        f"{getattr(head, '__name__', head)}; choose another backbone"
    )


def _instantiate(part: str, config: Mapping[str, Any], **asked: Any) -> Any:
    """Build one part; what the part before it told (``asked``) completes a partial."""
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    try:
        built = instantiate(OmegaConf.create(dict(config)), _convert_="all")
        return built(**asked) if asked else built
    except Exception as error:
        cause = error.__cause__ or error
        raise ConfigError(f"{part} ({config.get('_target_')}): {cause}") from error
