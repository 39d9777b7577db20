"""Checkpoints that rebuild their model alone, and never execute what they hold.

A checkpoint is Lightning's file with a record of plain types under the key ``"pixvox"``: the configuration
of the four parts, the class names and the sizes. It is read with ``weights_only=True``; the configuration
may name only classes of this package, or of packages that the caller trusts.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pixvox.errors import ConfigError, WeightsError
from pixvox.files import check_sum, summed_file
from pixvox.version import __version__

if TYPE_CHECKING:
    from pixvox.segmenter import Segmenter

RECORD_KEY = "pixvox"
FORMAT = 1


def model_record(model: Segmenter) -> dict[str, Any]:
    """Return what rebuilds ``model``, as plain types.

    Raises:
        ConfigError: If the model was composed of objects, so that there is no configuration to store.
    """
    if not model.config:
        raise ConfigError(
            "this model was composed of objects and has no configuration to store; set model.config, or build it "
            "with create_model or Segmenter.from_config"
        )
    config = json.loads(json.dumps(model.config))
    return {
        "format": FORMAT,
        "version": __version__,
        "task": model.task,
        "spatial_dims": model.spatial_dims,
        "in_channels": model.in_channels,
        "num_classes": model.num_classes,
        "model": {**config, "class_names": list(model.class_names)},
    }


def read_torch_file(path: Path) -> Any:
    """Read a file of ``torch.save`` without executing anything in it.

    Raises:
        WeightsError: If the file is missing, empty, damaged, of another kind, or holds more than tensors and
            plain types.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: there is no such file")
    if path.stat().st_size == 0:
        raise WeightsError(f"{path}: the file is empty (0 bytes); use another checkpoint of the run")
    check_sum(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path}: refused, for it holds more than tensors and plain types (or is no checkpoint at all), and "
            f"loading it could execute code{_refused_object(error)}; use a checkpoint that pixvox wrote"
        ) from error
    except Exception as error:  # the reader of pickles fails in many ways on files that are none
        raise WeightsError(
            f"{path}: cannot be read as a checkpoint; it may be truncated or of another kind ({_first_line(error)})"
        ) from error


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], Any]:
    """Return the tensors of a safetensors file, and our record when its metadata holds one.

    Raises:
        WeightsError: If the file is missing or damaged.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise WeightsError(f"{path}: there is no such file")
    check_sum(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: cannot be read as safetensors; it may be truncated ({error})") from error
    record = metadata.get(RECORD_KEY)
    try:
        return tensors, None if record is None else json.loads(record)
    except (ValueError, RecursionError) as error:
        raise WeightsError(
            f"{path}: the record of its model is not JSON ({_first_line(error)}); save the model again"
        ) from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file of either kind, by their names.

    Raises:
        WeightsError: If the file is missing, damaged, or holds more than tensors and plain types.
    """
    if path.suffix == ".safetensors":
        return read_safetensors(path)[0]
    content = read_torch_file(path)
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise WeightsError(f"{path}: it holds a {type(content).__name__}, not weights by name")
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}


def save_safetensors(model: Segmenter, path: str | Path) -> Path:
    """Write weights and record of ``model`` as one safetensors file, whole or not at all, and its sum."""
    from safetensors.torch import save_file

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {key: value.detach().cpu().contiguous().clone() for key, value in model.state_dict().items()}
    record = json.dumps(model_record(model))
    with summed_file(path) as part:
        save_file(tensors, part, metadata={RECORD_KEY: record})
    return path


def rebuild(record: Any, source: Path, trust: Sequence[str] = ()) -> Segmenter:
    """Build the model of a record, with random weights.

    Args:
        record: What ``model_record`` gave; being out of a file, it may be anything.
        source: The file it came from, for messages.
        trust: Packages beside this one whose classes the record may name.

    Raises:
        WeightsError: If the record is malformed, is of a newer format, or names something that is not trusted.
    """
    from pixvox.configuration_check import check_targets
    from pixvox.segmenter import PARTS, Segmenter

    config = _config_of(record, source)
    for part in PARTS:
        try:
            check_targets(config[part], str(source), ("pixvox", *trust))
            _check_kind(config[part], part, source)
        except WeightsError:
            raise
        except (ConfigError, RecursionError) as error:
            raise WeightsError(_naming(source, error)) from error
    # The file brings all weights: nothing is to be fetched for the backbone.
    if "pretrained" in config["backbone"]:
        config["backbone"] = {**config["backbone"], "pretrained": False}
    try:
        return Segmenter.from_config(config)
    except (ValueError, TypeError, AttributeError) as error:  # a module of ours that is no such part, for one
        raise WeightsError(_naming(source, error)) from error


