"""Score and draw a trained model, rebuilt from its checkpoint alone."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Int
from omegaconf import DictConfig, OmegaConf, open_dict

from pixvox.assembly import build_datamodule, build_metrics, check_task, complete
from pixvox.configuration import compose
from pixvox.configuration_check import check_targets
from pixvox.devices import default_device
from pixvox.errors import ConfigError
from pixvox.files import finite, whole_file
from pixvox.inference.procedure import SIZES, Procedure
from pixvox.metrics.class_table import ClassTable
from pixvox.metrics.collection import Metrics
from pixvox.overrides import data_overrides, override
from pixvox.structures import Batch, Segmentation
from pixvox.training.run_folder import RunFolder, find_run

if TYPE_CHECKING:
    from pixvox.data.datamodule import DataModule
    from pixvox.segmenter import Segmenter


def evaluate(
    run: str | Path,
    data: str | Path | None = None,
    split: str = "val",
    overrides: Sequence[str] = (),
    config_dir: str | Path | None = None,
) -> dict[str, float]:
    """Return the scores of a trained model on a split.

    Args:
        run: A run folder, a checkpoint, or anything that ``pixvox.load`` takes.
        data: A dataset's path or configuration; by default that of the run.
        split: ``"train"``, ``"val"`` or ``"test"``.
        overrides: Overrides of the evaluation's configuration, such as ``metrics.score_threshold=0.3``.
        config_dir: Folder of further configurations.

    Returns:
        Scores by name, and ``seconds_per_image`` of the model (without reading).

    Raises:
        ConfigError: If the data do not suit the model.
        WeightsError: If the model cannot be loaded.
    """
    return evaluation(run, data, split, overrides, config_dir).scores


@dataclass(frozen=True)
class Evaluation:
    """What is known of a model on a split.

    Args:
        scores: By name.
        classes: Scores of each class, for class maps.
        confusion_matrix: Pixels or voxels by true and predicted class, for class maps.
    """

    scores: dict[str, float]
    classes: ClassTable | None = None
    confusion_matrix: Int[np.ndarray, "classes classes"] | None = None

    def save(self, folder: Path) -> list[Path]:
        """Write ``scores.json``, and of class maps ``per_class.csv`` and ``confusion_matrix.png``; return them."""
        from pixvox.visualization.confusion_matrix import draw_confusion_matrix

        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / "scores.json"]
        with whole_file(paths[0]) as part:
            part.write_text(json.dumps(finite(self.scores), indent=2) + "\n")
        if self.classes is not None:
            paths.append(self.classes.save(folder / "per_class.csv"))
            if self.confusion_matrix is not None:
                names, picture = self.classes.class_names, folder / "confusion_matrix.png"
                paths.append(draw_confusion_matrix(self.confusion_matrix, names, picture))
        return paths


def evaluation(
    run: str | Path,
    data: str | Path | None = None,
    split: str = "val",
    overrides: Sequence[str] = (),
    config_dir: str | Path | None = None,
) -> Evaluation:
    """Return what ``evaluate`` returns, with the scores of each class; the arguments are its own."""
    model, datamodule, config = prepare(run, data, split, overrides, config_dir)
    metrics = build_metrics(config, datamodule.metadata, model.head)
    procedure = build_procedure(model, config)
    seconds, images = 0.0, 0
    for batch, predictions, elapsed in predictions_of(model, loader(datamodule, split), procedure):
        seconds += elapsed
        images += len(batch)
        if batch.truths is None:
            raise ConfigError(f"the {split} split has no annotations to score against; give another --split")
        metrics.update(predictions, batch.truths)
    scores = {name: float(value) for name, value in metrics.compute().items()}
    scores = {**scores, "images": float(images), "seconds_per_image": seconds / max(1, images)}
    if not isinstance(metrics, Metrics):
        return Evaluation(scores)
    return Evaluation(scores, metrics.class_table(), metrics.confusion_matrix())


def visualize(
    run: str | Path,
    data: str | Path | None = None,
    split: str = "val",
    overrides: Sequence[str] = (),
    num_images: int = 3,
    threshold: float | None = None,
) -> Path:
    """Draw some images beside the checkpoint: original, truth, prediction, mean time; return the file.

    Args:
        run: A run folder, a checkpoint, or anything that ``pixvox.load`` takes.
        data: A dataset's path or configuration; by default that of the run.
        split: ``"train"``, ``"val"`` or ``"test"``.
        overrides: Overrides of the evaluation's configuration.
        num_images: Rows of the picture.
        threshold: Objects with a lower score are left out, in [0, 1]; None is the head's ``confident_score``.
    """
    from pixvox.visualization.grids import draw_predictions
    from pixvox.weights.loading import find_checkpoint

    model, datamodule, config = prepare(run, data, split, overrides)
    procedure = build_procedure(model, config)
    pairs, seconds = first_pairs(model, loader(datamodule, split), num_images, procedure)
    path = find_checkpoint(Path(run)).parent / "model_predictions_viz.png"
    threshold = model.head.confident_score if threshold is None else threshold
    title = f"{1000 * seconds:.0f} ms per image"
    draw_predictions(pairs, path, max_images=num_images, score_threshold=threshold, title=title)
    return path


def first_pairs(
    model: Segmenter, batches: Any, num_images: int, procedure: Procedure | None = None
) -> tuple[list[tuple[Segmentation, Segmentation]], float]:
    """Return predictions and truths of the first images, and the mean seconds of a prediction."""
    pairs: list[tuple[Segmentation, Segmentation]] = []
    seconds = 0.0
    for batch, predictions, spent in predictions_of(model, batches, procedure):
        pairs += zip(predictions, batch.truths or (), strict=True)
        seconds += spent
        if len(pairs) >= num_images:
            break
    return pairs[:num_images], seconds / max(1, len(pairs))


def predictions_of(
    model: Segmenter, batches: Any, procedure: Procedure | None = None
) -> Iterator[tuple[Batch, list[Segmentation], float]]:
    """Yield each batch with its predictions in the original frame and the seconds they took.

    Args:
        model: It is moved to the default device.
        batches: Of un-normalised images.
        procedure: How they are segmented; by default as the model was saved with.
    """
    procedure = Procedure.of(model) if procedure is None else procedure
    model.to(default_device()).eval()
    for batch in batches:
        start = time.perf_counter()
        with torch.inference_mode():
            predictions = procedure(batch)
        yield batch, predictions, time.perf_counter() - start


def build_procedure(model: Segmenter, config: DictConfig) -> Procedure:
    """Return how a model segments: as it was saved with, but for what the configuration says.

    Raises:
        ConfigError: If an option has no such value, or is one of sizes, which the data's transforms decide.
    """
    given = OmegaConf.to_container(config.inference, resolve=True) if "inference" in config else {}
    if not isinstance(given, Mapping):
        raise ConfigError(f"inference takes options by name, got {given!r}")
    given = {str(key): value for key, value in given.items()}
    sizes = [key for key in SIZES if given.get(key) is not None]
    if sizes:
        raise ConfigError(
            f"inference.{sizes[0]} is for predict; an evaluation resizes as its transforms say, such as transforms=fit "
            "image_size=512, or transforms.spacing=[2,0.5,0.5]"
        )
    return Procedure.of(model, given)


def loader(datamodule: DataModule, split: str) -> Any:
    """Return the evaluation batches of a split.

    Raises:
        ConfigError: If there is no such split.
    """
    if split == "train":
        datamodule.val = datamodule.train
    return datamodule.test_dataloader() if split == "test" else datamodule.val_dataloader()


def prepare(
    run: str | Path,
    data: str | Path | None = None,
    split: str = "val",
    overrides: Sequence[str] = (),
    config_dir: str | Path | None = None,
) -> tuple[Segmenter, DataModule, DictConfig]:
    """Load the model, and build the data that it is to see; the arguments are those of ``evaluate``."""
    from pixvox.weights import load

    model = load(run)
    spacing = (model.config.get("inference") or {}).get("spacing")
    config = evaluation_config(run, data, overrides, config_dir, spacing)
    datamodule = build_datamodule(config)
    metadata = datamodule.metadata
    check_task(model.task, metadata, model.head.known_tasks())
    complete(config, metadata)
    for name in ("spatial_dims", "in_channels", "num_classes"):
        ours, theirs = getattr(model, name), getattr(metadata, name)
        if ours != theirs:
            raise ConfigError(
                f"{run} has {name}={ours}, but {metadata.name or 'the dataset'} has {theirs}; "
                "evaluate on data of the kind it was trained on"
            )
    datamodule.size_divisor = model.size_divisor
    return model, datamodule, config


def evaluation_config(
    run: str | Path,
    data: str | Path | None = None,
    overrides: Sequence[str] = (),
    config_dir: str | Path | None = None,
    spacing: float | Sequence[float] | None = None,
) -> DictConfig:
    """Return the configuration of data and metrics: the run's own, or composed for other data.

    Args:
        run: Of the model.
        data: As for ``evaluate``.
        overrides: As for ``evaluate``.
        config_dir: As for ``evaluate``.
        spacing: To which images are resampled, where the overrides say nothing else.

    Raises:
        ConfigError: If there is neither a run with a configuration nor other data.
    """
    own = _own_config(run)
    sizes = [
        override(key, own[key])
        for key in ("image_size", "seed", "class_agnostic")
        if own is not None and own.get(key) is not None
    ]
    if spacing:
        sizes.append(override("transforms.spacing", spacing))
    chosen = data_overrides(data, overrides) if data is not None else []
    chooses = data is not None or any(text.startswith("data=") for text in overrides)
    config = compose("evaluate", [*sizes, *chosen, *overrides], config_dir)
    if chooses:
        return config
    if own is None:
        raise ConfigError(f"{run} tells no data to evaluate on; give --data PATH or data=NAME")
    given = {text.partition("=")[0]: text for text in overrides}
    with open_dict(config):
        config.data = own["data"]
        if "transforms.spacing" in given:
            config.data.spacing = config.transforms.spacing
        for key in ("batch_size", "num_workers", "num_labeled_images"):
            if key in given and key in config.data:
                config.data[key] = config[key]
        for text in overrides:
            if text.startswith("data."):
                config = OmegaConf.merge(config, OmegaConf.from_dotlist([text]))  # type: ignore[assignment]
    return config


def _own_config(run: str | Path) -> dict[str, Any] | None:
    """Return the configuration of a run; the targets in it are checked, for a run may be a stranger's."""
    try:
        folder: RunFolder = find_run(run)
    except ConfigError:
        return None
    if not folder.config.exists():
        return None
    loaded = OmegaConf.to_container(OmegaConf.load(folder.config), resolve=True)
    if not isinstance(loaded, dict) or "data" not in loaded:
        raise ConfigError(f"{folder.config} is not the configuration of a run")
    config = {str(key): value for key, value in loaded.items()}
    check_targets(config["data"], str(folder.config))
    return config
