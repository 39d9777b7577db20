"""The contract of parts, proven with toy parts: one call for loss and raw outputs under every wrapper."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from pixvox.errors import ConfigError
from pixvox.necks.fpn import FPN
from pixvox.segmenter import Segmenter
from pixvox.structures import Geometry
from pixvox.weights.checkpoint import model_record, rebuild
from toys import ToyBackbone, ToyQueryHead, toy_segmenter, toy_targets

KINDS = pytest.mark.parametrize("kind", ["semantic", "query"])
SIZES = pytest.mark.parametrize("size", [(19, 26), (6, 17, 22)])


@KINDS
@SIZES
def test_losses_are_part_of_forward_and_reach_all_parameters(kind, size):
    model = toy_segmenter(kind, len(size))
    outputs = model(torch.randn(2, 1, *size), toy_targets(kind, size))
    sum(outputs["losses"].values()).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert model.loss(torch.randn(2, 1, *size), toy_targets(kind, size)).keys() == outputs["losses"].keys()


@KINDS
@SIZES
def test_empty_targets_give_finite_losses_and_gradients(kind, size):
    model = toy_segmenter(kind, len(size))
    losses = model.loss(torch.randn(2, 1, *size), toy_targets(kind, size, empty=True))
    sum(losses.values()).backward()
    grads = [p.grad for p in model.parameters()]
    assert all(g is not None and torch.isfinite(g).all() for g in grads)


@KINDS
@SIZES
def test_results_come_back_in_the_original_frame(kind, size):
    model = toy_segmenter(kind, len(size)).eval()
    original = tuple(2 * n + 1 for n in size)
    geometry = Geometry(size, tuple(n - 1 for n in size), original)
    (result,) = model.postprocess(model(torch.randn(1, 1, *size)), [geometry])
    assert tuple(result.label_map().shape) == original
    assert result.class_names == ("class_0", "class_1")


@KINDS
def test_overfits_one_image(kind):
    size = (16, 24)
    model, targets = toy_segmenter(kind), toy_targets(kind, size, batch=1)
    images = 2.0 * (torch.stack([toy_targets("semantic", size, 1)[0]])[:, None].float() - 0.5)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    history = []
    for _ in range(60):
        loss = sum(model.loss(images, targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(float(loss))
    assert history[-1] < 0.4 * history[0]


@KINDS
def test_pseudo_labels_of_a_teacher_are_targets_of_a_student(kind):
    size = (16, 24)
    teacher, student = toy_segmenter(kind).eval(), toy_segmenter(kind)
    images = torch.randn(2, 1, *size)
    frames = [Geometry.identity(size).input_frame()] * 2
    with torch.no_grad():
        labels = teacher.postprocess(teacher(images), frames)
    if teacher.task == "semantic":
        targets = torch.stack([label.class_map for label in labels])
    else:
        threshold = teacher.head.pseudo_label_threshold
        targets = [label.instances[label.instances.scores >= threshold] for label in labels]
        assert sum(map(len, targets)) > 0
    assert torch.isfinite(sum(student.loss(images, targets).values()))


@KINDS
def test_backbone_under_torch_compile_equals_eager(kind):
    model = toy_segmenter(kind).eval()
    x = torch.randn(1, 1, 16, 24)
    expected = model(x)
    model.backbone = torch.compile(model.backbone, backend="aot_eager")
    for name, value in model(x).items():
        if torch.is_tensor(value):
            assert torch.allclose(value, expected[name], atol=1e-6)


def test_wrong_number_of_channels_or_axes_is_refused_with_the_right_form():
    model = toy_segmenter("semantic")
    with pytest.raises(
        ValueError, match=r"\(batch, channels, height, width\) with 1 channels, got \(1, 3, 8, 8\)"
    ):
        model(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="takes images"):
        model(torch.zeros(1, 1, 4, 8, 8))


def test_parts_of_different_dims_are_refused_at_construction():
    backbone = ToyBackbone(3)
    with pytest.raises(ConfigError, match=r"backbone is for spatial_dims=3, the head for 2"):
        Segmenter(backbone, None, ToyQueryHead(backbone.channels, backbone.strides))


def test_plain_objects_compose_with_a_neck_that_asks_the_backbone():
    backbone = ToyBackbone(2)
    neck = FPN(backbone.channels, backbone.strides, out_channels=6, extra_level=False)
    model = Segmenter(backbone, neck, ToyQueryHead(neck.channels, neck.strides))
    assert model(torch.zeros(1, 1, 9, 13))["class_logits"].shape == (1, 5, 3)


def _config(dims):
    return {
        "backbone": {"_target_": "toys.ToyBackbone", "spatial_dims": dims},
        "neck": {"_target_": "pixvox.necks.neck.NoNeck", "_partial_": True},
        "head": {"_target_": "toys.ToyQueryHead", "_partial_": True, "spatial_dims": dims, "num_classes": 3},
        "normalizer": {"_target_": "pixvox.normalizer.PercentileNormalizer"},
        "class_names": ["a", "b", "c"],
    }


def test_a_record_rebuilds_a_model_of_parts_from_outside_when_they_are_trusted():
    model = Segmenter.from_config(_config(3))
    rebuilt = rebuild(model_record(model), Path("file"), trust=("toys",))
    rebuilt.load_state_dict(model.state_dict())
    x = torch.randn(1, 1, 6, 9, 13)
    assert torch.equal(rebuilt(x)["boxes"], model(x)["boxes"])
    assert rebuilt.class_names == ("a", "b", "c")


def test_an_argument_that_a_part_refuses_is_an_error_naming_the_part():
    config = _config(2)
    config["head"]["num_classes"] = 0
    with pytest.raises(ConfigError, match=r"head \(toys.ToyQueryHead\): num_classes must be at least 1"):
        Segmenter.from_config(config)


def _run(script, processes):
    """Run a script in ``processes`` gloo processes and return their outputs."""
    tests = str(Path(__file__).parent)
    env = {**os.environ, "MASTER_ADDR": "127.0.0.1", "WORLD_SIZE": str(processes), "OMP_NUM_THREADS": "1"}
    env["PYTHONPATH"] = os.pathsep.join([tests, env.get("PYTHONPATH", "")])
    prologue = """
        import os, sys, torch
        import torch.distributed as dist
        from datetime import timedelta
        from toys import toy_segmenter, toy_targets
        dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=int(os.environ["RANK"]),
                                world_size=int(os.environ["WORLD_SIZE"]), timeout=timedelta(seconds=60))
        rank = dist.get_rank()
    """
    code = textwrap.dedent(prologue) + textwrap.dedent(script) + "\ndist.destroy_process_group()\n"
    return code, env


def _launch(tmp_path, script, processes):
    code, env = _run(script, processes)
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "store")],
            env={**env, "RANK": str(rank)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(processes)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=120)[0] for process in running]
    assert all(process.returncode == 0 for process in running), "\n".join(outputs)
    return outputs


def test_two_processes_one_without_annotations_get_one_gradient(tmp_path):
    script = """
        for kind in ("semantic", "query"):
            model = torch.nn.parallel.DistributedDataParallel(toy_segmenter(kind))
            size = (16, 24)
            targets = toy_targets(kind, size, empty=rank == 1)
            if kind == "semantic" and rank == 1:
                targets[:] = 0
            losses = model(torch.randn(2, 1, *size), targets)["losses"]
            sum(losses.values()).backward()
            print(kind, sum(float(p.grad.abs().sum()) for p in model.parameters()))
    """
    # Some versions of gloo print on stdout too.
    first, second = (
        [line for line in output.splitlines() if line.startswith(("semantic", "query"))]
        for output in _launch(tmp_path, script, 2)
    )
    assert first == second
    assert len(first) == 2


def test_one_process_under_fully_sharded_data_parallel_equals_plain(tmp_path):
    script = """
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
        for kind in ("semantic", "query"):
            images, targets = torch.randn(2, 1, 16, 24), toy_targets(kind, (16, 24))
            plain, sharded = toy_segmenter(kind), toy_segmenter(kind)
            fully_shard(sharded, mesh=init_device_mesh("cpu", (1,)))
            losses = [sum(model(images, targets)["losses"].values()) for model in (plain, sharded)]
            for loss in losses:
                loss.backward()
            assert torch.allclose(*losses), losses
            for a, b in zip(plain.parameters(), sharded.parameters(), strict=True):
                assert torch.allclose(a.grad, b.grad.full_tensor(), atol=1e-6)
    """
    _launch(tmp_path, script, 1)
