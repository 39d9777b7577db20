import numpy as np
import pytest
import torch

from pixvox.configuration import compose, instantiate
from pixvox.data.collate import Collate
from pixvox.data.datamodule import DataModule
from pixvox.data.dataset import Dataset
from pixvox.data.fingerprint import read_fingerprint
from pixvox.data.metadata import Metadata
from pixvox.data.sample import Sample, renumber
from pixvox.data.suggestions import notes
from pixvox.data.transforms import RandomCrop, Resample
from pixvox.errors import DataError

SPACINGS = [(2.0, 0.5), (1.0, 1.0), (0.5, 0.25)]


class Plates(Dataset):
    """The same piece of the world, 8 x 12 um (or 6 x 8 x 12 um), at several pixel sizes."""

    def __init__(self, dims=2, task="instance", unit="um", spacings=SPACINGS):
        self.metadata = Metadata(task, dims, ("background", "cell")[task == "instance" :], in_channels=1)
        self.spacings = [((1.5,) * (dims - 2) + steps) for steps in spacings]
        self.unit = unit

    def __len__(self):
        return len(self.spacings)

    def __getitem__(self, index):
        steps = self.spacings[index]
        size = [round(length / step) for length, step in zip((6, 8, 12)[-len(steps) :], steps, strict=True)]
        axes = [(torch.arange(n) + 0.5) * step for n, step in zip(size, steps, strict=True)]
        y, x = torch.meshgrid(*axes[-2:], indexing="ij")
        labels = ((y > 2) & (y < 6) & (x > 3) & (x < 9)).long().expand(*size)
        image = (100.0 * labels)[None]
        scale = 1.0 if self.unit == "um" else 1e-3
        known = {"spacing": tuple(step * scale for step in steps), "unit": self.unit, "source": str(index)}
        if self.metadata.task == "semantic":
            return Sample(image, class_map=labels, **known)
        return Sample(
            image, layers=labels[None], labels=torch.zeros(1).long(), ignore=torch.zeros(1).bool(), **known
        )


def run(sample, spacing, unit=None):
    return Resample(spacing, unit)(sample, torch.Generator())


def test_pixels_get_one_size_and_objects_keep_their_physical_one():
    for dims in (2, 3):
        for index in range(3):
            sample = Plates(dims)[index]
            changed = run(sample, 0.5)
            assert changed.size == (12, 16, 24)[-dims:]
            assert changed.spacing == pytest.approx((0.5,) * dims)
            area = float((changed.layers > 0).sum() * 0.5**dims)
            assert area == pytest.approx(24 * (6 if dims == 3 else 1), rel=0.01)
            assert changed.original_size == sample.size
            frame = changed.geometry(changed.size)
            assert frame.spacing == pytest.approx(sample.spacing)
            assert frame.original_size == sample.size


def test_ids_of_32_bits_are_kept():
    labels = np.zeros((5, 8), np.uint32)
    labels[1:3, 2:5], labels[3:, 5:] = 2**32 - 1, 2**24 + 1
    numbered, ids = renumber(labels)
    sample = Sample(
        torch.zeros(1, 5, 8), numbered[None], torch.zeros(2).long(), torch.zeros(2).bool(), spacing=(1.0, 1.0)
    )
    changed = run(sample, [0.5, 2.0])
    assert changed.layers.unique().tolist() == [0, 1, 2]
    assert ids.tolist() == [2**24 + 1, 2**32 - 1]
    exact = Sample(torch.zeros(1, 5, 8), torch.from_numpy(labels.astype(np.int64))[None], spacing=(1.0, 1.0))
    assert set(run(exact, [0.25, 2.0]).layers.unique().tolist()) == {0, 2**24 + 1, 2**32 - 1}


def test_a_coarser_spacing_averages_intensities():
    checkers = torch.arange(16).view(1, 1, 16) % 2 * 1.0
    for shape, spacing in (((1, 4, 16), (1.0, 0.5)), ((1, 2, 4, 16), (1.0, 1.0, 0.5))):
        image = checkers.expand(shape) if len(shape) == 3 else checkers[None].expand(shape)
        changed = run(Sample(image, spacing=spacing), (1.0,) * (len(shape) - 2) + (2.0,))
        inner = changed.image[..., 1:-1]  # beyond its border a picture's filter sees nothing
        assert inner.numel() and torch.allclose(inner, torch.full_like(inner, 0.5), atol=0.02)


