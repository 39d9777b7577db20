import os

import pytest
from hydra import compose as outer_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from pixvox.configuration import compose, instantiate, resolved
from pixvox.configuration_check import SHORT_KEYS, check, check_targets
from pixvox.errors import ConfigError, DataError
from pixvox.overrides import data_overrides, override, overrides_from


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["learning_rate=abc"], ["learning_rate=abc", "a number", "learning_rate=1e-4"]),
        (["image_size=512,512"], ["image_size=[512,512]"]),
        (["image_size=512x512"], ["image_size=[512,512]"]),
        (["epochs=1e3"], ["epochs=1000.0", "a whole number"]),
        (["batch_size=null"], ["batch_size=null", "a whole number"]),
        (["precision=bf16"], ["32-true, bf16-mixed, 16-mixed"]),
        (["deterministic=perhaps"], ["true or false"]),
        (["early_stopping.patience=long"], ["early_stopping.patience=long"]),
        (["trainer.gradient_clip_val=abc"], ["trainer.gradient_clip_val=abc", "a number"]),
        (["head=fcn", "head.dropout=much"], ["head.dropout=much", "a number"]),
        (["learning_rte=1"], ["'learning_rte'", "did you mean learning_rate"]),
        (["early_stopping.patiance=3"], ["did you mean early_stopping.patience"]),
        (["optimizer.lrr=3"], ["did you mean optimizer.lr"]),
        (["head=fcn", "head.dropot=0.3"], ["did you mean head.dropout"]),
        (["head=maskrcn"], ["head=maskrcn", "did you mean maskrcnn", "fcn"]),
        (["optimizer=adamm"], ["did you mean adam"]),
        (["batch_size=0"], ["batch_size=0", "from 1 up"]),
        (["learning_rate=-1"], ["learning_rate=-1", "from 0 up"]),
        (["learning_rate=nan"], ["learning_rate=nan"]),
        (["image_size=[64,0]"], ["image_size=[64, 0]", "from 1 up"]),
        (["epochs=0"], ["epochs=0 would learn nothing"]),
        (["epochs=-3"], ["epochs=-3", "from -1 up"]),
        (["seed=-1"], ["seed=-1", "from 0 up"]),
        (["accumulate_grad_batches=0"], ["accumulate_grad_batches=0"]),
        (["val_every_n_epoch=0"], ["val_every_n_epoch=0"]),
        (["fcn"], ["'fcn'", "key=value"]),
        (["data.train._target_=os.sytem"], ["os has no 'sytem'"]),
        (["data.train._target_=no_such_package.Data"], ["no module 'no_such_package'"]),
    ],
)
def test_mistake_is_named_with_its_repair(overrides, said):
    base = ["head=fcn"] if not any(text.startswith("head=") for text in overrides) else []
    with pytest.raises(ConfigError) as caught:
        compose("train", [*base, *overrides])
    message = str(caught.value)
    assert "\n" not in message
    for words in said:
        assert words in message


SHORT = {
    "learning_rate=0.5": ("optimizer.lr", 0.5),
    "epochs=7": ("trainer.max_epochs", 7),
    "max_steps=7": ("trainer.max_steps", 7),
    "precision=bf16-mixed": ("trainer.precision", "bf16-mixed"),
    "accumulate_grad_batches=3": ("trainer.accumulate_grad_batches", 3),
    "val_every_n_epoch=5": ("trainer.check_val_every_n_epoch", 5),
    "deterministic=true": ("trainer.deterministic", True),
    "batch_size=3": ("data.batch_size", 3),
    "num_workers=5": ("data.num_workers", 5),
    "seed=9": ("data.seed", 9),
    "image_size=[48,64]": ("data.image_size", [48, 64]),
    "num_labeled_images=10": ("data.num_labeled_images", 10),
    "num_unlabeled_images=11": ("data.num_unlabeled_images", 11),
    "pretrained=true": ("backbone.pretrained", True),
}
"""Overrides by short keys, the places they reach, and the values there."""


def test_short_keys_reach_their_places():
    config = compose("train", ["head=fcn", *SHORT])
    assert {place: OmegaConf.select(config, place) for place, _ in SHORT.values()} == dict(SHORT.values())


