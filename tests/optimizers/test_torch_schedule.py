import pytest
import torch
from torch.optim import lr_scheduler

from pixvox.configuration import compose, instantiate
from pixvox.errors import ConfigError
from pixvox.optimizers.torch_schedule import NAMES, TorchSchedule

NEEDED = {
    "LambdaLR": {"lr_lambda": lambda step: 0.9**step},
    "MultiplicativeLR": {"lr_lambda": lambda step: 0.9},
    "StepLR": {"step_size": 3},
    "MultiStepLR": {"milestones": [3, 6]},
    "ExponentialLR": {"gamma": 0.9},
    "CosineAnnealingWarmRestarts": {"T_0": 4},
    "CyclicLR": {"base_lr": 0.1},
    "OneCycleLR": {"cycle_momentum": False},
    "ReduceLROnPlateau": {"monitor": "val_loss"},
    "SequentialLR": {
        "schedulers": [{"name": "ConstantLR"}, {"name": "StepLR", "step_size": 2}],
        "milestones": [4],
    },
    "ChainedScheduler": {"schedulers": [{"name": "ConstantLR"}, {"name": "ExponentialLR", "gamma": 0.9}]},
}


def sgd(momentum=0.9):
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0, momentum=momentum)


def run(optimizer, scheduler, steps=12, score=None):
    values = []
    for _ in range(steps):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step(*([] if score is None else [score]))
    return values


@pytest.mark.parametrize("name", NAMES)
def test_every_schedule_of_torch_is_built_from_plain_arguments(name):
    optimizer = sgd()
    mapping = TorchSchedule(name, interval="step", **NEEDED.get(name, {}))(optimizer, 12, 4)
    assert isinstance(mapping["scheduler"], getattr(lr_scheduler, name))
    values = run(optimizer, mapping["scheduler"], score=1.0 if "monitor" in mapping else None)
    assert all(0 <= value <= 1.001 for value in values)


def test_schedule_of_torch_equals_torch():
    ours, theirs = sgd(), sgd()
    mapping = TorchSchedule("StepLR", step_size=3, gamma=0.5)(ours, 12, 4)
    assert run(ours, mapping["scheduler"]) == run(theirs, lr_scheduler.StepLR(theirs, 3, 0.5))


@pytest.mark.parametrize(("interval", "length"), [("step", 40), ("epoch", 10)])
@pytest.mark.parametrize(("name", "key"), [("CosineAnnealingLR", "T_max"), ("PolynomialLR", "total_iters")])
def test_schedule_ends_with_the_run(interval, length, name, key):
    built = TorchSchedule(name, interval=interval)(sgd(), total_steps=40, steps_per_epoch=4)["scheduler"]
    assert getattr(built, key) == length
    given = TorchSchedule(name, interval=interval, **{key: 7})(sgd(), 40, 4)["scheduler"]
    assert getattr(given, key) == 7


def test_sequence_joins_its_parts_at_the_milestone():
    optimizer = sgd()
    parts = [
        {"name": "LinearLR", "start_factor": 0.25, "total_iters": 3},
        {"name": "ExponentialLR", "gamma": 0.5},
    ]
    mapping = TorchSchedule("SequentialLR", schedulers=parts, milestones=[3])(optimizer, 12, 4)
    values = run(optimizer, mapping["scheduler"], 6)
    assert values == pytest.approx([0.25, 0.5, 0.75, 1.0, 0.5, 0.25])


def test_plateau_watches_a_validation_score():
    mapping = TorchSchedule("ReduceLROnPlateau", monitor="AP50", mode="max", patience=1)(sgd(), 12, 4)
    assert mapping["monitor"] == "val/AP50"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "StepLr", "step_size": 1}, "did you mean StepLR"),
        ({"name": "StepLR", "stepsize": 1}, "did you mean step_size"),
        ({"name": "StepLR"}, "needs scheduler.step_size"),
        ({"name": "ReduceLROnPlateau"}, "scheduler.monitor"),
        ({"name": "ExponentialLR", "gamma": 0.9, "monitor": "val_loss"}, "scheduler.monitor"),
        ({"name": "ChainedScheduler", "schedulers": "StepLR"}, "a list of mappings"),
        ({"name": "ChainedScheduler", "schedulers": [{"gamma": 1}]}, "mapping with a name"),
        ({"name": "ChainedScheduler", "schedulers": [{"name": "Nothing"}]}, "no scheduler.name=Nothing"),
    ],
)
def test_wrong_settings_are_refused_before_training(arguments, message):
    with pytest.raises(ConfigError, match=message):
        TorchSchedule(**arguments)


def test_arguments_of_a_schedule_stand_beside_its_name_on_the_command_line():
    config = compose("train", ["scheduler=torch", "scheduler.name=StepLR", "scheduler.step_size=10"])
    assert instantiate(config.scheduler).options == {"step_size": 10}


def test_paradigm_is_told_to_be_the_method():
    with pytest.raises(ConfigError, match="method=supervised"):
        compose("train", ["paradigm=supervised"])