def test_units_are_converted():
    sample = Plates(unit="mm")[1]
    assert run(sample, 0.5, "um").size == (16, 24)
    assert run(sample, 0.5e-3).size == (16, 24)


def test_what_has_no_spacing_or_an_absurd_one_is_refused():
    with pytest.raises(
        DataError, match=r"a\.tif does not say how large its pixels are.*data\.options\.spacing"
    ):
        run(Sample(torch.zeros(1, 4, 4), source="a.tif"), 1.0)
    with pytest.raises(DataError, match="4000 x 4000 at 0.001 x 0.001 um; is it the right unit"):
        run(Sample(torch.zeros(1, 4, 4), spacing=(1.0, 1.0)), 1e-3)
    for spacing in (0.0, [1.0, -1.0], []):
        with pytest.raises(ValueError, match="above 0"):
            Resample(spacing)
    with pytest.raises(ValueError, match="um or mm"):
        Resample(1.0, "inch")
    with pytest.raises(DataError, match=r"transforms\.spacing: .* 2 axes, the images have 3"):
        DataModule(Plates(3), spacing=[1, 1])


def test_training_and_evaluation_see_one_spacing_and_truths_stay_in_the_original_grid():
    for dims, task in ((2, "instance"), (3, "semantic")):
        data = DataModule(
            Plates(dims, task), val=Plates(dims, task), spacing=0.5, batch_size=3, size_divisor=1,
            train_transforms=RandomCrop(8), image_size=8,
        )  # fmt: skip
        batch = next(iter(data.train_dataloader()))
        assert batch.images.shape == (3, 1, *(8,) * dims)
        assert all(frame.spacing == pytest.approx((0.5,) * dims) for frame in batch.geometries)
        for index, val in enumerate(data.val_dataloader()):
            sample = data.val[index]
            assert val.images.shape[2:] == (12, 16, 24)[-dims:]
            assert val.truths[0].size == val.geometries[0].original_size == sample.size
        assert data.metadata.spacing == (0.5,) * dims


def test_unlabelled_images_are_resampled_in_both_views():
    data = DataModule(
        Plates(), spacing=0.5, batch_size=2, size_divisor=1, num_labeled_images=1, num_unlabeled_images=2
    )
    data.strong_views = 1
    batch = next(iter(data.unlabelled_dataloader()))
    assert batch.targets is None
    assert batch.images.shape == batch.views[0].shape == (2, 1, 16, 24)
    assert batch.inside.all()


def test_the_unit_is_that_of_the_first_image():
    data = DataModule(Plates(unit="mm"), val=Plates(), spacing=0.5e-3, batch_size=1, size_divisor=1)
    assert data.metadata.unit == "mm"
    assert {tuple(batch.images.shape[2:]) for batch in data.val_dataloader()} == {(16, 24)}


def test_one_option_sets_the_spacing_of_every_pipeline():
    for name in ("crops", "fit", "semantic", "none", "upright"):
        config = compose("train", [f"transforms={name}", "data=shapes", "transforms.spacing=[2,0.5]"])
        assert list(config.data.spacing) == [2, 0.5]
        assert compose("train", [f"transforms={name}"]).data.spacing is None
    with pytest.raises(DataError, match="does not say how large its pixels are"):
        instantiate(config.data, "data")


def test_the_fingerprint_knows_what_the_model_will_see():
    facts = read_fingerprint(Plates(), resample=Resample(0.5))
    assert facts.image_sizes.tolist() == [[16, 24]] * 3
    assert facts.spacing_ratio == pytest.approx(1)
    as_they_are = read_fingerprint(Plates())
    assert as_they_are.spacing_ratio == 4
    assert any("transforms.spacing=[1,0.5]" in note for note in notes(as_they_are))
    assert not any("transforms.spacing" in note for note in notes(facts))


def test_batches_of_one_spacing_need_no_padding_but_the_largest():
    batch = Collate(1)([run(Plates()[index], 1.0) for index in range(3)])
    assert batch.images.shape == (3, 1, 8, 12)
    areas = [int(instances.masks.dense().sum()) for instances in batch.targets]
    assert max(areas) - min(areas) <= 8