def test_a_configuration_is_ones_own_to_change():
    compose("train", ["head=fcn"]).optimizer.lr = 7.0
    assert compose("train", ["head=fcn"]).optimizer.lr == 1e-4


def test_every_short_key_exists_in_the_training_configuration():
    config = compose("train", ["head=fcn"])
    for key in SHORT_KEYS:
        parent, _, leaf = key.rpartition(".")
        assert leaf in (OmegaConf.select(config, parent) if parent else config), key


def test_steps_without_epochs_mean_exactly_these_steps():
    assert compose("train", ["head=fcn", "max_steps=5"]).trainer.max_epochs == -1
    assert compose("train", ["head=fcn", "max_steps=5", "epochs=2"]).trainer.max_epochs == 2


def test_user_wins_over_data_and_data_over_backbone():
    assert compose("train", ["head=fcn", "backbone=resnet18", "data=shapes"]).image_size == 128
    assert compose("train", ["head=fcn", "data=shapes", "image_size=96"]).image_size == 96


def test_parameter_missing_in_the_yaml_is_accepted():
    assert compose("train", ["head=fcn", "optimizer.amsgrad=true"]).optimizer.amsgrad is True


def test_choices_are_recorded():
    choices = compose("train", ["head=fcn", "backbone=simple"]).choices
    assert (choices.backbone, choices.head, choices.neck) == ("simple", "fcn", "none")


def test_own_configurations_come_first_and_ours_stay(tmp_path):
    folder = tmp_path / "a b=c,d"
    (folder / "scheduler").mkdir(parents=True)
    (folder / "scheduler" / "late.yaml").write_text(
        "_target_: pixvox.optimizers.schedules.constant\n_partial_: true\nwarmup: 3\n"
    )
    (folder / "scheduler" / "cosine.yaml").write_text(
        "_target_: pixvox.optimizers.schedules.cosine\n_partial_: true\nwarmup: 99\n"
    )
    assert compose("train", ["head=fcn", "scheduler=late"], folder).scheduler.warmup == 3
    assert compose("train", ["head=fcn"], folder).scheduler.warmup == 99
    with pytest.raises(ConfigError, match="did you mean late"):
        compose("train", ["head=fcn", "scheduler=latte"], folder)


def test_missing_config_dir_is_named(tmp_path):
    with pytest.raises(ConfigError, match="nowhere"):
        compose("train", [], tmp_path / "nowhere")


def test_composing_leaves_an_outer_hydra_and_the_folder_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("answer: 42\n")
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        compose("train", ["head=fcn"])
        assert outer_compose("mine").answer == 42
    assert not GlobalHydra.instance().is_initialized()
    assert os.listdir(tmp_path) == ["mine.yaml"]


@pytest.mark.parametrize(
    "value",
    [
        1,
        1.5,
        True,
        None,
        "plain",
        "a=b, c {d}",
        "it's",
        "back\\slash",
        "/a b/c=d,e",
        [1, 2],
        ["x=1", "y"],
        "null",
        "",
    ],
)
def test_any_value_survives_the_grammar(value):
    config = compose("train", ["head=fcn", override("+note", value)])
    note = OmegaConf.to_container(config)["note"]
    assert note == value
    assert type(note) is type(value)


def test_keyword_arguments_become_overrides():
    lines = overrides_from({"head": "fcn", "image_size": [64, 96], "optimizer": {"lr": 0.1}})
    assert lines == ["head=fcn", "image_size=[64,96]", "optimizer.lr=0.1"]


def test_data_is_a_path_when_it_exists_and_a_name_otherwise(tmp_path):
    folder = tmp_path / "a b=c,d"
    folder.mkdir()
    config = compose("train", ["head=fcn", *data_overrides(folder)])
    assert config.data.path == str(folder)
    assert data_overrides("shapes") == ["data=shapes"]
    with pytest.raises(ConfigError, match="no dataset at"):
        data_overrides("somewhere/else")


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "pixvox.training.train.json.loads",
        "pixvox.files.os.system",
        "torch.load",
    ],
)
def test_targets_of_strangers_are_refused(target):
    with pytest.raises(ConfigError, match=r"run\.yaml.*is not run"):
        check_targets({"data": [{"a": {"_target_": target}}]}, "run.yaml")


