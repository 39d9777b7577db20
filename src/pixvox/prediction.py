"""Segment files with a trained model and write the results: what ``pixvox predict`` does."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pixvox.data.images import list_images, suffix_of
from pixvox.devices import default_device
from pixvox.errors import ConfigError, DataError
from pixvox.structures import Segmentation

log = logging.getLogger("pixvox")


def predict_files(
    run: str | Path,
    inputs: Sequence[str | Path],
    out: str | Path,
    cut_out: Mapping[str, Any] | None = None,
    video_labels: bool = False,
    **options: Any,
) -> list[dict[str, Any]]:
    """Segment images, volumes, videos and folders of images; write label map, COCO file, table and overlay of each.

    Args:
        run: A run folder or checkpoint.
        inputs: Files and folders; of a video an overlay is written, see ``pixvox.inference.video``.
        out: Folder for the results.
        cut_out: Arguments of ``pixvox.inference.cutout.cut_out``, which adds ``NAME_cutout.png``.
        video_labels: Write also the label map of each frame of a video.
        **options: Those of ``pixvox.inference.predictor.Predictor`` and, for what is larger than memory, of
            ``pixvox.inference.blockwise.Blockwise``. ``score_threshold`` is the head's ``confident_score`` by default.

    Returns:
        For each image its source, what was found, and the files written; for one that cannot be read its
        source and the ``error``. The others are segmented all the same.

    Raises:
        DataError: If an input does not exist, a folder holds no image, or there is no such class to cut out.
    """
    from pixvox.inference.blockwise import Blockwise, split_options
    from pixvox.inference.cutout import prepare
    from pixvox.inference.predictor import Predictor, confident_score
    from pixvox.inference.procedure import build, merged
    from pixvox.inference.results import name_of, result_name, save
    from pixvox.inference.video import is_video, segment_video
    from pixvox.weights import load

    _check_inputs(inputs)
    if cut_out is not None and any(map(is_video, inputs)):
        raise DataError("cut-outs are made of images; leave out the videos, or --cut-out")
    if Path(out).exists() and not Path(out).is_dir():
        raise DataError(f"{out} is a file; --out takes a folder for the results")
    model = load(run).to(default_device())
    if cut_out is not None:
        cut_out = prepare(cut_out, model.spatial_dims, model.class_names)
    if options.get("score_threshold") is None:
        options["score_threshold"] = confident_score(model)
    for_blocks, for_images = split_options(merged(model.config.get("inference") or {}, options))
    predictor = Predictor(model, **for_images)
    blockwise = build(Blockwise, "", for_blocks, predictor=predictor)
    rows: list[dict[str, Any]] = []
    names: set[str] = set()
    for path in (file for given in inputs for file in _files(Path(given))):
        try:
            if is_video(path):
                rows.append(segment_video(predictor, path, out, _new_name(path.stem, names), video_labels))
                continue
            volume = blockwise.volume(path)
            if volume is not None:
                found = blockwise(volume, Path(out), _new_name(name_of(path), names))
                written = [str(file) for file in found.files]
                rows.append({"source": str(path), "found": found.describe(), "files": written})
                continue
            for result in predictor.stream(str(path)):
                name = _new_name(result_name(result), names)
                files = save(result, out, name, blockwise.options.table, blockwise.page)
                if cut_out is not None:
                    files.append(result.cut_out(**cut_out).save(Path(out) / f"{name}_cutout.png"))
                written = [str(file) for file in files]
                rows.append(
                    {"source": result.source or str(path), "found": describe(result), "files": written}
                )
        except DataError as error:
            log.warning("%s", error)
            rows.append({"source": str(path), "error": str(error)})
    return rows


def predict_labels(
    run: str | Path,
    inputs: Sequence[str | Path],
    out: str | Path,
    threshold: float | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """Segment images, volumes and folders, and write what the model is sure of as a dataset to train on.

    Args:
        run: A run folder or checkpoint.
        inputs: Files and folders.
        out: Folder to make; see ``pixvox.inference.label_dataset``.
        threshold: Least score of an object, or probability of a pixel; the head's ``pseudo_label_threshold`` when None.
        **options: Those of ``pixvox.inference.predictor.Predictor``.

    Returns:
        For each image its source and what was found; for one that cannot be read its source and the ``error``.

    Raises:
        DataError: If an input does not exist, ``out`` holds something, or no image can be read.
        ConfigError: If such predictions have no form as a dataset.
    """
    from pixvox.inference.label_dataset import LabelDataset, confident
    from pixvox.inference.predictor import Predictor
    from pixvox.weights import load

    _check_inputs(inputs)
    model = load(run).to(default_device())
    model.head.gives_probabilities = model.task == "semantic"
    threshold = model.head.pseudo_label_threshold if threshold is None else threshold
    lowest = min(threshold, model.head.score_threshold)
    predictor = Predictor(model, keep_image=False, score_threshold=lowest, **options)
    rows: list[dict[str, Any]] = []
    with LabelDataset(out, model.task, model.spatial_dims, model.class_names) as dataset:
        for path in (file for given in inputs for file in _files(Path(given))):
            try:
                for result in predictor.stream(str(path)):
                    result = confident(result, threshold)
                    added = dataset.add(result, path)
                    rows.append({"source": str(path), "found": describe(result) if added else "nothing sure"})
            except DataError as error:
                log.warning("%s", error)
                rows.append({"source": str(path), "error": str(error)})
        if not any("error" not in row for row in rows):
            raise DataError(f"no image could be read: {rows[0]['error'] if rows else 'none was given'}")
        if dataset.empty:
            raise DataError(
                f"nothing was found with a score of {threshold:g} or more, so there is nothing to train on; lower "
                "--threshold"
            )
    return rows


def predict_submission(
    run: str | Path, inputs: Sequence[str | Path], out: str | Path, values: str, **options: Any
) -> list[dict[str, Any]]:
    """Segment images and folders, and write class maps as benchmarks take them.

    Args:
        run: A run folder or checkpoint.
        inputs: Files and folders.
        out: The zip, or a folder for ``submission.zip``.
        values: What stands for the classes: see ``pixvox.inference.submission.label_values``.
        **options: Those of ``pixvox.inference.predictor.Predictor``.

    Returns:
        For each image its source, what was found, and the file; for one that cannot be read its source and the
        ``error``.

    Raises:
        DataError: If an input does not exist.
        ConfigError: If the model gives no class maps of images, or its classes have no such values.
    """
    from pixvox.inference.predictor import Predictor
    from pixvox.inference.submission import Submission, label_values
    from pixvox.weights import load

    _check_inputs(inputs)
    model = load(run).to(default_device())
    if model.task != "semantic" or model.spatial_dims != 2:
        raise ConfigError("--label-values is for class maps of images; this model gives something else")
    path = Path(out) if Path(out).suffix == ".zip" else Path(out) / "submission.zip"
    predictor = Predictor(model, keep_image=False, **options)
    rows: list[dict[str, Any]] = []
    with Submission(path, label_values(values, model.class_names)) as submission:
        for file in (file for given in inputs for file in _files(Path(given))):
            try:
                for result in predictor.stream(str(file)):
                    written = [f"{path}:{submission.add(result)}"]
                    rows.append({"source": str(file), "found": describe(result), "files": written})
            except DataError as error:
                log.warning("%s", error)
                rows.append({"source": str(file), "error": str(error)})
    return rows


def inference_options(arguments: Sequence[Path]) -> tuple[list[Path], dict[str, Any]]:
    """Tell files and folders from options such as ``inference.tile_size=512``; what exists is a file.

    Args:
        arguments: Of the command line.

    Returns:
        The files and folders, and the options of ``pixvox.inference.predictor.Predictor``.

    Raises:
        ConfigError: If there is no such option, its value has another form, or there is nothing to segment.
    """
    from omegaconf import OmegaConf

    from pixvox.configuration import compose
    from pixvox.inference.procedure import merged

    options = [str(each) for each in arguments if _is_option(each)]
    files = [each for each in arguments if not _is_option(each)]
    if not options:
        return files, {}
    if not files:
        raise ConfigError(f"{options[0]} is an option; give the images, folders or videos to segment, too")
    given = OmegaConf.to_container(compose("predict", options).inference, resolve=True)
    return files, merged({}, given if isinstance(given, Mapping) else {})


def _is_option(argument: Path) -> bool:
    return str(argument).startswith("inference.") and "=" in str(argument) and not argument.exists()


def _check_inputs(inputs: Sequence[str | Path]) -> None:
    for path in inputs:
        if not Path(path).exists():
            raise DataError(f"{path}: there is no such file or folder")


def _files(path: Path) -> list[Path]:
    """Return the images of a folder, or the file itself; a Zarr array is a folder, but one image."""
    if not path.is_dir() or suffix_of(path) is not None:
        return [path]
    files = list(list_images(path).values())
    if not files:
        raise DataError(f"{path}: no image was found in this folder")
    return files


def _new_name(name: str, taken: set[str]) -> str:
    """Return the name, numbered when an image of another folder has it already; no result replaces another."""
    numbers = range(2, len(taken) + 2)
    free = next(text for text in (name, *(f"{name}_{number}" for number in numbers)) if text not in taken)
    taken.add(free)
    return free


def describe(result: Segmentation) -> str:
    """Say in a few words what was found."""
    if result.instances is not None:
        count = len(result.instances)
        return f"{count} object{'' if count == 1 else 's'}"
    classes = [] if result.class_map is None else torch.unique(result.class_map).tolist()
    names = [result.class_names[i] if i < len(result.class_names) else str(i) for i in classes]
    return ", ".join(names) or "nothing"
