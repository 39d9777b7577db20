import gc
import tempfile

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from pixvox.data.datamodule import DataModule
from pixvox.data.dataset import Dataset, Subset, seeded_subset
from pixvox.data.datasets.label_folder import LabelFolder
from pixvox.data.metadata import Metadata
from pixvox.data.sample import Sample
from pixvox.data.sampler import REPEATED, EpochSampler, sample_generator
from pixvox.data.synthetic.shapes import Shapes
from pixvox.data.transforms import Compose, Pad, RandomAffine, RandomErasing, RandomFlip, RandomNoise, Resize
from pixvox.errors import DataError


def shapes(count=6, seed=0, **options):
    return Shapes(count, seed, image_size=(40, 48), radius=(5, 9), count=(1, 3), **options)


def module(train=None, **options):
    options = {"image_size": 32, "batch_size": 2, "size_divisor": 16, **options}
    augmentation = Compose([RandomAffine(30, size=32), RandomFlip(), RandomNoise(probability=1.0)])
    return DataModule(train or shapes(), val=shapes(3, 1), train_transforms=augmentation, **options)


def epoch(datamodule, number):
    datamodule.set_epoch(number)
    loader = datamodule.train_dataloader()
    return torch.cat([batch.images for batch in loader])


def test_training_batches_are_crops_with_targets():
    batch = next(iter(module().train_dataloader()))
    assert batch.images.shape == (2, 3, 32, 32)
    assert [target.size for target in batch.targets] == [(32, 32)] * 2
    assert batch.intensity_ranges.shape == (2, 3, 2)
    assert batch.truths is None


def test_evaluation_batches_carry_the_truth_in_the_original_frame():
    datamodule = module(eval_transforms=Resize(20))
    batches = list(datamodule.val_dataloader())
    assert len(batches) == 3
    for index, batch in enumerate(batches):
        assert batch.indices == [index]
        assert batch.images.shape[2:] == (32, 32)
        assert batch.geometries[0].valid_size == (17, 20)
        truth = batch.truths[0]
        assert truth.size == (40, 48)
        assert torch.equal(truth.label_map(), datamodule.val[index].layers[0])
        assert truth.image.shape == (3, 40, 48)


def test_metadata_is_there_right_after_construction():
    assert module().metadata.class_names == ("circle", "rectangle", "triangle")


def test_same_seed_and_epoch_give_the_same_batches_and_others_do_not():
    first = epoch(module(), 3)
    assert torch.equal(first, epoch(module(), 3))
    assert not torch.equal(first, epoch(module(), 4))
    assert not torch.equal(first, epoch(module(seed=1), 3))


def test_workers_change_nothing():
    assert torch.equal(epoch(module(), 1), epoch(module(num_workers=2), 1))


def test_loading_leaves_the_global_random_state_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    epoch(module(), 0)
    assert torch.equal(before, torch.get_rng_state())


def test_an_epoch_of_an_existing_loader_follows_its_sampler():
    datamodule = module()
    loader = datamodule.train_dataloader()
    orders = []
    for number in (0, 1, 0):
        loader.sampler.set_epoch(number)
        orders.append(list(loader.sampler))
    assert orders[0] == orders[2]
    assert orders[0] != orders[1]
    assert all(key[0] == 1 for key in orders[1])


