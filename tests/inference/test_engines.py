"""How many processes and tasks there are, and what tasks ask for."""

import os
import sys
from types import SimpleNamespace

import pytest

from pixvox.errors import ConfigError
from pixvox.inference.blocks import Blocks
from pixvox.inference.blockwise import Blockwise
from pixvox.inference.engines import ProcessEngine, RayEngine, engine
from pixvox.inference.predictor import Predictor
from pointwise import pointwise


class StandIn:
    """A Ray that does everything at once, and keeps what tasks ask for."""

    def __init__(self):
        self.asked, self.waiting, self.most = [], 0, 0

    def remote(self, **options):
        def decorate(function):
            def submit(*arguments):
                self.asked.append(options)
                self.waiting += 1
                self.most = max(self.most, self.waiting)
                return lambda: function(*arguments)

            return SimpleNamespace(remote=submit)

        return decorate

    def wait(self, pending):
        self.waiting -= 1
        return pending[:1], pending[1:]

    def get(self, done):
        return [task() for task in done]

    def put(self, thing):
        return thing

    def is_initialized(self):
        return True


@pytest.mark.parametrize(("device", "gpus"), [("cpu", 0.0), ("cuda", 1.0), ("mps", 0.0)])
def test_tasks_of_ray_ask_for_a_gpu_where_the_model_is_on_one(monkeypatch, device, gpus):
    ray, done = StandIn(), []
    monkeypatch.setitem(sys.modules, "ray", ray)
    blocks = Blocks((40,), (16,))
    found = list(engine("ray", 2, device).run(done.append, blocks))
    assert [block.number for block in found] == [block.number for block in done] == list(range(len(blocks)))
    assert ray.asked == [{"num_gpus": gpus}] * len(blocks) and ray.most == 2


def test_processes_share_a_gpu_only_when_it_is_said():
    cores = os.cpu_count() or 1
    assert [engine("processes", None, device).workers for device in ("cpu", "cuda", "mps")] == [cores, 1, 1]
    assert [engine("processes", 3, device).workers for device in ("cpu", "cuda")] == [3, 3]
    with pytest.raises(ConfigError, match="at least 1, got 0"):
        engine("processes", 0)


def test_the_device_is_that_of_the_model():
    model = pointwise(3)
    assert Blockwise(Predictor(model), engine="ray").options.engine.gpus == 0
    model.to("meta")  # stands for any device that is not the CPU
    chosen = Blockwise(Predictor(model), engine="processes").options.engine
    assert isinstance(chosen, ProcessEngine) and chosen.workers == 1
    assert isinstance(engine("ray"), RayEngine)
