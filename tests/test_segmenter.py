"""The contract of parts, proven with toy parts: one call for loss and raw outputs under every wrapper."""

from pathlib import Path

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

import pixvox
from pixvox.distributed.world import process_rank
from pixvox.errors import ConfigError, WeightsError
from pixvox.necks.fpn import FPN
from pixvox.segmenter import Segmenter
from pixvox.structures import Geometry
from pixvox.weights.checkpoint import RECORD_KEY, model_record, rebuild
from together import together
from toys import ToyBackbone, ToyQueryHead, toy_batches, toy_segmenter, toy_targets

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


@KINDS
def test_training_step_with_a_compiled_backbone_equals_eager(kind):
    eager, compiled = toy_segmenter(kind), toy_segmenter(kind)
    calls = []

    def backend(graph, inputs):
        calls.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    compiled.backbone = torch.compile(compiled.backbone, backend=backend)
    images, targets = torch.randn(2, 1, 16, 24), toy_targets(kind, (16, 24))
    losses = [sum(model.loss(images, targets).values()) for model in (eager, compiled)]
    for loss in losses:
        loss.backward()
    assert calls
    assert torch.allclose(*losses, atol=1e-6)
    for ours, theirs in zip(compiled.parameters(), eager.parameters(), strict=True):
        assert theirs.grad.abs().sum() > 0
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-6)


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


def _config(dims, head="ToyQueryHead"):
    return {
        "backbone": {"_target_": "toys.ToyBackbone", "spatial_dims": dims},
        "neck": {"_target_": "pixvox.necks.neck.NoNeck", "_partial_": True},
        "head": {"_target_": f"toys.{head}", "_partial_": True, "spatial_dims": dims, "num_classes": 3},
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


@pytest.mark.parametrize("head", ["ToySemanticHead", "ToyQueryHead"])
@SIZES
def test_predictions_survive_a_checkpoint_of_parts_from_outside(tmp_path, head, size):
    torch.manual_seed(0)
    model = Segmenter.from_config(_config(len(size), head))
    state = {f"segmenter.{key}": value for key, value in model.state_dict().items()}
    path = tmp_path / "toy.ckpt"
    torch.save({"state_dict": state, RECORD_KEY: model_record(model)}, path)
    with pytest.raises(WeightsError, match="toys"):
        pixvox.load(path)
    loaded = pixvox.load(path, trust=["toys"])
    image = 1000 * torch.rand(1, *size) + 50
    expected, found = model.predict(image), loaded.predict(image)
    assert found.class_names == ("a", "b", "c")
    assert tuple(found.label_map().shape) == size
    assert torch.equal(found.label_map(), expected.label_map())
    normalized = model.normalize(image[None])
    fresh = Segmenter.from_config(_config(len(size), head))
    name = "logits" if model.task == "semantic" else "mask_logits"
    outputs = [each(normalized)[name] for each in (model, loaded, fresh)]
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.allclose(outputs[0], outputs[2])
    if expected.instances is not None:
        assert len(found.instances) == 5
        assert torch.equal(found.instances.scores, expected.instances.scores)
        assert torch.equal(found.instances.labels, expected.instances.labels)


def test_an_argument_that_a_part_refuses_is_an_error_naming_the_part():
    config = _config(2)
    config["head"]["num_classes"] = 0
    with pytest.raises(ConfigError, match=r"head \(toys.ToyQueryHead\): num_classes must be at least 1"):
        Segmenter.from_config(config)


def _gradients(kind):
    images, targets = toy_batches(kind)[process_rank()]
    model = DistributedDataParallel(toy_segmenter(kind))
    sum(model(images, targets)["losses"].values()).backward()
    return [parameter.grad for parameter in model.parameters()]


@KINDS
def test_two_processes_one_without_annotations_get_the_gradient_of_one_with_both_batches(kind):
    both = together(_gradients, kind)
    # Here, without processes: a wrong mean over processes must not enter what is expected.
    (first, first_targets), (second, second_targets) = toy_batches(kind)
    joined = (
        torch.cat([first_targets, second_targets])
        if torch.is_tensor(first_targets)
        else first_targets + second_targets
    )
    model = toy_segmenter(kind)
    sum(model.loss(torch.cat([first, second]), joined).values()).backward()
    for grads in both:
        for (name, parameter), grad in zip(model.named_parameters(), grads, strict=True):
            assert torch.allclose(grad, parameter.grad, rtol=1e-4, atol=1e-6), name
            assert grad.abs().sum() > 0, name
