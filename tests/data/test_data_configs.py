import pytest
import torch

from pixvox.configuration import CONFIG_FOLDER, compose, instantiate
from pixvox.data.make import make_dataset
from pixvox.data.sample import Sample
from pixvox.errors import ConfigError

SMALL = {
    "shapes": ["data.train.num_images=3", "data.val.num_images=1", "data.train.image_size=40", "image_size=32"],
    "nuclei3d": [
        "data.train.num_images=3", "data.val.num_images=1", "data.train.image_size=[8,20,24]",
        "image_size=[8,16,16]", "data.size_divisor=[4,8,8]",
    ],
}  # fmt: skip
TRANSFORMS = sorted(path.stem for path in (CONFIG_FOLDER / "transforms").glob("*.yaml"))


@pytest.mark.parametrize("transforms", TRANSFORMS)
@pytest.mark.parametrize("data", SMALL)
def test_every_data_config_makes_batches_with_every_pipeline(data, transforms):
    config = compose("train", [f"data={data}", f"transforms={transforms}", "batch_size=2", *SMALL[data]])
    datamodule = instantiate(config.data, "data")
    batch = next(iter(datamodule.train_dataloader()))
    wanted = datamodule.image_size if data == "nuclei3d" else [32, 32]
    got = batch.images.shape[2:]
    assert all(length >= least for length, least in zip(got, wanted, strict=True))
    assert transforms == "none" or list(got) == list(wanted)
    assert len(next(iter(datamodule.val_dataloader())).truths) == 1


def test_a_folder_is_opened_with_its_options(tmp_path):
    make_dataset("shapes", tmp_path / "d", 4, 0, image_size=40, radius=(5, 9))
    overrides = [
        "data=folder",
        f"data.path={tmp_path / 'd'}",
        "image_size=32",
        "data.options.val_fraction=0.5",
    ]
    datamodule = instantiate(compose("train", overrides).data, "data")
    assert (len(datamodule.train), len(datamodule.val)) == (2, 2)


def test_a_step_of_augmentation_can_be_left_out():
    config = compose("train", ["data=shapes", "transforms.train.steps.affine=null"])
    steps = instantiate(config.data, "data").train_transforms.steps
    assert "RandomAffine" not in [type(step).__name__ for step in steps]


def test_evaluation_draws_nothing():
    for name in TRANSFORMS:
        evaluation = compose("train", [f"transforms={name}"]).transforms.evaluation
        assert evaluation is None or evaluation["_target_"].endswith("Resize")
        assert evaluation is None or "jitter" not in evaluation


def test_an_unknown_option_of_a_folder_is_refused():
    with pytest.raises(ConfigError):
        compose("train", ["data=folder", "data.options.valfraction=0.5"])


@pytest.mark.parametrize("name", ["crops", "fit", "semantic"])
def test_the_strong_view_changes_intensities_and_moves_nothing(name):
    view = instantiate(compose("train", [f"transforms={name}"]).transforms.strong, "strong")
    layers = torch.randint(0, 4, (1, 9, 11), dtype=torch.int32)
    image = torch.rand(3, 9, 11)
    sample = Sample(image, layers, torch.zeros(3).long(), torch.zeros(3).bool())
    views = [view(sample, torch.Generator().manual_seed(seed)) for seed in range(8)]
    assert all(torch.equal(strong.layers, layers) for strong in views)
    assert sum(not torch.equal(strong.image, image) for strong in views) >= 5


def test_short_names_of_the_semantic_pipeline_reach_their_steps():
    given = {"hflip": 0.25, "vflip": 0.75, "rotation_range": 33.0, "scale_range": [0.25, 4.0], "mask_fill": 7}
    given |= {"perspective": 0.3, "blur_size": 9, "blur_sigma": [1.0, 3.0], "auto_contrast": 0.4}
    config = compose(
        "train", ["transforms=semantic", *(f"transforms.{key}={value}" for key, value in given.items())]
    )
    every = instantiate(config.transforms.train, "train").steps
    steps = {type(step).__name__: step for step in every}
    pad, affine, blur = steps["Pad"], steps["RandomAffine"], steps["RandomBlur"]
    assert (affine.rotation, affine.scale, affine.perspective) == (33.0, (0.25, 4.0), 0.3)
    assert (pad.mask_fill, affine.mask_fill) == (7, 7)
    assert (blur.size, blur.sigma) == (9, (1.0, 3.0))
    assert steps["RandomAutoContrast"].probability == 0.4
    flips = [
        step
        for step in instantiate(config.transforms.train, "train").steps
        if type(step).__name__ == "RandomFlip"
    ]
    assert [(flip.axes, flip.probability) for flip in flips] == [((-1,), 0.25), ((-2,), 0.75)]


@pytest.mark.parametrize("step", ["copy_paste", "mosaic"])
def test_a_mixing_step_is_off_until_its_probability_is_raised(step):
    def first(probability):
        switch = f"transforms.train.steps.{step}.probability={probability}"
        datamodule = instantiate(compose("train", ["data=shapes", switch, *SMALL["shapes"]]).data, "data")
        return next(iter(datamodule.train_dataloader()))

    plain = instantiate(compose("train", ["data=shapes", *SMALL["shapes"]]).data, "data")
    images = next(iter(plain.train_dataloader())).images
    assert torch.equal(first(0.0).images, images)
    assert not torch.equal(first(1.0).images, images)
