import functools
import math

import pytest
import torch

from pixvox.errors import ConfigError
from pixvox.optimizers.schedules import Length, constant, cosine, lr_scheduler, one_cycle, polynomial, step


def rates(make, total=20, **options):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = make(optimizer, total_steps=total, **options)
    values = []
    for _ in range(total + 1):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return values


def test_warmup_is_linear_and_counts_steps_or_shares():
    by_steps, by_share = rates(constant, warmup=4), rates(constant, warmup=0.2)
    assert by_steps == by_share
    assert by_steps[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_cosine_follows_its_formula_to_the_end():
    values = rates(cosine, warmup=0, final_factor=0.1)
    expected = [0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * i / 20)) for i in range(21)]
    assert values == pytest.approx(expected)


def test_polynomial_follows_its_formula():
    assert rates(polynomial, warmup=0, power=0.9)[5] == pytest.approx(0.75**0.9)


def test_step_falls_at_each_milestone():
    values = rates(step, warmup=0, milestones=[0.5, 0.75], factor=0.1)
    assert values[9:11] == pytest.approx([1.0, 0.1])
    assert values[15] == pytest.approx(0.01)


def test_rate_stays_at_its_end_after_the_last_step():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    factor = cosine(optimizer, total_steps=10, warmup=2).lr_lambdas[0]
    assert factor(10) == factor(15) == pytest.approx(0.0)


def test_warmup_cosine_and_cooldown_count_epochs():
    options = {"unit": "epochs", "steps_per_epoch": 2, "warmup": 25, "cooldown": 50, "final_factor": 0.01}
    values = rates(cosine, total=1000, **options)  # 500 epochs of two steps
    assert values[0] == pytest.approx(1 / 51)
    assert values[49] == pytest.approx(50 / 51)
    assert values[50] == 1.0
    assert values[475] == pytest.approx(0.01 + 0.99 * 0.5)  # half-way between steps 50 and 900
    assert values[899] > 0.01
    assert values[900:] == pytest.approx([0.01] * 101)


def test_lengths_are_the_same_as_shares_steps_and_epochs():
    shares = rates(polynomial, warmup=0.2, cooldown=0.1)
    steps = rates(polynomial, warmup=4, cooldown=2)
    epochs = rates(polynomial, warmup=2, cooldown=1, unit="epochs", steps_per_epoch=2)
    assert shares == steps == epochs


def test_milestones_count_epochs_or_steps_from_the_start():
    by_epochs = rates(step, total=36, warmup=0, milestones=[27, 33], unit="epochs", steps_per_epoch=1)
    assert [by_epochs[i] for i in (26, 27, 32, 33)] == pytest.approx([1.0, 0.1, 0.1, 0.01])
    assert rates(step, warmup=4, milestones=[0.5])[9:11] == rates(step, warmup=4, milestones=[10])[9:11]


def test_milestones_behind_the_end_are_told(caplog):
    values = rates(step, warmup=0, milestones=[30, 40])
    assert values == [1.0] * 21
    assert "[30, 40] are not reached" in caplog.text


def test_one_cycle_rises_to_each_groups_rate_and_falls():
    weights = [torch.zeros(1, requires_grad=True) for _ in range(2)]
    groups = [{"params": weights[:1], "lr": 1.0}, {"params": weights[1:], "lr": 0.1}]
    optimizer = torch.optim.SGD(groups, lr=1.0, momentum=0.9)
    scheduler = one_cycle(optimizer, total_steps=21, warmup=5, initial_factor=0.1, final_factor=0.001)
    seen, momentum = [], []
    for _ in range(21):
        seen.append([group["lr"] for group in optimizer.param_groups])
        momentum.append(optimizer.param_groups[0]["momentum"])
        optimizer.step()
        scheduler.step()
    assert seen[0] == pytest.approx([0.1, 0.01])
    assert seen[4] == pytest.approx([1.0, 0.1])  # the fifth of five steps
    assert seen[20] == pytest.approx([0.001, 0.0001])
    assert (momentum[0], momentum[4]) == pytest.approx((0.95, 0.85))


def test_impossible_settings_are_refused():
    with pytest.raises(ConfigError, match="warmup=-1"):
        rates(constant, warmup=-1)
    with pytest.raises(ConfigError, match="cooldown=-2"):
        rates(cosine, cooldown=-2)
    with pytest.raises(ConfigError, match="milestones"):
        rates(step, milestones=[0, 0.5])
    with pytest.raises(ConfigError, match="unit=epochs"):
        rates(cosine, unit="epochs")
    with pytest.raises(ConfigError, match="unit=hours"):
        Length(100, "hours")
    with pytest.raises(ConfigError, match="final_factor=0"):
        rates(one_cycle, final_factor=0)


def test_factory_is_given_what_it_takes():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    asked = []

    def mine(optimizer, steps_per_epoch):
        asked.append(steps_per_epoch)
        return {"scheduler": None, "interval": "epoch"}

    assert lr_scheduler(mine, optimizer, 100, 10)["interval"] == "epoch"
    assert asked == [10]
    step_lr = functools.partial(torch.optim.lr_scheduler.StepLR, step_size=5)
    assert lr_scheduler(step_lr, optimizer, 100, 10)["interval"] == "step"
    fixed = functools.partial(
        torch.optim.lr_scheduler.OneCycleLR, max_lr=1.0, total_steps=50, cycle_momentum=False
    )
    assert lr_scheduler(fixed, optimizer, 100, 10)["scheduler"].total_steps == 50


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_one_cycle_of_a_few_steps_is_a_schedule_too(steps):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = one_cycle(optimizer, steps)
    for _ in range(steps - 1):
        schedule.step()
    assert 0 < optimizer.param_groups[0]["lr"] <= 1.0


def test_one_cycle_of_a_prolonged_run_ends_with_it():
    def begin(steps):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0, momentum=0.9)
        return optimizer, one_cycle(optimizer, steps)

    _, short = begin(6)
    for _ in range(6 - 1):
        short.step()
    optimizer, long = begin(12)
    _, whole = begin(12)
    long.load_state_dict(short.state_dict())
    for _ in range(12 - 1):
        whole.step()
    for _ in range(6):
        long.step()
    assert long.get_last_lr() == whole.get_last_lr()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(4e-6)