def test_targets_of_the_package_are_allowed():
    check_targets({"_target_": "pixvox.data.datamodule.DataModule"}, "run.yaml")


def test_refused_target_is_not_imported(tmp_path, monkeypatch):
    canary = tmp_path / "canary"
    (tmp_path / "evil_module.py").write_text(f"open({str(canary)!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError):
        check_targets({"_target_": "evil_module.run"}, "run.yaml")
    assert not canary.exists()


def test_unknown_argument_of_a_yaml_is_refused():
    config = OmegaConf.create({"optimizer": {"_target_": "torch.optim.SGD", "momentun": 0.9}})
    with pytest.raises(ConfigError, match=r"optimizer\.momentun.*did you mean momentum"):
        check(config)


def test_instantiate_gives_the_error_of_the_object_itself():
    with pytest.raises(DataError, match="needs a train dataset"):
        instantiate({"_target_": "pixvox.data.datamodule.DataModule"}, "data")
    node = {"_target_": "torch.nn.Conv2d", "in_channels": 1, "out_channels": 1, "kernel_size": 3, "groups": 0}
    with pytest.raises(ConfigError, match=r"^backbone: groups must be a positive integer"):
        instantiate(node, "backbone")


def test_two_choices_of_data_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="leave one out"):
        data_overrides(tmp_path, ["epochs=1", "data=shapes"])


@pytest.mark.parametrize(
    "content",
    [
        b"head: {",
        b"\xff\xfe\x00",
        b"a: \x00",
        b"# @package a b\nhead: 1",
        b"defaults:\n  - override /head: [1]\n",
    ],
)
def test_damaged_files_of_the_user_are_users_errors(tmp_path, content):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "own.yaml").write_bytes(content)
    with pytest.raises(ConfigError):
        compose("train", ["experiment=own"], tmp_path)


@pytest.mark.parametrize(
    "line", ["head.anchor_sizes.x=1", "image_size.a=3", "seed=${seed}", "seed=${nothing}", "head@a:b=fcn"]
)
def test_overrides_that_lead_nowhere_are_users_errors(line):
    with pytest.raises(ConfigError):
        resolved(compose("train", [line]))


def test_options_of_an_experiments_part_go_with_it_when_another_is_chosen():
    own = compose("train", ["experiment=shapes"])
    assert own.backbone.channels == [32, 64, 128, 128]
    other = compose("train", ["experiment=shapes", "backbone=resnet18"])
    assert "channels" not in other.backbone and "blocks" not in other.backbone
    assert "scale_factors" not in compose("train", ["experiment=shapes_lw_detr", "head=fcn"]).neck
    assert "extra_levels" not in compose("train", ["head=deformable_detr", "neck=fpn"]).neck
    with pytest.raises(ConfigError, match="channels"):  # what the user gives is never left out
        compose("train", ["experiment=shapes", "backbone=resnet18", "backbone.channels=[8,16]"])
    with pytest.raises(ConfigError, match="channels"):
        compose("train", ["experiment=shapes", "backbone=resnet18", "+backbone.channels=[8,16]"])


@pytest.mark.parametrize("given", ["head.weights.pixel_class=40", "head={weights: {pixel_class: 40}}"])
def test_options_given_by_the_user_stay_whatever_their_form(given):
    with pytest.raises(ConfigError, match="weights"):
        compose("train", ["experiment=shapes_lw_detr", "head=maskrcnn", given])


@pytest.mark.parametrize("wrong", ["head:\n  box_size: 7\n", "neck:\n  extra_level: false\n"])
def test_experiment_that_sets_an_option_of_the_part_it_replaces_is_wrong(tmp_path, wrong):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /head: lw_detr\n" + wrong
    )
    with pytest.raises(ConfigError, match="takes no"):
        compose("train", ["experiment=mine"], tmp_path)


def test_mistake_in_a_file_of_ones_own_is_told_also_beside_an_experiment(tmp_path):
    (tmp_path / "head").mkdir()
    (tmp_path / "head" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - maskrcnn\nhead:\n  box_sampels: 3\n"
    )
    with pytest.raises(ConfigError, match="box_sampels.*box_samples"):
        compose("train", ["experiment=shapes_lw_detr", "head=mine"], tmp_path)
