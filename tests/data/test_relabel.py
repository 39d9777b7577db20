from dataclasses import replace

import pytest
import torch

from pixvox.data.concatenation import Concatenation
from pixvox.data.datamodule import DataModule
from pixvox.data.dataset import Dataset, Subset
from pixvox.data.metadata import Metadata
from pixvox.data.relabel import Relabelled, class_agnostic
from pixvox.data.sample import Sample
from pixvox.errors import DataError

CLASSES = ("car", "lorry", "tree")


class Objects(Dataset):
    """One image with an object of each class, the last a crowd."""

    def __init__(self, classes=CLASSES, dims=2, name="street", channels=1, spacing=None):
        self.metadata = Metadata("instance", dims, tuple(classes), channels, spacing=spacing, name=name)

    def __len__(self):
        return 2

    def __getitem__(self, index):
        count, dims = self.metadata.num_classes, self.metadata.spatial_dims
        size = (count, *(2, 3)[: dims - 1])
        layer = torch.arange(1, count + 1, dtype=torch.int32).view(-1, *[1] * (dims - 1)).expand(size)
        ignore = torch.zeros(count, dtype=torch.bool)
        ignore[-1] = True
        return Sample(
            torch.zeros(1, *size), layer.clone()[None], torch.arange(count), ignore, source=f"{index}"
        )


class Pixels(Dataset):
    """One image with a column of each class and one that is ignored."""

    def __init__(self, classes=("background", *CLASSES), name="scenes"):
        self.metadata = Metadata("semantic", 2, tuple(classes), 1, name=name)

    def __len__(self):
        return 1

    def __getitem__(self, index):
        values = torch.tensor([*range(self.metadata.num_classes), 255])
        return Sample(torch.zeros(1, 2, len(values)), class_map=values.repeat(2, 1))


@pytest.mark.parametrize("dims", [2, 3])
def test_classes_are_renamed_merged_and_those_mapped_to_null_become_ignored_regions(dims):
    view = Relabelled(Objects(dims=dims), ["truck", "car"], {"lorry": "truck", "tree": None})
    assert view.metadata.class_names == ("truck", "car")
    instances = view[0].instances()
    assert instances.labels.tolist()[:2] == [1, 0]
    assert instances.ignore.tolist() == [False, False, True]
    assert len(instances.masks) == 3, "an ignored object keeps its region: it is not background"


def test_an_object_that_is_a_crowd_stays_one():
    assert Relabelled(Objects())[0].ignore.tolist() == [False, False, True]


def test_pixels_mapped_to_null_become_the_ignored_label_and_ignored_ones_stay():
    view = Relabelled(Pixels(), mapping={"lorry": "car", "tree": None})
    assert view.metadata.class_names == ("background", "car")
    assert view[0].class_map[0].tolist() == [0, 1, 1, 255, 255]


def test_order_of_the_classes_may_change():
    view = Relabelled(Objects(), ["tree", "lorry", "car"])
    assert view[0].labels.tolist() == [2, 1, 0]


def test_what_does_not_fit_is_named_with_the_nearest():
    with pytest.raises(DataError, match="street has no class 'lory'.*lorry"):
        Relabelled(Objects(), mapping={"lory": "truck"})
    with pytest.raises(DataError, match="'tree' is none of the classes car, lorry.*null"):
        Relabelled(Objects(), ["car", "lorry"])
    with pytest.raises(DataError, match="every class"):
        Relabelled(Objects(), mapping=dict.fromkeys(CLASSES))


def test_class_agnostic_instances_are_all_objects():
    view = class_agnostic(Objects())
    assert view.metadata.class_names == ("object",)
    assert view[0].labels.tolist() == [0, 0, 0]


def test_class_agnostic_pixels_keep_their_background():
    view = class_agnostic(Pixels(["car", "Background"]))
    assert view.metadata.class_names == ("background", "object")
    assert view[0].class_map[0].tolist() == [1, 0, 255]
    with pytest.raises(DataError, match="none: car, tree"):
        class_agnostic(Pixels(["car", "tree"]))


def test_a_datamodule_is_class_agnostic_in_every_split():
    module = DataModule(Objects(), val=Objects(["person", "horse"]), class_agnostic=True, min_object_size=1)
    assert module.metadata.class_names == ("object",)
    assert set(next(iter(module.train_dataloader())).targets[0].labels.tolist()) == {0}
    assert set(next(iter(module.val_dataloader())).truths[0].instances.labels.tolist()) == {0}


