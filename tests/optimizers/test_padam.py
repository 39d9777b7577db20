import copy
import math

import pytest
import torch

from pixvox.configuration import compose, instantiate
from pixvox.optimizers.padam import Padam


def problem(seed=0):
    """Parameters of unequal shapes and their gradients over some steps."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(3, 2), (4,), ()]
    parameters = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    gradients = [[torch.randn(shape, generator=generator) for shape in shapes] for _ in range(20)]
    return parameters, gradients


def walk(make, steps=20):
    parameters, gradients = problem()
    optimizer = make(parameters)
    for step in gradients[:steps]:
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
    return parameters


def test_two_steps_worked_by_hand():
    weight = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    optimizer = Padam([weight], lr=0.1, betas=(0.5, 0.75), eps=0.0, weight_decay=0.5, partial=0.25)
    weight.grad = torch.tensor([1.5], dtype=torch.float64)
    optimizer.step()  # g = 1.5 + 0.5 * 1 = 2, m = 1, v = 1
    first = 1 - 0.1 * math.sqrt(0.25) / 0.5 * 1 / 1
    assert weight.item() == pytest.approx(first, rel=1e-12)
    weight.grad = torch.tensor([-0.5 * first], dtype=torch.float64)
    optimizer.step()  # g = 0, m = 0.5, v = 0.75, largest v = 1
    second = first - 0.1 * math.sqrt(1 - 0.75**2) / (1 - 0.5**2) * 0.5 / 1
    assert weight.item() == pytest.approx(second, rel=1e-12)


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("amsgrad", [True, False])
@pytest.mark.parametrize("foreach", [True, False])
def test_power_of_a_half_is_adam_of_torch(decay, amsgrad, foreach):
    ours = walk(lambda p: Padam(p, lr=0.01, partial=0.5, weight_decay=decay, amsgrad=amsgrad))
    theirs = walk(lambda p: torch.optim.Adam(p, 0.01, weight_decay=decay, amsgrad=amsgrad, foreach=foreach))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_power_of_zero_is_sgd_with_momentum_but_for_the_corrected_start():
    parameters, gradients = problem()
    moments = [torch.zeros_like(parameter) for parameter in parameters]
    expected = [parameter.detach().clone() for parameter in parameters]
    for t, step in enumerate(gradients, start=1):
        size = 0.01 * math.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        moments = [0.9 * moment + 0.1 * gradient for moment, gradient in zip(moments, step, strict=True)]
        expected = [value - size * moment for value, moment in zip(expected, moments, strict=True)]
    ours = [parameter.detach() for parameter in walk(lambda p: Padam(p, lr=0.01, partial=0.0))]
    torch.testing.assert_close(ours, expected)


def test_smaller_powers_depend_less_on_the_size_of_gradients():
    sizes = {}
    for partial in (0.5, 0.125, 0.0):
        weights = torch.zeros(2, requires_grad=True)
        optimizer = Padam([weights], lr=1.0, partial=partial, eps=0.0)
        weights.grad = torch.tensor([1e-4, 1.0])
        optimizer.step()
        sizes[partial] = (weights[0] / weights[1]).item()
    assert sizes == pytest.approx({0.5: 1.0, 0.125: 1e-4**0.75, 0.0: 1e-4})


def test_state_resumes_bit_by_bit():
    whole = walk(lambda p: Padam(p, lr=0.01))
    parameters, gradients = problem()
    optimizer = Padam(parameters, lr=0.01)
    for i, step in enumerate(gradients):
        if i == 7:
            saved = copy.deepcopy(optimizer.state_dict())
            optimizer = Padam(parameters, lr=0.5)
            optimizer.load_state_dict(saved)
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(whole, parameters, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"lr": -1}, "0 or more"), ({"betas": (0.9, 1.0)}, "betas"), ({"partial": 1.0}, "partial=1.0")],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Padam([torch.zeros(1, requires_grad=True)], **options)


def test_sparse_gradients_are_refused():
    table = torch.nn.Embedding(3, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="sparse"):
        Padam(table.parameters()).step()


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd", "padam", "lamb"])
def test_every_optimizer_is_chosen_by_name_and_learns(name):
    weight = torch.full((2, 2), 3.0, requires_grad=True)
    config = compose("train", [f"optimizer={name}", "learning_rate=0.01"])
    optimizer = instantiate(config.optimizer)([{"params": [weight], "lr": 0.01}])
    for _ in range(5):
        optimizer.zero_grad()
        weight.square().sum().backward()
        optimizer.step()
    assert weight.abs().max() < 3.0
    assert optimizer.param_groups[0]["lr"] == 0.01


def test_any_other_optimizer_is_chosen_by_its_target():
    config = compose("train", ["optimizer._target_=torch.optim.RMSprop", "~optimizer.betas"])
    assert isinstance(
        instantiate(config.optimizer)([torch.zeros(1, requires_grad=True)]), torch.optim.RMSprop
    )