def _config_of(record: Any, source: Path) -> dict[str, Any]:
    """Return the configuration in a record, after a look at the shape of both.

    Raises:
        WeightsError: If the record is not as ``model_record`` makes it.
    """
    from pixvox.segmenter import PARTS

    if not isinstance(record, Mapping):
        raise _malformed(source, f"it is a {type(record).__name__}, not a mapping")
    if record.get("format") != FORMAT:
        raise WeightsError(
            f"{source}: its record has format {record.get('format')!r}, this version reads {FORMAT}; "
            f"it was written by pixvox {record.get('version')}, this is {__version__}"
        )
    config = record.get("model")
    if not isinstance(config, Mapping):
        raise _malformed(source, "it has no mapping 'model'")
    for part in PARTS:
        node = config.get(part)
        if not isinstance(node, Mapping) or not isinstance(node.get("_target_"), str):
            raise _malformed(source, f"'model' has no mapping {part!r} with a '_target_'")
    names = config.get("class_names") or []
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise _malformed(source, "'class_names' is not a list of names")
    if not isinstance(config.get("inference") or {}, Mapping):
        raise _malformed(source, "'inference' is not a mapping")
    return dict(config)


def _malformed(source: Path, reason: str) -> WeightsError:
    return WeightsError(
        f"{source}: the record of its model is malformed: {reason}. Save the checkpoint again with pixvox"
    )


def _naming(source: Path, error: BaseException) -> str:
    """Return an error's message with the file before it, unless it names the file already."""
    message = str(error) or type(error).__name__
    return message if str(source) in message else f"{source}: its record builds no model: {message}"


def _check_kind(node: Any, part: str, source: Path) -> None:
    """Refuse targets that are not modules: a trusted package holds functions that do more than build a part."""
    from pixvox.signatures import locate

    if isinstance(node, Mapping):
        if "_target_" in node:
            target = locate(str(node["_target_"]))
            if not (isinstance(target, type) and issubclass(target, torch.nn.Module)):
                raise WeightsError(
                    f"{source}: {part} names {node['_target_']!r}, which is no module; it is not run"
                )
        for value in node.values():
            _check_kind(value, part, source)
    elif isinstance(node, list | tuple):
        for value in node:
            _check_kind(value, part, source)


def load_state(model: Segmenter, state: Mapping[str, Tensor], source: Path, strict: bool = True) -> list[str]:
    """Copy weights into ``model`` and return the keys that were left out (none when ``strict``).

    Raises:
        WeightsError: If keys are missing, unexpected or of another shape and ``strict`` is true; the
            message lists them.
    """
    own = model.state_dict()
    # Counters that some writers leave out do not matter.
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    mismatched = [key for key in own if key in state and own[key].shape != state[key].shape]
    if strict and (missing or unexpected or mismatched):
        parts = [
            f"{len(keys)} {what} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
            for what, keys in (
                ("missing", missing), ("unexpected", unexpected), ("of another shape", mismatched),
            )
            if keys
        ]  # fmt: skip
        raise WeightsError(
            f"{source}: the weights do not fit the model: {'; '.join(parts)}. strict=False loads the rest"
        )
    fitting = {key: value for key, value in state.items() if key in own and key not in mismatched}
    model.load_state_dict(fitting, strict=False)
    return sorted({*missing, *unexpected, *mismatched})


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[
        :200
    ]


def _refused_object(error: BaseException) -> str:
    """Return what was refused; the rest of torch's message tells how to load it all the same."""
    found = re.search(r"Unsupported (?:global|class|operand)[^:]*: (?:GLOBAL )?(\S+)", str(error))
    return f" ({found[1]})" if found else ""
