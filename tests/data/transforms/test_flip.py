"""A mirror exchanges what is left and right, for every kind of annotation; two mirrors do not."""

import torch

from pixvox.data.dataset import Dataset
from pixvox.data.metadata import Metadata
from pixvox.data.sample import Sample
from pixvox.data.transforms import RandomFlip
from pixvox.data.views import TrainingView

ARMS = ("body", "left arm", "right arm")


class Bodies(Dataset):
    def __init__(self, class_map):
        self.metadata = Metadata("semantic", class_map.ndim, ARMS, 1, flip_pairs=((1, 2),))
        self.class_map = class_map

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return Sample(self.class_map[None].float(), class_map=self.class_map)


def test_classes_change_places_with_an_odd_number_of_mirrored_axes():
    class_map = torch.tensor([[[0, 1, 2], [0, 0, 255]]])
    for axes in ((-1,), (-2,), (-1, -2), (-1, -2, -3)):
        view = TrainingView(Bodies(class_map), RandomFlip(axes, probability=1.0), seed=0)
        got = view[0, 0].class_map
        swapped = torch.tensor([[[0, 2, 1], [0, 0, 255]]]) if len(axes) % 2 else class_map
        assert torch.equal(got, swapped.flip(axes))


def test_objects_and_hidden_annotations_follow():
    sample = Sample(
        torch.zeros(1, 2, 3),
        layers=torch.tensor([[[1, 1, 0], [0, 0, 2]]]),
        labels=torch.tensor([1, 0]),
        ignore=torch.tensor([False, False]),
        flip_pairs=((1, 2),),
    )
    flip = RandomFlip((-1,), probability=1.0)
    assert flip(sample, torch.Generator()).labels.tolist() == [2, 0]
    unlabelled = flip(sample.unlabelled(), torch.Generator())
    assert unlabelled.labels is None and unlabelled.hidden.labels.tolist() == [2, 0]
    assert sample.labels.tolist() == [1, 0]


def test_without_pairs_labels_stay():
    sample = Sample(torch.zeros(1, 1, 3), class_map=torch.tensor([[0, 1, 2]]))
    assert RandomFlip(probability=1.0, axes=[-1])(sample, torch.Generator()).class_map.tolist() == [[2, 1, 0]]
