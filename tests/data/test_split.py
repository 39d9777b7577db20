import pytest

from pixvox.data.datamodule import DataModule
from pixvox.data.dataset import Subset, seeded_subset
from pixvox.data.make import make_dataset
from pixvox.data.split import drawn_splits
from pixvox.data.synthetic.shapes import Shapes
from pixvox.errors import DataError


def shapes(count=10):
    return Shapes(count, 0, image_size=(32, 40), radius=(4, 8))


def sources(dataset):
    return {dataset.source(index) for index in range(len(dataset))}


def test_parts_are_disjoint_complete_and_the_same_for_one_seed():
    parts = drawn_splits(shapes(), {"val": 0.2, "test": 0.3}, seed=3)
    assert {name: len(part) for name, part in parts.items()} == {"train": 5, "val": 2, "test": 3}
    union = set().union(*map(sources, parts.values()))
    assert union == sources(shapes())
    again, other = (drawn_splits(shapes(), {"val": 0.2, "test": 0.3}, seed) for seed in (3, 4))
    assert all(sources(parts[name]) == sources(again[name]) for name in parts)
    assert any(sources(parts[name]) != sources(other[name]) for name in parts)


def test_the_val_part_does_not_depend_on_whether_a_test_part_is_drawn():
    alone, both = (
        drawn_splits(shapes(), shares, 0)["val"] for shares in ({"val": 0.2}, {"val": 0.2, "test": 0.2})
    )
    assert sources(alone) == sources(both)


def test_every_part_gets_an_image_and_images_without_labels_stay_in_train():
    parts = drawn_splits(shapes(3), {"val": 0.01, "test": 0.9}, seed=0)
    assert [len(parts[name]) for name in ("train", "val", "test")] == [1, 1, 1]

    class Half(Subset):
        def unlabelled_indices(self):
            return [0, 1, 2, 3, 4]

    parts = drawn_splits(Half(shapes(), range(10)), {"val": 0.5}, seed=0)
    assert len(parts["val"]) == 2
    assert {f"shapes[{i}]" for i in range(5)} <= sources(parts["train"])


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"val": 0.0}, "val_fraction must lie between 0 and 1, got 0.0"),
        ({"test": 1.0}, "test_fraction"),
        ({"val": 0.6, "test": 0.4}, "leave nothing to train on"),
    ],
)
def test_shares_out_of_range_are_refused(shares, message):
    with pytest.raises(DataError, match=message):
        drawn_splits(shapes(), shares, 0)


def test_too_few_images_are_refused():
    with pytest.raises(DataError, match="2 annotated images, and no split val and no split test; at least 3"):
        drawn_splits(shapes(2), {"val": 0.2, "test": 0.2}, 0)


def test_any_dataset_gets_the_splits_it_lacks():
    module = DataModule(shapes(), val_fraction=0.2, test_fraction=0.1)
    assert [len(part) for part in (module.train, module.val, module.test)] == [7, 2, 1]
    assert not sources(module.train) & (sources(module.val) | sources(module.test))
    given = DataModule(shapes(), val=shapes(3), val_fraction=0.5)
    assert (len(given.train), len(given.val)) == (10, 3)


def test_a_folder_gets_a_test_split_beside_its_own_val_split(tmp_path):
    make_dataset("shapes", tmp_path / "d", 8, 3, image_size=40, radius=(5, 9))
    module = DataModule(path=tmp_path / "d", test_fraction=0.25, num_labeled_images=0.5)
    assert [len(part) for part in (module.train, module.val, module.test)] == [3, 3, 2]
    assert not sources(module.train) & sources(module.test)
    assert all(batch.truths for batch in module.test_dataloader())


def test_both_splits_drawn_from_a_folder_are_shares_of_all_its_images(tmp_path):
    make_dataset("shapes", tmp_path / "d", 20, 0, image_size=40, radius=(5, 9))
    module = DataModule(path=tmp_path / "d", val_fraction=0.4, test_fraction=0.3)
    assert [len(part) for part in (module.train, module.val, module.test)] == [6, 8, 6]
    parts = [sources(part) for part in (module.train, module.val, module.test)]
    assert len(set().union(*parts)) == 20
    with pytest.raises(DataError, match="test_fraction"):
        DataModule(path=tmp_path / "d", val_fraction=0.4, test_fraction=0.6)


def test_shares_of_labels_are_nested_and_round_to_at_least_one():
    tenth, half = seeded_subset(40, 0.1, 0), seeded_subset(40, 0.5, 0)
    assert (len(tenth), len(half)) == (4, 20)
    assert set(tenth) < set(half)
    assert tenth == seeded_subset(40, 4, 0)
    assert len(seeded_subset(40, 0.001, 0)) == 1


@pytest.mark.parametrize("wanted", [1.0, 1.5, -0.5])
def test_a_number_that_may_mean_two_things_is_refused(wanted):
    with pytest.raises(DataError, match="num_labeled_images: .*-1"):
        DataModule(shapes(), num_labeled_images=wanted)
