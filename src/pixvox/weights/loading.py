"""Load a model from a run folder, a checkpoint, a safetensors file, or what others published."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pixvox.errors import WeightsError
from pixvox.training.run_folder import pointed
from pixvox.weights import torchvision
from pixvox.weights.checkpoint import RECORD_KEY, load_state, read_safetensors, read_torch_file, rebuild
from pixvox.weights.families import NAMES, find_family
from pixvox.weights.hub import fetch_model, is_hub_id
from pixvox.weights.published import WeightsEnum as PublishedWeights
from pixvox.weights.published import get_weight, is_weight_name
from pixvox.weights.transformers_folder import is_transformers_folder, read_transformers_folder

if TYPE_CHECKING:
    from torchvision.models import WeightsEnum

    from pixvox.segmenter import Segmenter

log = logging.getLogger("pixvox")

_MODEL_PREFIXES = ("segmenter.", "model.")
"""How Lightning modules call the model they train."""

_TEACHER = "teacher."
"""How methods here call the model that they give out, where it is not the one that learns."""


def load(
    path: str | Path | WeightsEnum | PublishedWeights, strict: bool = True, trust: Sequence[str] = ()
) -> Segmenter:
    """Load a model in evaluation mode.

    Args:
        path: A run folder (its best checkpoint; its newest, with a warning, where that is damaged), a
            ``.ckpt``, a ``.safetensors`` file that pixvox wrote, a state dict of torchvision's Mask R-CNN or
            semantic models, a folder of transformers or an authors' file of a family in ``pixvox.weights.families``;
            the id of such a model on the Hugging Face hub, as ``"facebook/mask2former-swin-small-coco-instance"``, or
            weights of torchvision's, as ``MaskRCNN_ResNet50_FPN_Weights.DEFAULT``, or of
            ``pixvox.weights.published``, as
            ``"Mask2Former_Weights.DEFAULT"``: these are fetched once.
        strict: Refuse weights that do not fit; otherwise load those that do.
        trust: Packages beside this one whose classes the file's configuration may name. Nothing else in a
            file is ever executed.

    Raises:
        WeightsError: If there is no such file, or it is damaged, foreign, or does not fit its model.
    """
    if isinstance(path, PublishedWeights):
        return path.load()
    if not isinstance(path, str | Path):
        return _build_foreign(torchvision.fetch(path), None, Path(str(path))).eval()
    if is_weight_name(path):
        return get_weight(str(path)).load()
    if is_hub_id(path):
        path = fetch_model(str(path))
    folder = pointed(path)
    if is_transformers_folder(folder):
        config, state = read_transformers_folder(folder)
        return _build_foreign(state, config, folder).eval()
    file, state, record = _read_first(candidates(path))
    if record is None:
        return _build_foreign(state, None, file).eval()
    model = rebuild(record, file, trust)
    load_state(model, state, file, strict)
    return model.eval()


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """Return the weights of whatever ``load`` takes, by the names that they have here.

    Raises:
        WeightsError: If there is no such file, or it is damaged or foreign.
    """
    if is_weight_name(path) or is_hub_id(path) or is_transformers_folder(pointed(path)):
        return load(path).state_dict()
    file, state, record = _read_first(candidates(path))
    known = record is not None or any(key.startswith(("backbone.", "neck.", "head.")) for key in state)
    return (
        state
        if known and not torchvision.is_maskrcnn(state) and not torchvision.is_semantic(state)
        else _build_foreign(state, None, file).state_dict()
    )


def _build_foreign(state: Mapping[str, Tensor], config: Mapping[str, Any] | None, source: Path) -> Segmenter:
    """Build a model that others trained.

    Raises:
        WeightsError: If its kind is not known, or its weights and configuration are not those of a model.
    """
    _refuse_spread(state, source)
    if torchvision.is_maskrcnn(state):
        return torchvision.build_maskrcnn(state, source)
    if torchvision.is_semantic(state):
        return torchvision.build_semantic(state, source)
    family = find_family(state, config)
    if family is not None:
        try:
            return family.build(state, config, source)
        except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError) as error:
            # What a foreign file says of its model may be anything.
            message = str(error) or type(error).__name__
            if isinstance(error, WeightsError) and str(source) in message:
                raise
            raise WeightsError(
                f"{source}: no model can be built of it ({type(error).__name__}: {message})"
            ) from error
    if config is not None:
        raise WeightsError(
            f"{source}: model_type={config.get('model_type')!r} of transformers is none that pixvox.load converts; "
            f"it converts {NAMES}"
        )
    raise WeightsError(
        f"{source}: it holds no record of its model; pixvox.load reads checkpoints and .safetensors files that "
        f"pixvox wrote, state dicts of torchvision's Mask R-CNN, FCN, DeepLabV3 and Lite R-ASPP, and those of {NAMES} "
        "(from transformers: the folder, with its config.json)"
    )


def _refuse_spread(state: Mapping[str, Tensor], source: Path) -> None:
    """Refuse tensors of more numbers than the file holds: a few bytes of file can ask for all memory.

    Raises:
        WeightsError: If a number is repeated over a shape, or a tensor is not dense.
    """
    for key, value in state.items():
        dense = value.layout == torch.strided and not value.is_meta
        if not dense or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise WeightsError(
                f"{source}: {key} of shape {tuple(value.shape)} has more numbers than the file holds; save it again "
                "with tensor.contiguous()"
            )


def _read_first(files: Sequence[Path]) -> tuple[Path, dict[str, Tensor], Any]:
    """Return the first file that can be read with its weights and record; name in a warning what was damaged.

    Raises:
        WeightsError: That of the first file, if none can be read.
    """
    failures: list[WeightsError] = []
    for file in files:
        try:
            if file.suffix == ".safetensors":
                state, record = read_safetensors(file)
            else:
                state, record = _split(read_torch_file(file), file)
        except WeightsError as error:
            failures.append(error)
            continue
        for failure in failures:
            log.warning("%s; taking %s instead", failure, file.name)
        return file, state, record
    raise failures[0]


def find_checkpoint(path: str | Path) -> Path:
    """Return the checkpoint that a path means: itself, or the best (else the last) of a run folder.

    Raises:
        WeightsError: If there is none; the message says where it was looked for.
    """
    return candidates(path)[0]


def candidates(path: str | Path) -> list[Path]:
    """Return the files that a path may mean, the first choice first.

    Raises:
        WeightsError: If there is none; the message says where it was looked for.
    """
    path = pointed(path)
    if path.is_dir():
        names = [
            f"{folder}{name}.ckpt" for folder in ("checkpoints/", "") for name in ("best", "last", "previous")
        ]
        found = [path / name for name in (*names, "model.safetensors") if (path / name).is_file()]
        if not found:
            looked = ", ".join((*names, "model.safetensors"))
            raise WeightsError(f"{path}: no checkpoint in this folder (looked for {looked})")
        return found
    if not path.exists():
        raise WeightsError(f"{path}: there is no such run folder or file")
    return [path]


def _split(content: Any, file: Path) -> tuple[dict[str, Tensor], Any]:
    """Return the model's state dict and record out of the content of a checkpoint."""
    if not isinstance(content, dict):
        raise WeightsError(f"{file}: it holds a {type(content).__name__}, not the weights of a model")
    state = content.get("state_dict", content)
    if state is content and isinstance(content.get("model"), dict) and RECORD_KEY not in content:
        state = content["model"]  # as detectron2 and many authors keep it
    if not isinstance(state, dict):
        raise WeightsError(
            f"{file}: its state_dict is a {type(state).__name__}, not a mapping of names to tensors"
        )
    state = {key: value for key, value in state.items() if isinstance(key, str)}
    for prefix in (_TEACHER, *_MODEL_PREFIXES) if RECORD_KEY in content else _MODEL_PREFIXES:
        own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if own:
            state = own
            break
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    return tensors, content.get(RECORD_KEY)
