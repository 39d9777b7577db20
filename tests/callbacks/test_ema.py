import pytest
import torch

from pixvox.callbacks.ema import EMA
from pixvox.errors import ConfigError


def test_decay_warms_up_and_counters_are_copied():
    average = EMA(0.9)
    weights, counters = [torch.zeros(2)], [torch.tensor(3)]
    average.average(weights, [torch.ones(2)], 1)
    assert weights[0].tolist() == pytest.approx([1 - 2 / 11] * 2)
    average.average(weights, [torch.zeros(2)], 10_000)
    assert weights[0].tolist() == pytest.approx([0.9 * (1 - 2 / 11)] * 2)
    average.average(counters, [torch.tensor(7)], 5)
    assert counters[0] == 7


@pytest.mark.parametrize("decay", [0.0, 1.0, 1.5])
def test_decay_is_a_share(decay):
    with pytest.raises(ConfigError, match=f"ema_decay={decay}"):
        EMA(decay)
