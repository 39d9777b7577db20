from dataclasses import replace

import pytest
import torch
from torch.utils.data import DataLoader

from pixvox.data.dataset import Dataset
from pixvox.data.metadata import Metadata
from pixvox.data.sample import Sample
from pixvox.data.sampler import EpochSampler
from pixvox.data.transforms import Compose, CopyPaste, Mosaic, RandomCrop, RandomFlip
from pixvox.data.transforms.compose import Transform
from pixvox.data.transforms.copy_paste import drop_hidden, fit_onto
from pixvox.data.views import TrainingView

SIZES = [(14, 19), (7, 14, 19)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def filled(size, value, box=None, label=0, limits=(0.0, 10.0)):
    """One object of ``value`` in a background of ``value / 2``: the image tells the object."""
    layers = torch.zeros((1, *size), dtype=torch.int32)
    layers[(0, *(box or (slice(2, 6),) * len(size)))] = 1
    return Sample(
        torch.where(layers > 0, float(value), value / 2), layers, torch.tensor([label]),
        torch.tensor([False]), intensity_range=torch.tensor([limits]),
    )  # fmt: skip


class Numbered(Dataset):
    """Images that show their own number."""

    def __init__(self, size, count=7):
        self.size, self.count = size, count
        self.metadata = Metadata("instance", len(size), tuple(map(str, range(count))), 1)

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return replace(filled(self.size, index + 1, label=index), index=index)


def with_others(sample, *others):
    rest = iter(others)
    return replace(sample, further=lambda generator: next(rest))


@pytest.mark.parametrize("size", SIZES)
def test_pasted_objects_bring_pixels_label_and_an_id_of_their_own(size):
    other = filled(size, 8, (slice(4, 9),) * len(size), label=3)
    sample = with_others(filled(size, 2, label=1), other)
    mixed = CopyPaste(1.0, share=1.0, min_visible=0.0, min_size=1, blend=0.0)(sample, generator())
    assert mixed.labels.tolist() == [1, 3]
    region = (0, *(slice(4, 9),) * len(size))
    assert (mixed.layers[region] == 2).all()
    assert (mixed.image[region] == 8).all()
    assert (mixed.image[0][mixed.layers[0] == 1] == 2).all()
    assert int((mixed.layers == 1).sum()) == 4 ** len(size) - 2 ** len(size), "what is hidden is cut out"
    instances = mixed.instances()
    assert len(instances) == 2
    assert instances.boxes[0].tolist() == [2.0] * len(size) + [6.0] * len(size)


def test_small_rests_of_hidden_objects_are_dropped_whole():
    layers = torch.tensor([[[1, 1, 1, 1, 2, 2, 2, 2, 3]]], dtype=torch.int32)
    over = torch.tensor([[True, True, True, False, True, True, False, False, False]])
    kept = drop_hidden(layers, over, 3, min_visible=0.3, min_size=1)
    assert kept.tolist() == [[[0, 0, 0, 0, 0, 0, 2, 2, 3]]]
    kept = drop_hidden(layers, over, 3, min_visible=0.0, min_size=3)
    assert kept.tolist() == [[[0, 0, 0, 0, 0, 0, 0, 0, 3]]], "an object that was small before is left alone"


def test_pasting_over_overlapping_objects_cuts_every_layer():
    layers = torch.tensor([[[1, 1, 1, 0]], [[0, 2, 2, 2]]], dtype=torch.int32)
    below = Sample(torch.zeros(1, 1, 4), layers, torch.tensor([0, 1]), torch.tensor([False, False]))
    above = Sample(
        torch.ones(1, 1, 4), torch.tensor([[[0, 1, 0, 0]]], dtype=torch.int32), torch.tensor([5]),
        torch.tensor([False]),
    )  # fmt: skip
    mixed = CopyPaste(1.0, 1.0, 0.0, 1, blend=0.0)(with_others(below, above), generator())
    assert mixed.layers.tolist() == [[[1, 3, 1, 0]], [[0, 0, 2, 2]]]
    assert mixed.labels.tolist() == [0, 1, 5]


def test_crowds_are_not_pasted():
    crowd = replace(filled((9, 9), 8), ignore=torch.tensor([True]))
    sample = with_others(filled((9, 9), 2), crowd)
    assert CopyPaste(1.0, share=1.0)(sample, generator()).labels.tolist() == [0]


def test_intensities_are_brought_to_the_range_of_the_target():
    other = filled((9, 9), 800, label=3, limits=(0.0, 1000.0))
    mixed = CopyPaste(1.0, 1.0, blend=0.0)(with_others(filled((9, 9), 2), other), generator())
    assert mixed.image[0, 3, 3].item() == pytest.approx(8)


@pytest.mark.parametrize(("theirs", "ours"), [((5, 30), (14, 19)), ((4, 30, 9), (7, 14, 19))])
def test_another_size_is_cut_and_ended_without_annotations(theirs, ours):
    other = filled(theirs, 8, tuple(slice(0, None) for _ in theirs))
    fitted = fit_onto(other, filled(ours, 2))
    both = tuple(slice(0, min(pair)) for pair in zip(theirs, ours, strict=True))
    assert fitted.size == ours
    assert (fitted.layers[(0, *both)] == 1).all()
    assert int(fitted.layers.sum()) == fitted.layers[(0, *both)].numel()
    assert (fitted.image[fitted.layers == 0] == 0).all()


def test_half_of_the_classes_of_a_class_map_are_pasted():
    limits = {"intensity_range": torch.tensor([[0.0, 1.0]])}
    below = Sample(torch.zeros(1, 2, 4), class_map=torch.full((2, 4), 9), **limits)
    above = Sample(torch.ones(1, 2, 4), class_map=torch.tensor([[0, 1, 2, 255], [3, 3, 3, 255]]), **limits)
    mixed = CopyPaste(1.0, blend=0.0)(with_others(below, above), generator(1))
    pasted = set(mixed.class_map.unique().tolist()) - {9}
    assert len(pasted) == 2
    assert 255 not in pasted
    assert torch.equal(mixed.image[0] == 1, mixed.class_map != 9)


@pytest.mark.parametrize("transform", [CopyPaste(1.0), Mosaic(1.0)], ids=["copy_paste", "mosaic"])
def test_a_lone_sample_passes(transform):
    sample = filled((9, 11), 3)
    assert transform(sample, generator()) is sample


def test_nothing_is_pasted_into_an_image_without_annotations():
    sample = with_others(filled((9, 11), 3).unlabelled(), filled((9, 11), 8))
    assert CopyPaste(1.0, 1.0)(sample, generator()) is sample


@pytest.mark.parametrize("size", SIZES)
def test_a_mosaic_shows_every_sample_and_numbers_objects_on(size):
    whole = tuple(slice(0, None) for _ in size)
    others = [filled(size, value, whole, label=value) for value in range(2, 2 ** len(size) + 1)]
    sample = with_others(filled(size, 1, whole, label=1), *others)
    mixed = Mosaic(1.0)(sample, generator(3))
    assert mixed.size == size
    count = 2 ** len(size)
    assert mixed.labels.tolist() == list(range(1, count + 1))
    assert torch.equal(mixed.image, mixed.layers.float()), "each part shows its own object"
    assert mixed.layers.unique().tolist() == list(range(1, count + 1))


@pytest.mark.parametrize("bare", ["ours", "theirs"])
def test_a_mosaic_does_not_pass_off_what_nobody_annotated_as_empty(bare):
    ours, theirs = filled((14, 19), 2), filled((14, 19), 8)
    ours, theirs = (ours.unlabelled(), theirs) if bare == "ours" else (ours, theirs.unlabelled())
    mixed = Mosaic(1.0)(with_others(ours, theirs, theirs, theirs), generator())
    assert torch.equal(mixed.image, ours.image)
    assert mixed.annotated == ours.annotated


def test_parts_of_a_mosaic_beyond_small_samples_are_ignored():
    small = Sample(torch.ones(1, 2, 2), class_map=torch.ones(2, 2, dtype=torch.int64))
    large = Sample(torch.ones(1, 12, 12), class_map=torch.ones(12, 12, dtype=torch.int64))
    sample = replace(large, further=lambda generator: small)
    classes = Mosaic(1.0, margin=0.5)(sample, generator(2)).class_map
    assert set(classes.unique().tolist()) <= {1, 255}
    assert (classes == 255).any()


class Mark(Transform):
    """Adds a random number, to see which samples went through."""

    def __call__(self, sample, generator):
        return replace(sample, image=sample.image + 100 * torch.rand((), generator=generator))


class Ask(Transform):
    def __init__(self):
        self.seen = []

    def __call__(self, sample, generator):
        self.seen = [sample.further(generator) for _ in range(3)]
        return sample


def test_further_samples_went_through_earlier_steps_only_with_draws_of_their_own():
    ask = Ask()
    view = TrainingView(Numbered((9, 11)), Compose([Mark(), RandomCrop(5), ask, RandomCrop(2)]), seed=0)
    changed = view[0, 3]
    assert changed.size == (2, 2)
    assert changed.further is None, "a sample must be able to leave its process"
    assert [other.size for other in ask.seen] == [(5, 5)] * 3
    assert len({float(other.image.max()) for other in ask.seen}) == 3


def test_nested_pipelines_hand_further_samples_on():
    ask = Ask()
    view = TrainingView(Numbered((9, 11)), Compose([RandomCrop(6), Compose([RandomCrop(5), ask])]), seed=0)
    view[0, 0]
    assert [other.size for other in ask.seen] == [(5, 5)] * 3


@pytest.mark.parametrize("size", SIZES)
def test_mixtures_do_not_depend_on_the_number_of_workers(size):
    steps = Compose([RandomCrop(6), RandomFlip(), Mosaic(0.7), CopyPaste(0.7, 1.0)])
    view = TrainingView(Numbered(size), steps, seed=5)

    def batches(workers):
        loader = DataLoader(
            view, sampler=EpochSampler(7, 5, shuffle=True), batch_size=None, num_workers=workers
        )
        return list(loader)

    alone, shared = batches(0), batches(2)
    assert any(len(sample.labels) > 1 for sample in alone)
    for ours, theirs in zip(alone, shared, strict=True):
        assert torch.equal(ours.image, theirs.image)
        assert torch.equal(ours.layers, theirs.layers)
        assert torch.equal(ours.labels, theirs.labels)
