import json
import time

import numpy as np
import pytest
import torch
from PIL import Image

from pixvox.cli import run
from pixvox.component_timing import time_components
from pixvox.errors import ConfigError
from pixvox.models import create_model
from pixvox.weights.checkpoint import save_safetensors

PARTS = ["normalizer", "backbone", "neck", "head", "postprocess", "total"]


def _model(dims=2, **options):
    return create_model(
        "fcn", "simple", 2, dims, backbone__channels=[4, 8], backbone__strides=[4, 8], **options
    )


@pytest.mark.parametrize(("dims", "size"), [(2, (20, 33)), (3, (8, 16, 24))])
def test_every_part_and_the_whole_are_timed_for_images_and_volumes(dims, size):
    times = time_components(_model(dims), size, batch_size=2, repeats=3, warmup=1, device="cpu")
    assert list(times.milliseconds) == PARTS
    assert times.image_size == size
    total = times.milliseconds["total"]
    assert 0 < sum(value for name, value in times.milliseconds.items() if name != "total") < 1.5 * total
    assert times.images_per_second == pytest.approx(2000 / total, rel=1e-2)
    assert times.peak_memory_mib["host"] > 0


def test_time_is_counted_for_the_part_that_took_it(monkeypatch):
    model = _model()
    clock = {"now": 0.0}
    monkeypatch.setattr(time, "perf_counter", lambda: clock["now"])

    def slow(part, name, seconds):
        plain = getattr(part, name)

        def wait(*arguments, **options):
            clock["now"] += seconds
            return plain(*arguments, **options)

        monkeypatch.setattr(part, name, wait)

    slow(model.backbone, "forward", 0.5)
    slow(model.head, "forward", 0.25)
    slow(model.head, "postprocess", 0.125)
    times = time_components(model, 32, repeats=3, warmup=1, device="cpu")
    assert times.milliseconds == {
        "normalizer": 0, "backbone": 500, "neck": 0, "head": 250, "postprocess": 125, "total": 875,
    }  # fmt: skip
    assert times.images_per_second == pytest.approx(1 / 0.875, abs=1e-3)


def test_parameters_are_those_of_the_parts():
    model = _model()
    counts = time_components(model, 32, repeats=1, warmup=0, device="cpu").parameters
    assert counts["total"] == sum(p.numel() for p in model.parameters()) > 0
    assert counts["total"] == counts["backbone"] + counts["head"]


def test_the_model_is_left_as_it_was():
    model = _model().train()
    model.backbone.eval()
    before = [p.clone() for p in model.state_dict().values()]
    time_components(model, 32, repeats=1, warmup=0, device="cpu")
    assert model.head.training
    assert not model.backbone.training
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    for value, other in zip(model.state_dict().values(), before, strict=True):
        assert torch.equal(value, other)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"repeats": 0}, "repeats must be at least 1"),
        ({"image_size": (1, 2, 3)}, "one length or 2 in array order"),
        ({"precision": "int8"}, "precision must be one of fp32, bf16, fp16"),
    ],
)
def test_what_makes_no_sense_is_refused(options, said):
    with pytest.raises(ConfigError, match=said):
        time_components(_model(), **options)


def test_command_times_a_new_model(capsys):
    parts = ["--head", "fcn", "--backbone", "simple", "backbone.channels=[4,8,8,8]", "spatial_dims=3"]
    assert (
        run(["benchmark", "components", *parts, "--image-size", "32,32,64", "--repeats", "2", "--json"]) == 0
    )
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert list(found["milliseconds"]) == PARTS
    assert found["image_size"] == [32, 32, 64]
    assert found["parameters"]["backbone"] > 0


def test_command_times_a_checkpoint_on_a_picture(tmp_path, capsys):
    path = save_safetensors(_model(), tmp_path / "a=b" / "model.safetensors")
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(tmp_path / "c=d.png")
    options = [
        "--image",
        str(tmp_path / "c=d.png"),
        "--image-size",
        "32",
        "--repeats",
        "1",
        "--batch-size",
        "2",
    ]
    assert run(["benchmark", "components", str(path), *options]) == 0
    shown = capsys.readouterr().out
    assert all(part in shown for part in (*PARTS, "images/s", "MiB", "2 of 32 x 32"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "give one run or checkpoint, or the parts of a new model"),
        (["runs/last", "head=fcn"], "not runs/last head=fcn"),
        (["/no/such/run"], "/no/such/run"),
        (["head=fnc"], "did you mean fcn"),
        (["head=fcn", "backbone=simple", "--image-size", "big"], "--image-size big: write 640"),
    ],
)
def test_mistake_gets_one_message_and_code_2(words, said, capsys):
    assert run(["benchmark", "components", *words]) == 2
    assert said in capsys.readouterr().err
