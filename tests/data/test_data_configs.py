import pytest

from pixvox.configuration import CONFIG_FOLDER, compose, instantiate
from pixvox.data.make import make_dataset
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
