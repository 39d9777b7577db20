import math

import pytest
import torch

from pixvox.errors import ConfigError
from pixvox.optimizers.schedules import constant, cosine, polynomial, step


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


def test_impossible_settings_are_refused():
    with pytest.raises(ConfigError, match="warmup=-1"):
        rates(constant, warmup=-1)
    with pytest.raises(ConfigError, match="milestones"):
        rates(step, milestones=[30, 40])
