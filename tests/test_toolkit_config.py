import tomllib

import pytest

from pixvox.config_files import file_overrides
from pixvox.configuration import compose
from pixvox.errors import ConfigError
from pixvox.toolkit_config import toolkit_overrides

SAMPLE = """
[model]
model = "fcn_resnet34"
params = { aux_loss = true }

[data.dataset]
dataset = "VOC"
pad_crop_size = [500, 400]
params = { root = 'path/to/voc' }

[data.loader]
num_workers = 0
params = { batch_size = 4, drop_last = true, shuffle = true }

[data.augment]
params = { hflip = 0.5, rotation_range = [-10, 10], color_jitter = [0.1, 0.2] }

[criterion]
criterion = "CrossEntropyLoss"
class_weight = "log_frequency"
aux_weight = 0.4
params = { label_smoothing = 0.1 }

[optimizer]
optimizer = "SGD"
effective_batch_size = 32
params = { lr = 0.1, momentum = 0.9, weight_decay = 5e-4 }

[lr_scheduler]
lr_scheduler = "PolynomialLR"
params = { total_iters = 100, power = 0.9 }

[scaler]
params = {}

[trainer]
device = "auto"
params = { num_epochs = 100, checkpoint_steps = 20, best_by = "max:miou", num_snapshots = 4 }

[paths]
runs_folder = '../runs'

[log.wandb]
params = { project = "streets", job_type = "train", dir = '..' }

[log.tensorboard]
enabled = true
params = { parent_dir = '../tensorboard' }
"""


def changed(table, **values):
    """The sample's tables with some values set or, with None, without them."""
    content = tomllib.loads(SAMPLE)
    place = content
    for name in table.split("."):
        place = place.setdefault(name, {})
    place.update(values)
    for key in [key for key, value in values.items() if value is None]:
        del place[key]
    return content


def test_a_file_of_the_toolkit_is_the_same_training_here(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(SAMPLE)
    config = compose("train", file_overrides(path))
    assert config.head._target_.endswith("FCN") and config.backbone.name == "resnet34"
    assert (config.head.aux_level, config.head.aux_weight) == (-2, 0.4)
    loss = config.head.losses.cross_entropy
    assert (loss.label_smoothing, loss.class_weights) == (0.1, "log")
    assert config.data.train.root == "path/to/voc" and config.data.train.label_space == "VOC"
    assert (config.image_size, config.batch_size, config.num_workers) == ([500, 400], 4, 0)
    assert config.accumulate_grad_batches == 8
    assert (config.learning_rate, config.optimizer.momentum, config.optimizer.weight_decay) == (
        0.1,
        0.9,
        5e-4,
    )
    assert (config.scheduler.name, config.scheduler.total_iters, config.scheduler.power) == (
        "PolynomialLR",
        100,
        0.9,
    )
    assert (config.epochs, config.keep_checkpoints_every, config.best_by) == (100, 20, "max:mIoU")
    assert config.runs_dir == "../runs" and list(config.logger) == ["tensorboard"]
    transforms = config.transforms
    assert (transforms.hflip, transforms.vflip, transforms.blur) == (0.5, 0.0, 0.0)
    assert (transforms.rotation_range, transforms.scale_range) == (10, [1.0, 1.0])
    assert transforms.color_jitter == [0.1, 0.2, 0.0, 0.0]


@pytest.mark.parametrize(("criterion", "name"), [("DiceLoss", "generalized_dice"), ("FocalLoss", "focal")])
def test_another_loss_takes_the_place_of_cross_entropy(tmp_path, criterion, name):
    content = changed("criterion", criterion=criterion, params={}, class_weight="none")
    config = compose("train", toolkit_overrides(content, tmp_path / "config.toml"))
    assert list(config.head.losses) == [name]


@pytest.mark.parametrize(
    ("dataset", "space"),
    [
        ("Cityscapes", "cityscapes_background"),
        ("Cityscapes{full}", "cityscapes_full"),
        ("coco{voc}", "coco_voc"),
    ],
)
def test_subsets_of_classes_are_label_spaces(tmp_path, dataset, space):
    config = compose(
        "train", toolkit_overrides(changed("data.dataset", dataset=dataset), tmp_path / "c.toml")
    )
    assert config.data.train.label_space == space


@pytest.mark.parametrize(
    ("table", "values", "told"),
    [
        ("data.dataset", {"dataset": "ADE"}, "data.dataset.dataset='ADE' is none of ADE20K"),
        ("optimizer", {"effective_batch_size": 6}, "no multiple of the batch size 4"),
        ("optimizer", {"optimizer": "Lion"}, "optimizer.optimizer='Lion' is none of SGD, Adam, Padam"),
        ("criterion", {"class_weight": "rare"}, "neither a list nor one of none, class_frequency"),
        ("trainer.params", {"best_by": "max:iou"}, "best_by='max:iou': write max: or min:"),
        ("model.params", {"weights": "DEFAULT"}, "published files of the toolkit"),
        ("data.augment.params", {"rotation_range": [0, 20]}, "the same to both sides"),
        ("data.loader.params", {"shuffle": False}, "always shuffled"),
        ("trainer", {"precision": 16}, "unknown: trainer.precision"),
    ],
)
def test_what_cannot_be_had_is_told(tmp_path, table, values, told):
    with pytest.raises(ConfigError, match=f"config.toml: .*{told}"):
        toolkit_overrides(changed(table, **values), tmp_path / "config.toml")


def test_a_key_of_a_service_is_never_taken_from_a_file(tmp_path):
    lines = toolkit_overrides(changed("log.wandb", api_key="secret"), tmp_path / "config.toml")
    assert not any("secret" in line for line in lines)
    assert "logger=[wandb,tensorboard]" in lines and "logger.wandb.project=streets" in lines


def test_what_has_no_counterpart_is_told(tmp_path, caplog):
    with caplog.at_level("INFO", "pixvox"):
        toolkit_overrides(changed("scaler.params", init_scale=1024.0), tmp_path / "config.toml")
    assert "left out: " in caplog.text
    for key in ("data.loader.params.drop_last", "scaler.params.init_scale", "trainer.params.num_snapshots"):
        assert key in caplog.text
