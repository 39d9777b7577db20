import pytest
import torch

from pixvox.distributed.world import (
    apart,
    gather_objects,
    process_rank,
    world_max,
    world_mean,
    world_size,
    world_sum,
)
from together import together


def _collectives():
    rank = process_rank()
    part = torch.tensor([1.0, 2.0], requires_grad=True)
    total = world_sum(part * (rank + 1))
    total.square().sum().backward()
    with apart():
        alone = (world_size(), process_rank(), world_mean(5.0 * rank).item(), gather_objects(rank))
    return {
        "mean": world_mean(torch.tensor([rank, 4 * rank])).tolist(),
        "nothing": world_mean(0).item(),
        "max": world_max(rank * 7),
        "gathered": gather_objects({"rank": rank}),
        "sum": total.tolist(),
        "gradient": part.grad.tolist(),
        "alone": alone,
    }


@pytest.fixture(scope="module")
def collectives():
    return together(_collectives)


def test_every_process_gets_the_same_numbers(collectives):
    for result in collectives:
        assert result["mean"] == [0.5, 2.0]
        assert result["max"] == 7
        assert result["gathered"] == [{"rank": 0}, {"rank": 1}]
        assert result["sum"] == [3.0, 6.0]


def test_the_least_count_is_one_for_all_processes_together(collectives):
    # One positive in the world of two: each divides by 1/2, and the mean of their gradients by 1.
    assert [result["nothing"] for result in collectives] == [0.5, 0.5]


def test_gradients_of_a_world_sum_average_to_those_of_the_whole(collectives):
    weight = torch.tensor([1.0, 2.0], requires_grad=True)
    (weight * 3).square().sum().backward()
    mean = torch.tensor([result["gradient"] for result in collectives]).mean(dim=0)
    assert torch.equal(mean, weight.grad)


def test_apart_each_process_is_a_world_of_its_own(collectives):
    assert [result["alone"] for result in collectives] == [(1, 0, 1.0, [0]), (1, 0, 5.0, [1])]


def test_one_process_exchanges_nothing():
    value = torch.tensor([2.0])
    assert world_sum(value) is value
    assert world_mean(0.25).item() == 1.0
    assert (world_max(3), world_size(), process_rank()) == (3, 1, 0)