@pytest.mark.parametrize("batch_size", [1, 2, 3])
@pytest.mark.parametrize("world", [1, 2, 3, 9])
@pytest.mark.parametrize("shuffle", [True, False])
def test_processes_share_the_images_in_as_many_batches(monkeypatch, world, shuffle, batch_size):
    shares = []
    for rank in range(world):
        monkeypatch.setattr("pixvox.data.sampler.process_rank", lambda rank=rank: rank)
        monkeypatch.setattr("pixvox.data.sampler.world_size", lambda: world)
        sampler = EpochSampler(7, seed=0, shuffle=shuffle, batch_size=batch_size)
        shares.append(list(sampler))
        assert len(sampler) == len(shares[-1])
    batches = {-(-len(share) // batch_size) for share in shares}
    assert len(batches) == 1, "a rank with fewer batches would hang the others"
    seen = [index for share in shares for epoch, index in share if epoch != REPEATED]
    assert set(seen) == set(range(7))
    if not shuffle:
        assert len(seen) == 7, "evaluation counts every image once"
        for share in shares:  # a repeated image is a batch of its own, so that a batch counts or does not
            repeated = [place for place, (epoch, _) in enumerate(share) if epoch == REPEATED]
            assert all(place % batch_size == 0 and place == len(share) - 1 for place in repeated)


def test_sample_generators_differ_by_each_of_their_words():
    draws = {
        torch.rand((), generator=sample_generator(*words)).item()
        for words in [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    }
    assert len(draws) == 4


def test_subsets_are_seeded_nested_and_checked():
    assert seeded_subset(9, -1, 0) == list(range(9))
    assert seeded_subset(9, 3, 0) == seeded_subset(9, 3, 0) != seeded_subset(9, 3, 1)
    assert set(seeded_subset(9, 3, 0)) < set(seeded_subset(9, 5, 0))
    with pytest.raises(ValueError, match="10 images were asked for, there are 9"):
        seeded_subset(9, 10, 0)


def test_labels_that_are_not_used_serve_as_unlabelled_images():
    datamodule = module(num_labeled_images=2, num_unlabeled_images=-1)
    assert len(datamodule.train) == 2
    assert len(datamodule.unlabelled) == 4
    used = {datamodule.train.source(i) for i in range(2)}
    assert not used & {datamodule.unlabelled.source(i) for i in range(4)}
    batch = next(iter(datamodule.unlabelled_dataloader()))
    assert batch.targets is None
    assert len(module(num_labeled_images=2, num_unlabeled_images=3).unlabelled) == 3


def test_labelled_and_unlabelled_batches_come_in_pairs_until_the_longer_ends():
    datamodule = module(shapes(11), num_labeled_images=3, num_unlabeled_images=-1)
    datamodule.set_epoch(2)
    pairs = [pair for pair, _, _ in datamodule.combined_dataloader()]
    assert len(pairs) == 4
    assert all(pair["labelled"].targets and pair["unlabelled"].targets is None for pair in pairs)
    unlabelled = [index for pair in pairs for index in pair["unlabelled"].indices]
    assert sorted(unlabelled) == list(range(8))
    labelled = [index for pair in pairs for index in pair["labelled"].indices]
    passes = [labelled[:3], labelled[3:6], labelled[6:]]
    assert [sorted(each) for each in passes[:2]] == [[0, 1, 2]] * 2 and len(passes[2]) == 2
    first = {
        index: image
        for pair in pairs[:2]
        for index, image in zip(pair["labelled"].indices, pair["labelled"].images, strict=True)
    }
    again = pairs[2]["labelled"]
    assert not torch.equal(first[again.indices[0]], again.images[0]), "another pass, another augmentation"


def test_the_order_of_pairs_follows_seed_and_epoch():
    def order(number, **options):
        datamodule = module(shapes(9), num_labeled_images=4, num_unlabeled_images=-1, **options)
        datamodule.set_epoch(number)
        return [
            pair[name].indices for pair, _, _ in datamodule.combined_dataloader() for name in sorted(pair)
        ]

    assert order(1) == order(1) == order(1, num_workers=2)
    assert order(1) != order(2)
    assert order(1) != order(1, seed=7)


def test_few_unlabelled_images_are_repeated_too():
    datamodule = module(shapes(9), num_labeled_images=7, num_unlabeled_images=2)
    pairs = [pair for pair, _, _ in datamodule.combined_dataloader()]
    assert len(pairs) == len(datamodule.train_dataloader()) == 3
    with pytest.raises(DataError, match="no unlabelled images"):
        module(shapes(3)).combined_dataloader()


def _pairs(**options):
    strong = Compose([RandomNoise(probability=1.0), RandomErasing(probability=1.0)])
    datamodule = module(
        shapes(9), num_labeled_images=3, num_unlabeled_images=-1, strong_transforms=strong, **options
    )
    datamodule.strong_views = 2
    datamodule.set_epoch(1)
    return datamodule, [pair["unlabelled"] for pair, _, _ in datamodule.train_dataloader()]


def test_strong_views_are_of_the_same_pixels_and_differ():
    datamodule, batches = _pairs()
    assert len(batches) == 3
    for batch in batches:
        assert len(batch.views) == 2 and all(view.shape == batch.images.shape for view in batch.views)
        assert not torch.equal(batch.views[0], batch.views[1])
        for view in batch.views:  # noise everywhere and a box painted over; the rest is the weak view's
            assert 0 < (view - batch.images).abs().flatten().median() < 40
    assert all(
        torch.equal(a.views[1], b.views[1]) for a, b in zip(batches, _pairs(num_workers=2)[1], strict=True)
    )
    assert next(iter(datamodule.labelled_dataloader())).views == []


def test_the_weak_view_is_moved_and_not_recoloured():
    datamodule, _ = _pairs()
    (weak,) = [view.transform for view in datamodule._views if view.dataset is datamodule.unlabelled]
    assert [type(step).__name__ for step in weak.steps] == ["RandomAffine", "RandomFlip"]
    flips = module(shapes(9), image_size=None, num_labeled_images=3, num_unlabeled_images=-1)
    flips.train_transforms = Compose([RandomFlip(), RandomNoise(probability=1.0)])
    sources = [flips.unlabelled.source(i) for i in range(6)]
    for batch in flips.unlabelled_dataloader():
        for image, source in zip(batch.images, batch.sources, strict=True):
            whole = flips.unlabelled[sources.index(source)].image
            ways = [whole.flip(axes) for axes in ([], [1], [2], [1, 2])]
            assert any(torch.equal(image[:, :40, :48], way) for way in ways)


def test_it_is_known_what_unlabelled_images_do_not_show():
    _, batches = _pairs(size_divisor=40)
    for batch in batches:  # turned patches of 32 pixels, padded to 40
        assert not batch.inside[:, 32:].any() and not batch.inside[:, :, 32:].any()
    shown = torch.cat([batch.inside[:, :32, :32].flatten(1).float().mean(1) for batch in batches])
    assert 0.5 < shown.min() < 1
    padding = module(
        shapes(9), image_size=None, num_labeled_images=3, num_unlabeled_images=-1, size_divisor=16
    )
    padding.train_transforms, padding.strong_views = Compose([Pad(60, image="low")]), 1
    batch = next(iter(padding.unlabelled_dataloader()))
    assert batch.inside.shape == (2, 64, 64) and batch.inside[:, 10:50, 6:54].all()
    assert batch.inside.sum() == 2 * 40 * 48
    assert next(iter(padding.labelled_dataloader())).inside is None


def test_hidden_truth_moves_with_the_image_and_chooses_no_patch():
    class Bare(Shapes):
        """The same images, nothing known of them."""

        def __getitem__(self, index):
            sample = super().__getitem__(index).unlabelled()
            sample.hidden = None
            return sample

        def unlabelled_indices(self):
            return list(range(len(self)))

    augmentation = Compose([RandomAffine(30, size=32, foreground=1.0), RandomFlip()])
    options = {"image_size": (40, 48), "radius": (5, 9), "count": (1, 3)}
    found = []
    for kind in (Shapes, Bare):
        unlabelled = Subset(kind(4, 5, **options), range(4), unlabelled=True)
        datamodule = DataModule(shapes(2), val=shapes(1, 1), unlabelled=unlabelled, train_transforms=augmentation,
                                image_size=32, batch_size=4, num_unlabeled_images=-1)  # fmt: skip
        found.append(next(iter(datamodule.unlabelled_dataloader())))
    known, bare = found
    assert torch.equal(known.images, bare.images) and known.targets is None
    assert bare.hidden is None and len(known.hidden) == 4
    for image, truth in zip(known.images, known.hidden, strict=True):
        assert truth.size == (32, 32)
        inside = truth.masks.dense().any(dim=0)
        if inside.any() and not inside.all():  # shapes are painted in other colours than the ground
            assert (image[:, inside].mean(dim=1) - image[:, ~inside].mean(dim=1)).abs().max() > 5
    assert any(len(truth) for truth in known.hidden)


def test_a_strong_view_that_moves_pixels_is_refused():
    datamodule = module(
        shapes(9), num_labeled_images=3, num_unlabeled_images=-1, strong_transforms=Resize(20)
    )
    datamodule.strong_views = 1
    with pytest.raises(DataError, match="must leave every pixel in its place"):
        next(iter(datamodule.unlabelled_dataloader()))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_share_each_pass(monkeypatch, world):
    seen = []
    for rank in range(world):
        monkeypatch.setattr("pixvox.data.sampler.process_rank", lambda rank=rank: rank)
        monkeypatch.setattr("pixvox.data.sampler.world_size", lambda: world)
        sampler = EpochSampler(6, seed=0, shuffle=True, images=12 // world)
        sampler.set_epoch(3)
        assert len(sampler) == 12 // world == len(list(sampler))
        seen += list(sampler)
    assert sorted(seen) == [(number, index) for number in (6, 7) for index in range(6)]


def test_no_unlabelled_images_is_an_error_only_when_they_are_asked_for():
    datamodule = module(num_unlabeled_images=-1)
    assert datamodule.unlabelled is None
    with pytest.raises(DataError, match="no unlabelled images"):
        datamodule.unlabelled_dataloader()
    with pytest.raises(DataError, match="every image is labelled"):
        module(num_unlabeled_images=3)
    with pytest.raises(DataError, match="num_labeled_images: 7 images"):
        module(num_labeled_images=7)


def test_splits_that_do_not_fit_one_model_are_refused():
    with pytest.raises(DataError, match="class_names of the splits"):
        DataModule(shapes(), val=shapes(classes=["circle"]))


def test_missing_val_split_is_said():
    with pytest.raises(DataError, match="no val split"):
        DataModule(shapes()).val_dataloader()


def test_fewer_images_than_a_batch_still_make_one():
    assert len(module(shapes(1), batch_size=4).train_dataloader()) == 1


@pytest.fixture
def damaged(tmp_path):
    """Four images of which the third is cut off."""
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
        for i in range(4):
            array = np.random.default_rng(i).integers(0, 3, (40, 48)).astype(np.uint8)
            Image.fromarray(array).save(tmp_path / name / f"{i}.png")
    cut = tmp_path / "images" / "2.png"
    cut.write_bytes(cut.read_bytes()[:200])
    return LabelFolder(tmp_path / "images", tmp_path / "labels")


def test_damaged_image_ends_an_epoch_with_file_and_index(damaged):
    with pytest.raises(DataError, match=r"image 2: .*2\.png"):
        epoch(DataModule(damaged, batch_size=2), 0)


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_image_is_replaced_counted_and_listed_when_asked(damaged, workers, caplog):
    datamodule = DataModule(damaged, batch_size=2, num_workers=workers, on_bad_sample="skip")
    seen = sorted(index for batch in datamodule.train_dataloader() for index in batch.indices)
    assert seen == [0, 1, 3, 3]
    assert len(datamodule.bad_samples()) == 1
    assert "2.png" in datamodule.bad_samples()[0]
    datamodule.teardown("fit")
    assert "1 unreadable images were skipped" in caplog.text
    notes = [view._notes for view in datamodule._views]
    assert all(note.exists() for note in notes)
    del datamodule
    gc.collect()
    assert not any(note.exists() for note in notes)


def test_evaluation_never_replaces_an_image(damaged):
    datamodule = DataModule(damaged, val=damaged, on_bad_sample="skip")
    with pytest.raises(DataError, match="image 2"):
        list(datamodule.val_dataloader())


class Empty(Dataset):
    """Images on which nothing is."""

    def __init__(self, task):
        self.metadata = Metadata(task, 3, ("a",), 1)

    def __len__(self):
        return 2

    def __getitem__(self, index):
        size = (5, 6, 7)
        if self.metadata.task == "semantic":
            return Sample(torch.zeros(1, *size), class_map=torch.zeros(size, dtype=torch.int64))
        return Sample(
            torch.zeros(1, *size), torch.zeros((1, *size), dtype=torch.int32),
            torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool),
        )  # fmt: skip


@pytest.mark.parametrize("task", ["instance", "semantic"])
def test_batch_without_any_object_is_a_batch(task):
    datamodule = DataModule(Empty(task), val=Empty(task), batch_size=2, size_divisor=4)
    batch = next(iter(datamodule.train_dataloader()))
    if task == "instance":
        assert [len(target) for target in batch.targets] == [0, 0]
        assert batch.targets[0].size == (8, 8, 8)
    else:
        assert (batch.targets == 255).sum() == 2 * (8**3 - 5 * 6 * 7)
    assert len(list(datamodule.val_dataloader())) == 2


def test_volume_smaller_than_the_patch_is_padded_and_the_padding_known(tmp_path):
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
        tifffile.imwrite(tmp_path / name / "a.tif", np.ones((1, 9, 30), np.uint16), metadata={"axes": "ZYX"})
    dataset = LabelFolder(tmp_path / "images", tmp_path / "labels", spatial_dims=3)
    transform = RandomAffine(20, size=(4, 12, 16))
    datamodule = DataModule(dataset, train_transforms=transform, image_size=(4, 12, 16), size_divisor=4)
    batch = next(iter(datamodule.train_dataloader()))
    assert batch.images.shape == (1, 1, 4, 12, 16)
    assert batch.valid_sizes.tolist() == [[1, 9, 16]]


def test_a_path_is_enough(tmp_path):
    from pixvox.data.make import make_dataset

    make_dataset("shapes", tmp_path / "d", num_train=3, num_val=2, image_size=40, radius=(5, 9))
    datamodule = DataModule(path=tmp_path / "d", num_labeled_images=2)
    assert (len(datamodule.train), len(datamodule.val)) == (2, 2)
    assert datamodule.metadata.in_channels == 3
    with pytest.raises(DataError, match="train dataset"):
        DataModule()


@pytest.mark.parametrize("label", [-1, 2, 255])
def test_objects_of_a_class_that_there_is_not_are_named_by_the_image(label):
    def picture(classes):
        layers = torch.zeros(1, 6, 8, dtype=torch.int32)
        layers[0, 2:4, 2:4], layers[0, 5, 5] = 1, 2
        return Sample(torch.zeros(1, 6, 8), layers, torch.tensor(classes), torch.tensor([False, True]))

    data = DataModule(Listed("instance", [picture([0, 1]), picture([label, 0])]), batch_size=2)
    with pytest.raises(DataError, match=rf"image 1: .*label {label} is none of the classes 0\.\.1"):
        list(data.train_dataloader())


@pytest.mark.parametrize(
    ("value", "ignored", "message"),
    [(2, 255, r"label 2 is none of the classes 0\.\.1"), (1, 9, "ignores the label 9, its dataset 255")],
)
def test_pixels_of_a_class_that_there_is_not_are_named_by_the_image(value, ignored, message):
    maps = torch.tensor([[0, 1, 255, value]])
    sample = Sample(torch.zeros(1, 1, 4), class_map=maps, ignore_index=ignored)
    data = DataModule(Listed("semantic", [sample]), batch_size=1)
    with pytest.raises(DataError, match=f"image 0: .*{message}"):
        list(data.train_dataloader())


class Listed(Dataset):
    """Samples of the classes a and b."""

    def __init__(self, task, samples):
        self.samples = samples
        self.metadata = Metadata(task, 2, ("a", "b"), 1, name="listed")

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


def test_subset_renumbers_and_hides(tmp_path):
    subset = Subset(shapes(), [4, 2], unlabelled=True)
    assert subset[1].index == 1
    assert torch.equal(subset[1].image, shapes()[2].image)
    assert not subset[0].annotated
    assert subset.source(1) == shapes().source(2)
    assert subset.unlabelled_indices() == [0, 1]


def test_note_file_is_made_only_where_samples_may_be_skipped(monkeypatch):
    made = []
    monkeypatch.setattr(tempfile, "mkstemp", lambda **options: made.append(options))
    list(module().train_dataloader())
    assert not made
