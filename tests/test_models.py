import subprocess
import sys

import pytest
import torch

import pixvox
from parity import randomise
from pixvox.errors import ConfigError
from pixvox.heads.location_head import LocationHead
from pixvox.models import create_model, list_backbones, list_heads, part_class, split_name
from small_heads import over_any_backbone, slow_if_alike, small

CASES = [(head, size) for size in ((33, 61), (13, 33, 47)) for head in over_any_backbone(len(size))]
NARROW = {"backbone__channels": [16, 24, 32, 48]}


def _case(head, dims, backbone):
    quick = backbone == "simple" or head in ("fcn", "maskrcnn")
    return (
        slow_if_alike(head, dims, backbone)
        if quick
        else pytest.param(head, dims, backbone, marks=pytest.mark.slow)
    )


@pytest.mark.parametrize(
    ("head", "dims", "backbone"),
    [
        _case(head, dims, backbone)
        for backbone in ("simple", "resnet18")
        for dims in (2, 3)
        for head in over_any_backbone(dims)
    ],
)
def test_every_head_runs_and_differentiates_on_an_odd_size(head, dims, backbone):
    narrow = NARROW if backbone == "simple" else {}
    model = create_model(
        head, backbone, num_classes=2, spatial_dims=dims, in_channels=2, **small(head, **narrow)
    )
    size = (33, 61, 47)[:dims]
    labels = torch.zeros((2, *size), dtype=torch.int64)
    labels[(slice(None), *(slice(4, 30) for _ in size))] = 1
    targets = labels if model.task == "semantic" else [pixvox.Instances(masks=m) for m in labels]
    losses = model.loss(torch.randn(2, 2, *size), targets)
    sum(losses.values()).backward()
    _check_gradients(model)
    for part in (model.backbone, model.neck, model.head):
        grads = [p.grad.abs().sum() for p in part.parameters()]
        assert not grads or max(grads) > 0
    assert model.backbone.network.conv1.weight.grad.abs().sum() > 0 if backbone == "resnet18" else True
    model.eval()
    with torch.no_grad():
        results = model.postprocess(model(torch.randn(1, 2, *size)), [pixvox.Geometry.identity(size)])
    assert results[0].size == size


@pytest.mark.parametrize(
    ("head", "size", "ignored"),
    [slow_if_alike(*case, ignored) for case in CASES for ignored in (False, True)],
)
def test_images_with_nothing_to_learn_give_finite_losses_and_every_gradient(head, size, ignored):
    model = create_model(
        head, "simple", num_classes=2, spatial_dims=len(size), in_channels=1, **small(head, **NARROW)
    )
    if model.task == "semantic":
        targets = torch.full((2, *size), 255 if ignored else 0)
    elif ignored:
        crowd = torch.zeros(size, dtype=torch.int64)
        crowd[tuple(slice(4, 12) for _ in size)] = 1
        targets = [pixvox.Instances(masks=crowd, ignore=torch.tensor([True]))] * 2
    else:
        targets = [pixvox.Instances.empty(size)] * 2
    losses = model.loss(torch.randn(2, 1, *size), targets)
    assert all(torch.isfinite(loss) for loss in losses.values()), losses
    sum(losses.values()).backward()
    _check_gradients(model)


