"""Rules that hold for every transform that the package holds."""

import importlib
import inspect
import pkgutil
from dataclasses import replace

import pytest
import torch

import pixvox.data.transforms as package
from pixvox.data.sample import Sample
from pixvox.data.transforms import Compose, RandomFlip
from pixvox.data.transforms.compose import Transform

SIZES = [(14, 19), (7, 14, 19)]


def _classes():
    for module in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        for _, kind in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if (
                issubclass(kind, Transform)
                and not inspect.isabstract(kind)
                and kind.__module__ == module.name
            ):
                yield kind


KINDS = {kind.__name__: kind for kind in _classes()}

# Arguments under which each transform surely acts and shows the whole image, as far as it can.
ARGUMENTS = {
    "Compose": {"steps": [RandomFlip(probability=1.0)]},
    "CopyPaste": {"probability": 1.0, "share": 1.0, "min_visible": 0.0, "min_size": 1},
    "Pad": {"size": 24},
    "RandomAffine": {"rotation": 20.0, "scale": (0.6, 0.7), "aspect": 1.1, "perspective": 0.2},
    "RandomCrop": {"size": 6, "attempts": 3},
    "RandomElastic": {"displacement": 0.5, "control_spacing": 8.0, "probability": 1.0},
    "RandomErasing": {"probability": 1.0, "labels": "erase"},
    "RandomRescale": {"scale": (1.5, 1.6), "aspect": 1.2},
    "Resample": {"spacing": 0.4},
    "Resize": {"size": 40},
}
CUTS = {"RandomCrop", "RandomErasing", "Mosaic"}
"""Those that may remove objects."""
JOINS = {"CopyPaste", "Mosaic", "Pad"}
"""Those that add objects, numbered on after those of the sample."""


def make(name):
    kind = KINDS[name]
    arguments = ARGUMENTS.get(name, {})
    if not arguments and "probability" in inspect.signature(kind).parameters:
        arguments = {"probability": 1.0}
    return kind(**arguments)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def blocks(size, numbers):
    """Objects of 3 pixels or voxels a side on a grid, away from the border, with these ids."""
    layers = torch.zeros((1, *size), dtype=torch.int64)
    starts = [range(2, length - 4, 4) for length in size]
    corners = torch.cartesian_prod(*[torch.tensor(list(start)) for start in starts])
    for corner, number in zip(corners.tolist(), numbers, strict=False):
        layers[(0, *(slice(first, first + 3) for first in corner))] = number
    return layers


def sample_of(layers):
    size = layers.shape[1:]
    image = torch.rand((3, *size), generator=generator(9)) * 200
    count = min(int(layers.max()), 100)
    return Sample(
        image, layers, torch.zeros(count, dtype=torch.int64), torch.zeros(count, dtype=torch.bool),
        intensity_range=torch.tensor([[0.0, 200.0]] * 3), spacing=(1.0,) * len(size),
    )  # fmt: skip


def ids(layers):
    return set(layers.unique().tolist()) - {0}


@pytest.mark.parametrize("size", SIZES, ids=["2d", "3d"])
@pytest.mark.parametrize("first", [1, 65_534, 2**24, 2**31 - 10])
@pytest.mark.parametrize("name", sorted(set(KINDS) - JOINS))
def test_the_set_of_ids_is_unchanged_wherever_objects_stay(name, first, size):
    """Fault 19."""
    dtype = torch.int32 if first + 9 < 2**31 else torch.int64
    layers = blocks(size, range(first, first + 9)).to(dtype)
    sample = replace(sample_of(blocks(size, range(1, 10))), layers=layers)
    for seed in range(3):
        changed = make(name)(sample, generator(seed)).layers
        assert changed.dtype == dtype
        assert ids(changed) <= ids(layers) if name in CUTS else ids(changed) == ids(layers)


@pytest.mark.parametrize("name", sorted(JOINS))
def test_more_than_65535_instances_of_several_samples_stay_apart(name):
    """Fault 19."""
    count = 66_000
    layers = torch.zeros(1, 300, 310, dtype=torch.int32)
    layers.view(-1)[:count] = torch.arange(1, count + 1)
    sample = Sample(
        torch.zeros(1, 300, 310), layers, torch.arange(count), torch.zeros(count, dtype=torch.bool),
        intensity_range=torch.tensor([[0.0, 1.0]]),
    )  # fmt: skip
    steps = {
        "CopyPaste": {"probability": 1.0, "share": 0.1, "min_visible": 0.0, "min_size": 1, "blend": 0.0},
        "Mosaic": {"probability": 1.0},
        "Pad": {"size": 320},
    }
    mixed = KINDS[name](**steps[name])(replace(sample, further=lambda draws: sample), generator())
    present = torch.bincount(mixed.layers.flatten(), minlength=len(mixed.labels) + 1).nonzero()[:, 0]
    assert int(present.max()) > 65_535
    if name != "Pad":
        assert (torch.bincount(mixed.layers.flatten())[1:] <= 1).all(), "an id belongs to one object"
        own = mixed.labels[present[1:] - 1]
        assert torch.equal(torch.bincount(own).clamp(max=1).nonzero()[:, 0], own.unique())
    if name == "CopyPaste":
        assert len(mixed.labels) > count


@pytest.mark.parametrize("size", SIZES, ids=["2d", "3d"])
@pytest.mark.parametrize("name", sorted(KINDS))
def test_what_goes_in_is_left_as_it_was(name, size):
    sample = sample_of(blocks(size, range(1, 10)).int())
    other = sample_of(blocks(size, range(1, 10)).int().flip(-1))
    sample = replace(sample, further=lambda draws: other)
    image, layers = sample.image.clone(), sample.layers.clone()
    make(name)(sample, generator(3))
    assert torch.equal(sample.image, image)
    assert torch.equal(sample.layers, layers)


@pytest.mark.parametrize("size", SIZES, ids=["2d", "3d"])
@pytest.mark.parametrize("name", sorted(KINDS))
def test_equal_draws_give_equal_samples_and_every_object_has_a_label(name, size):
    sample = sample_of(blocks(size, range(1, 10)).int())
    sample = replace(sample, further=lambda draws: sample)
    first, again = (make(name)(sample, generator(7)) for _ in range(2))
    assert torch.equal(first.image, again.image)
    assert torch.equal(first.layers, again.layers)
    assert first.image.isfinite().all()
    assert tuple(first.layers.shape[1:]) == first.size
    assert int(first.layers.max()) <= len(first.labels) == len(first.ignore)
    first.instances()


@pytest.mark.parametrize("name", sorted(KINDS))
def test_every_transform_says_what_it_is_and_is_exported(name):
    assert inspect.getdoc(KINDS[name])
    assert name in package.__all__


def test_a_pipeline_of_all_transforms_runs_on_a_sample_without_annotations():
    pipeline = Compose([make(name) for name in sorted(KINDS)])
    sample = sample_of(blocks((14, 19), range(1, 10)).int()).unlabelled()
    changed = pipeline(replace(sample, further=lambda draws: sample), generator())
    assert not changed.annotated
    assert changed.image.isfinite().all()
