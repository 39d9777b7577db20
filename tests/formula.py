"""Weights and images that follow from a formula, so that a comparison with a reference stores its outputs alone."""

import json
import zlib
from pathlib import Path

import torch
from safetensors import safe_open

from parity import assert_near

FOLDER = Path(__file__).parent / "fixtures" / "semantic_networks"


def uniform(name, shape):
    """Return numbers in [-1, 1) that depend on the name, the shape and the place, on any machine and any version."""
    count = torch.Size(shape).numel()
    bits = torch.arange(count, dtype=torch.int64) + zlib.crc32(f"{name}{tuple(shape)}".encode())
    for _ in range(2):
        bits = ((bits & 0xFFFFFFFF) ^ ((bits & 0xFFFFFFFF) >> 16)) * 0x45D9F3B
    bits = (bits & 0xFFFFFFFF) ^ ((bits & 0xFFFFFFFF) >> 16)
    return ((bits >> 8).double() / 2**23 - 1).float().reshape(shape)


def weight(name, shape):
    """Return the value of an entry of a state dict: wide enough that nothing hides behind ones and zeros."""
    drawn = uniform(name, shape)
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    if name.endswith("running_var"):
        return 1 + drawn / 2
    if len(shape) > 1:
        return drawn * (3 / torch.Size(shape[1:]).numel()) ** 0.5
    if name.endswith("weight"):
        return 0.3 + drawn / 5 if tuple(shape) == (1,) else 1 + drawn / 2
    return 0.3 * drawn


def fill(model, parts, names):
    """Give each entry of a model's state the value of the reference's; return the model, for evaluation.

    Args:
        model: The model, all of whose weights are in the parts.
        parts: Names of its parts, in the order in which the reference names what they are made of.
        names: The reference's names, in order.
    """
    own = model.state_dict()
    ordered = [name for part in parts for name in own if name.startswith(f"{part}.")]
    assert sorted(ordered) == sorted(own), set(own) ^ set(ordered)
    model.load_state_dict(
        {ours: weight(theirs, tuple(own[ours].shape)) for ours, theirs in zip(ordered, names, strict=True)}
    )
    return model.eval()


def recorded(name):
    """Return the recorded outputs of a semantic network, and the names of its weights."""
    with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return tensors, json.loads(file.metadata()["names"])


def assert_every_second_pixel(maps, wanted):
    """Compare maps with those of a fixture, which keeps every second pixel of each axis."""
    assert_near(maps[..., ::2, ::2], wanted)
