from collections import Counter

import numpy as np
import pytest
import torch

from pixvox.data.balance import (
    balanced_length,
    balanced_order,
    image_weights,
    inverse_frequencies,
    repeat_factors,
)
from pixvox.data.concatenation import Concatenation
from pixvox.data.datamodule import DataModule
from pixvox.data.dataset import Dataset, Subset, classes_of
from pixvox.data.datasets.coco import CocoDataset
from pixvox.data.make import make_dataset
from pixvox.data.metadata import Metadata
from pixvox.data.relabel import Relabelled
from pixvox.data.sample import Sample
from pixvox.data.sampler import EpochSampler
from pixvox.data.transforms import RandomNoise
from pixvox.data.views import TrainingView

SHOWN = [{0}, {0}, {0, 1}, {0}, set(), {0}, {0, 2}, {0}, {0}, {0, 2}]


class Scenes(Dataset):
    def __init__(self, shown=SHOWN, task="instance"):
        self.shown = shown
        self.metadata = Metadata(task, 2, ("common", "rarest", "rare"), 1)

    def __len__(self):
        return len(self.shown)

    def __getitem__(self, index):
        shown = sorted(self.shown[index])
        if self.metadata.task == "semantic":
            row = torch.tensor([*shown, 255, 255, 255, 255])[None, :4]
            return Sample(torch.zeros(1, 1, 4), class_map=row, index=index)
        layers = torch.zeros(1, 1, 4, dtype=torch.int32)
        layers[0, 0, : len(shown)] = torch.arange(1, len(shown) + 1)
        ignore = torch.zeros(len(shown), dtype=torch.bool)
        return Sample(torch.zeros(1, 1, 4), layers, torch.tensor(shown).long(), ignore, index=index)


@pytest.mark.parametrize("task", ["instance", "semantic"])
def test_factors_are_those_of_the_rarest_class_of_each_image(task):
    weights = image_weights(Scenes(task=task), "repeat_factor", threshold=0.4)
    rarest, rare = (0.4 / 0.1) ** 0.5, (0.4 / 0.2) ** 0.5
    assert weights == pytest.approx([1, 1, rarest, 1, 1, 1, rare, 1, 1, rare])


def test_no_class_below_the_threshold_leaves_all_weights_at_one():
    assert repeat_factors(SHOWN, threshold=0.05).tolist() == [1.0] * 10


def test_inverse_frequencies_keep_the_number_of_images():
    weights = inverse_frequencies(SHOWN)
    assert weights.sum() == pytest.approx(10)
    assert (
        weights[2]
        == pytest.approx(weights[4])
        == pytest.approx(2 * weights[6])
        == pytest.approx(9 * weights[0])
    )


def test_an_order_shows_each_image_its_weight_rounded_down_or_up_and_exactly_on_average():
    weights = repeat_factors(SHOWN, threshold=0.6)
    total = np.zeros(10)
    for seed in range(2000):
        order = balanced_order(weights, np.random.default_rng(seed))
        assert len(order) == balanced_length(weights)
        counts = np.bincount(order, minlength=10)
        scaled = weights * (len(order) / weights.sum())
        assert (counts >= np.floor(scaled - 1e-9)).all()
        assert (counts <= np.ceil(scaled + 1e-9)).all()
        total += counts
    assert total / 2000 == pytest.approx(scaled, abs=0.05)


def test_the_order_is_a_function_of_seed_and_epoch():
    def order(seed, epoch):
        sampler = EpochSampler(10, seed, shuffle=True, weights=repeat_factors(SHOWN, 0.6))
        sampler.set_epoch(epoch)
        assert len(sampler) == len(list(sampler))
        return list(sampler)

    assert order(3, 1) == order(3, 1)
    assert order(3, 1) != order(3, 2)
    assert order(3, 1) != order(4, 1)


def test_weights_of_one_show_every_image_once():
    order = list(EpochSampler(10, 0, shuffle=True, weights=np.ones(10)))
    assert sorted(order) == [(0, index) for index in range(10)]


def test_processes_share_the_order(monkeypatch):
    weights = repeat_factors(SHOWN, 0.6)
    whole = list(EpochSampler(10, 3, shuffle=True, weights=weights))
    shares = []
    for rank in range(2):
        monkeypatch.setattr("pixvox.data.sampler.process_rank", lambda rank=rank: rank)
        monkeypatch.setattr("pixvox.data.sampler.world_size", lambda: 2)
        shares.append(list(EpochSampler(10, 3, shuffle=True, weights=weights)))
    assert len(shares[0]) == len(shares[1])
    together = [key for pair in zip(*shares, strict=True) for key in pair]
    assert together[: len(whole)] == whole


def test_an_image_that_is_seen_again_is_augmented_otherwise():
    weights = np.array([3.0, 1.0])
    keys = list(EpochSampler(2, 0, shuffle=True, weights=weights))
    assert Counter(index for _, index in keys) == {0: 3, 1: 1}
    assert len(set(keys)) == 4
    view = TrainingView(Scenes([{0}, {0}]), RandomNoise((1.0, 1.0), 1.0), seed=0)
    images = [view[key].image for key in keys if key[1] == 0]
    assert not torch.equal(images[0], images[1])
    assert not torch.equal(images[1], images[2])


def test_the_data_module_shows_rare_classes_more_often():
    def rarest(balance):
        data = DataModule(Scenes(), batch_size=1, balance=balance, balance_threshold=1.0)
        return sum(batch.indices == [2] for batch in data.train_dataloader())

    assert rarest(None) == 1
    assert rarest("repeat_factor") == 3
    assert rarest("inverse_frequency") >= 2


@pytest.mark.parametrize(("balance", "threshold"), [("repeat_factor", 0.0), ("repeat_factor", 1.5)])
def test_wrong_options_are_refused(balance, threshold):
    with pytest.raises(ValueError, match="threshold"):
        image_weights(Scenes(), balance, threshold)


def test_coco_files_tell_classes_without_decoding_and_views_pass_them_on(tmp_path, monkeypatch):
    root = make_dataset("shapes", tmp_path / "d", 4, 0, image_size=40, radius=(5, 9))
    annotations = next(root.rglob("instances_*.json"))
    images = next(path.parent for path in root.rglob("*.png"))
    dataset = CocoDataset(images, annotations)
    expected = [classes_of(dataset[index]) for index in range(len(dataset))]
    names = dataset.metadata.class_names
    merged = Relabelled(dataset, mapping={names[0]: names[1]})
    seen_merged = [classes_of(merged[index]) for index in range(len(dataset))]
    monkeypatch.setattr(CocoDataset, "__getitem__", None)
    assert [dataset.classes_in(index) for index in range(len(dataset))] == expected
    assert Subset(dataset, [2]).classes_in(0) == expected[2]
    assert Subset(dataset, [2], unlabelled=True).classes_in(0) == set()
    assert Concatenation([dataset, dataset]).classes_in(len(dataset) + 1) == expected[1]
    assert [merged.classes_in(index) for index in range(len(dataset))] == seen_merged