def _check_gradients(model):
    """Every trainable parameter has a finite gradient: none is left out, which parallel training refuses."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize(("head", "size"), [slow_if_alike(*case) for case in CASES])
def test_results_are_the_same_whoever_pads_the_image(head, size):
    torch.manual_seed(0)
    model = create_model(
        head,
        "simple",
        num_classes=2,
        spatial_dims=len(size),
        in_channels=1,
        **small(head, **(NARROW if head in list_heads("semantic") else {})),
    ).eval()
    if issubclass(part_class("head", head), LocationHead):
        randomise(model.head)  # at the beginning no cell is sure of anything
    image = torch.randn(1, 1, *size)
    padded_size = tuple(-(-n // d) * d for n, d in zip(size, model.size_divisor, strict=True))
    padded = torch.zeros(1, 1, *padded_size)
    padded[(..., *(slice(n) for n in size))] = image
    with torch.no_grad():
        (inside,) = model.postprocess(model(image), [pixvox.Geometry.identity(size)])
        (outside,) = model.postprocess(
            model(padded, valid_sizes=torch.tensor([size])), [pixvox.Geometry(padded_size, size, size)]
        )
    if model.task == "instance":
        assert len(inside.instances) > 0
        assert torch.allclose(inside.instances.boxes, outside.instances.boxes, atol=1e-3)
    assert (inside.label_map() != outside.label_map()).float().mean() < 1e-3


def test_lists_know_tasks_and_dimensions():
    assert {"fcn", "mask2former"} <= set(list_heads(task="semantic"))
    assert not {"maskrcnn", "deformable_detr"} & set(list_heads(task="semantic"))
    for task in ("instance", "semantic", "panoptic"):
        assert create_model("mask2former", "simple", task=task).task == task
    assert "maskrcnn" in list_heads(task="instance", spatial_dims=3)
    assert {"simple", "resnet", "resnet18", "resnet152"} <= set(list_backbones(spatial_dims=3))


def test_overrides_reach_the_head_and_other_parts():
    model = create_model(
        "maskrcnn", "simple", detections_per_image=7, anchor_sizes=[[8], [16], [32]],
        backbone__channels=[8, 16], backbone__strides=[4, 8], neck__out_channels=8,
    )  # fmt: skip
    assert model.head.detections_per_image == 7
    assert model.backbone.channels == (8, 16)
    assert model.neck.channels == (8, 8, 8)


@pytest.mark.parametrize(
    ("name", "backbone"),
    [
        ("fcn_resnet34", ["backbone=resnet34"]),
        ("fcn_vgg16", ["backbone=vgg", "backbone.variant='16'"]),
        ("deeplabv3_mobilenet_v3_large", ["backbone=mobilenet_v3", "backbone.variant=large"]),
        ("deeplabv3plus_xception", ["backbone=xception"]),
        ("upernet_swin_tiny", ["backbone=swin", "backbone.variant=tiny"]),
    ],
)
def test_names_of_a_head_and_its_backbone_are_split(name, backbone):
    assert split_name(name) == (name.partition("_")[0], backbone)


def test_named_model_has_the_backbone_of_its_name():
    model = create_model("deeplabv3_resnet18", num_classes=21, channels=8)
    assert model.backbone.strides == ((4, 4), (8, 8), (8, 8), (8, 8)), "dilated, as the head asks for"
    assert create_model("segformer_resnet18", num_classes=2).backbone.strides[-1] == (32, 32)
    with pytest.raises(
        ConfigError, match="the name ends with backbone=resnet18, but backbone=simple is given"
    ):
        create_model("fcn_resnet18", "simple")
    with pytest.raises(
        ConfigError, match="'fcn_resnet19': fcn is a head, but there is no backbone 'resnet19'; .*18"
    ):
        create_model("fcn_resnet19")


def test_unknown_names_give_the_nearest():
    with pytest.raises(ConfigError, match="maskrcnn"):
        create_model("maskrcn", "simple")
    with pytest.raises(ConfigError, match="nms_threshold"):
        create_model("maskrcnn", "simple", nms_treshold=0.5)
    with pytest.raises(ConfigError, match="'instance', 'semantic'"):
        list_heads(task="instances")


def test_class_names_must_fit_the_classes():
    with pytest.raises(ConfigError, match="1 class names for 2 classes"):
        create_model("fcn", "simple", num_classes=2, class_names=["cell"])


def test_import_and_create_model_load_no_heavy_library():
    code = (
        "import sys, pixvox; pixvox.create_model('maskrcnn', 'simple'); "
        "heavy = {'lightning', 'matplotlib', 'cv2', 'zarr', 'tifffile', 'scipy', 'numba', 'pandas', 'nibabel', "
        "'faster_coco_eval', 'tensorboard', 'monai', 'transformers', 'typer'}; print(sorted(heavy & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert found.strip() == "[]"