def test_classes_of_one_name_are_one_class_whatever_their_index():
    both = Concatenation([Objects(["car", "tree"]), Objects(["tree", "person"], name="park")])
    assert both.metadata.class_names == ("car", "tree", "person")
    assert both[0].labels.tolist() == [0, 1]
    assert both[2].labels.tolist() == [1, 2]
    assert [both[i].index for i in range(4)] == [0, 1, 2, 3]
    assert both.metadata.name == "street+park"


def test_a_mapping_is_of_one_dataset_and_the_target_may_be_given():
    both = Concatenation(
        {"a": Objects(["car", "tree"]), "b": Objects(["tree", "lorry"])},
        class_names=["lorry", "car", "tree"],
        mapping={"b": {"tree": None}},
    )
    assert both[0].labels.tolist() == [1, 2]
    assert both[0].ignore.tolist() == [False, True]
    assert both[2].ignore.tolist() == [True, True]
    assert both[2].labels.tolist()[1] == 0


def test_datasets_of_the_same_classes_are_not_wrapped():
    parts = [Objects(), Objects(name="b")]
    assert Concatenation(parts).datasets == parts


def test_unlabelled_images_have_no_say_in_the_classes():
    bare = Subset(Pixels(["object", "thing"]), [0], unlabelled=True)
    both = Concatenation([bare, Objects()])
    assert both.metadata.class_names == CLASSES
    assert both.metadata.task == "instance"
    assert both.unlabelled_indices() == [0]
    assert not both[0].annotated


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Objects(dims=3), "spatial_dims: street has 2, street has 3"),
        (Objects(channels=3), "in_channels: .*channels=rgb"),
        (Pixels(), "task: street has 'instance', scenes has 'semantic'"),
    ],
)
def test_datasets_that_do_not_go_through_one_model_are_refused(other, message):
    with pytest.raises(DataError, match=message):
        Concatenation([Objects(), other])


def test_pixels_with_another_ignored_label_are_refused_rather_than_learned():
    strange = Pixels()
    strange.metadata = replace(strange.metadata, ignore_index=254)
    with pytest.raises(DataError, match="ignore_index: scenes has 255, scenes has 254"):
        Concatenation([Pixels(), strange])


def test_wrong_names_of_datasets_and_empty_lists_are_refused():
    with pytest.raises(DataError, match="no dataset 'stret'.*street"):
        Concatenation([Objects()], mapping={"stret": {}})
    with pytest.raises(DataError, match="at least one"):
        Concatenation([])


def test_spacing_is_kept_where_all_share_it():
    near, far = Objects(spacing=(1.0, 1.0)), Objects(spacing=(2.0, 2.0))
    assert Concatenation([near, near]).metadata.spacing == (1.0, 1.0)
    assert Concatenation([near, far]).metadata.spacing is None


def test_what_is_known_of_classes_follows_them_into_another_label_space():
    sides = ("body", "left arm", "right arm", "left leg", "right leg")
    pixels = Pixels(sides)
    pixels.metadata = replace(
        pixels.metadata,
        is_thing=(False, True, True, True, True),
        colors=tuple((label, 0, 0) for label in range(5)),
        flip_pairs=((1, 2), (3, 4)),
    )
    limbs = {"left leg": "left arm", "right leg": "right arm", "body": None}
    seen = Relabelled(pixels, mapping=limbs).metadata
    assert (seen.class_names, seen.flip_pairs) == (("left arm", "right arm"), ((0, 1),))
    assert (seen.is_thing, seen.colors) == ((True, True), ((1, 0, 0), (2, 0, 0)))
    merged = Relabelled(pixels, mapping={"body": "body", "*": "limb"}).metadata
    assert (merged.class_names, merged.flip_pairs, merged.is_thing) == (("body", "limb"), (), (False, True))
    other = Pixels(("sky", "body"))
    other.metadata = replace(other.metadata, is_thing=(False, False), colors=((9, 9, 9), (8, 8, 8)))
    both = Concatenation({"one": pixels, "two": other}).metadata
    assert both.class_names == (*sides, "sky")
    assert (both.is_thing, both.colors[-1]) == ((*pixels.metadata.is_thing, False), (9, 9, 9))
    assert both.flip_pairs == pixels.metadata.flip_pairs
