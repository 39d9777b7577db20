import numpy as np
import pytest
import torch

from catalogues import crops_of, write_volumes
from pixvox.configuration import compose, instantiate
from pixvox.data.datasets.catalogue_crops import CatalogueCrops
from pixvox.data.datasets.catalogue_planes import CataloguePlanes
from pixvox.data.volumes.index import build_catalogue
from pixvox.errors import ConfigError, DataError

CROP = (4, 16, 12)
SPACING = (2.0, 0.5, 0.25)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Write four volumes, the last without labels, and their catalogue."""
    folder = tmp_path_factory.mktemp("volumes")
    labels = write_volumes(folder, count=4, objects=8)
    (folder / "labels" / "v3.npy").unlink()
    build_catalogue(folder, folder / "c.sqlite", CROP, min_volume=6, spacing=SPACING)
    return folder / "c.sqlite", labels


def planes_by_hand(path, labels, every):
    """Yield volume, region and objects of every plane, across z, y and x of each crop in turn."""
    for number, own in enumerate(labels):
        for start, objects in crops_of(own, CROP, min_volume=6):
            for axis in range(3):
                for position in range(0, CROP[axis], every):
                    region = [slice(a, a + b) for a, b in zip(start, CROP, strict=True)]
                    region[axis] = slice(start[axis] + position, start[axis] + position + 1)
                    boxes = objects.values()
                    yield (
                        number,
                        axis,
                        tuple(region),
                        any(b[2 - axis] <= position < b[5 - axis] for b in boxes),
                    )


def test_planes_across_all_axes_are_those_of_the_volume_with_its_ids(made):
    path, labels = made
    dataset, slivers = CataloguePlanes(CatalogueCrops(path, foreground=None), every=3, empty=True), 0
    by_hand = list(planes_by_hand(path, labels, every=3))
    images = [np.load(path.parent / "images" / f"v{number}.npy") for number in range(4)]
    assert len(dataset) == len(by_hand)
    for index in range(0, len(by_hand), 5):
        number, axis, region, crossed = by_hand[index]
        sample = dataset[index]
        image = images[number][region].squeeze(axis)
        assert np.array_equal(sample.image[0].numpy(), image.astype(np.float32)) and sample.image.ndim == 3
        assert sample.spacing == (*SPACING[:axis], *SPACING[axis + 1 :])
        assert sample.source == dataset.source(index) and f"v{number}.npy[" in sample.source
        assert sample.annotated == (number < 3)
        if number == 3:
            continue
        plane = labels[number][region].squeeze(axis)
        ids = np.unique(plane)[np.unique(plane) > 0]
        assert np.array_equal(np.append(0, ids)[sample.layers[0].numpy()], plane)
        assert len(sample.instances(1).labels) == len(ids) == len(sample.ignore)
        assert dataset.classes_in(index) == ({0} if crossed else set())
        slivers += int(sample.ignore.sum())
    assert slivers
    assert dataset.unlabelled_indices() == [i for i, plane in enumerate(by_hand) if plane[0] == 3]


def test_planes_without_an_object_are_left_out_and_axes_are_chosen(made):
    path, labels = made
    crops = CatalogueCrops(path)
    by_hand = [
        (number, axis, region)
        for number, axis, region, crossed in planes_by_hand(path, labels, every=2)
        if crossed or number == 3
    ]
    dataset = CataloguePlanes(crops, every=2)
    regions = [
        f"v{number}.npy[{', '.join(f'{p.start}:{p.stop}' for p in region)}]" for number, _, region in by_hand
    ]
    assert [dataset.source(i).rpartition("/")[2] for i in range(len(dataset))] == regions
    assert dataset.metadata.spatial_dims == 2 and dataset.metadata.spacing is None
    across_x = CataloguePlanes(crops, ["x"], every=2)
    assert len(across_x) == sum(axis == 2 for _, axis, _ in by_hand)
    assert across_x.metadata.spacing == (2.0, 0.5) and across_x[0].size == (4, 16)


def test_options_that_give_no_planes_are_refused(made, tmp_path):
    path, _ = made
    crops = CatalogueCrops(path)
    for planes in ([], ["z", "z"], ["depth"]):
        with pytest.raises(ConfigError, match=r"name axes across which planes are cut, as in \[z,y,x\]"):
            CataloguePlanes(crops, planes)
    with pytest.raises(ConfigError, match="1 voxel or more"):
        CataloguePlanes(crops, every=0)
    (tmp_path / "images").mkdir()
    np.save(tmp_path / "images" / "s.npy", np.ones((16, 16), dtype=np.uint8))
    build_catalogue(tmp_path, tmp_path / "s.sqlite", (8, 8))
    with pytest.raises(DataError, match="s is a catalogue of slides; train on its crops: data=catalogue"):
        CataloguePlanes(CatalogueCrops(tmp_path / "s.sqlite"))


def test_a_model_of_images_gets_batches_of_planes_with_square_pixels(made):
    path, _ = made
    keys = [
        "data=catalogue_planes", f"data.train.catalogue='{path}'", "batch_size=3", "data.train.val_fraction=0.4",
        "image_size=[12,12]", "data.size_divisor=4", "transforms.spacing=[0.5,0.5]", "num_workers=0",
    ]  # fmt: skip
    datamodule = instantiate(compose("train", keys).data, "data")
    assert datamodule.metadata.spatial_dims == 2
    batch = next(iter(datamodule.train_dataloader()))
    assert batch.images.shape == (3, 1, 12, 12) and all(len(target.labels) for target in batch.targets)
    assert all(geometry.spacing == pytest.approx((0.5, 0.5), rel=0.3) for geometry in batch.geometries)
    truth = next(iter(datamodule.val_dataloader()))
    assert torch.isfinite(truth.images).all() and len(truth.truths) == 1
