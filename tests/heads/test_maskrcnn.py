import re

import pytest
import torch
import torchvision.ops.boxes as boxes_module
from torchvision.models.detection import maskrcnn_resnet50_fpn, maskrcnn_resnet50_fpn_v2
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.mask_rcnn import MaskRCNN as TorchvisionMaskRCNN

from pixvox.structures import Geometry, Instances
from pixvox.weights.torchvision import build_maskrcnn

LOSSES = {
    "class": "loss_classifier", "box": "loss_box_reg", "mask": "loss_mask", "rpn_objectness": "loss_objectness",
    "rpn_box": "loss_rpn_box_reg",
}  # fmt: skip


def _reference(depth, size, num_classes):
    torch.manual_seed(0)
    limits = {"min_size": min(size), "max_size": max(size)}
    if depth == "v2":
        model = maskrcnn_resnet50_fpn_v2(
            weights=None, weights_backbone=None, num_classes=num_classes + 1, **limits
        )
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for name, value in model.named_buffers():
                if name.endswith(("running_mean", "running_var")):
                    value.add_(torch.rand(value.shape, generator=generator) / 10)
    elif depth == 50:
        model = maskrcnn_resnet50_fpn(
            weights=None, weights_backbone=None, num_classes=num_classes + 1, **limits
        )
    else:
        backbone = resnet_fpn_backbone(
            backbone_name="resnet18", weights=None, trainable_layers=5, norm_layer=torch.nn.BatchNorm2d
        )
        model = TorchvisionMaskRCNN(backbone, num_classes=num_classes + 1, **limits)
    # The size is fixed, and choosing it would draw a random number before the samplers do.
    model.transform.torch_choice = lambda sizes: sizes[0]
    # Random weights give scores of no contrast; larger last layers make boxes and scores differ.
    predictor = model.roi_heads.box_predictor
    with torch.no_grad():
        for layer in (model.rpn.head.cls_logits, model.rpn.head.bbox_pred, predictor.cls_score):
            layer.weight.mul_(3)
        predictor.bbox_pred.weight.mul_(2)
    return model


@pytest.fixture(autouse=True)
def _exact_nms(monkeypatch):
    """Below 1,000 boxes torchvision separates classes by shifting boxes, which rounds IoUs."""
    monkeypatch.setattr(boxes_module, "_batched_nms_coordinate_trick", boxes_module._batched_nms_vanilla)


def _scene(size, num_classes, batch=2):
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(batch, 3, *size, generator=generator)
    targets = []
    for count in (3, 5)[:batch]:
        label_map = torch.zeros(size, dtype=torch.int64)
        for i in range(count):
            y, x = (int(torch.randint(0, n - 30, (1,), generator=generator)) for n in size)
            label_map[y : y + 9 + 4 * i, x : x + 12 + 3 * i] = i + 1
        ids = label_map.unique()[1:]
        labels = torch.randint(0, num_classes, (len(ids),), generator=generator)
        targets.append(Instances(masks=label_map, labels=labels))
    return images, targets


@pytest.mark.parametrize(
    ("depth", "size", "num_classes"), [(50, (96, 128), 4), (18, (160, 96), 2), ("v2", (96, 128), 2)]
)
def test_losses_equal_torchvisions_with_its_weights_and_the_same_sampling(depth, size, num_classes):
    reference = _reference(depth, size, num_classes).train()
    model = build_maskrcnn(reference.state_dict()).train()
    images, targets = _scene(size, num_classes)
    theirs = [
        {"boxes": t.boxes, "labels": t.labels + 1, "masks": t.masks.dense().to(torch.uint8)} for t in targets
    ]
    torch.manual_seed(7)
    expected = reference(list(images), theirs)
    torch.manual_seed(7)
    losses = model.loss(reference.transform(list(images))[0].tensors, targets)
    for name, other in LOSSES.items():
        assert losses[name].item() == pytest.approx(expected[other].item(), rel=1e-4), name


def _places(boxes, labels):
    """Boxes of different labels are far apart."""
    return torch.cat([boxes, 1e4 * labels[:, None]], dim=1)


@pytest.mark.parametrize(
    ("depth", "size", "num_classes"),
    [
        (50, (96, 128), 4),
        pytest.param(18, (160, 96), 1, marks=pytest.mark.slow),
        pytest.param("v2", (96, 128), 4, marks=pytest.mark.slow),
    ],
)
def test_detections_equal_torchvisions_with_its_weights(depth, size, num_classes):
    reference = _reference(depth, size, num_classes).eval()
    # Masks as predicted, before torchvision pastes them into boxes rounded to whole pixels.
    reference.transform.postprocess = lambda results, *_: results
    model = build_maskrcnn(reference.state_dict()).eval()
    images, _ = _scene(size, num_classes)
    with torch.no_grad():
        expected = reference(list(images))
        outputs = model(reference.transform(list(images))[0].tensors)
    results = model.postprocess(outputs, [Geometry.identity(size)] * len(images))
    for i, (result, other) in enumerate(zip(results, expected, strict=True)):
        assert len(other["scores"]) > 10
        torch.testing.assert_close(result.instances.scores, other["scores"], rtol=1e-4, atol=1e-5)
        ours, labels = result.instances, other["labels"] - 1
        # Scores that tie stand in any order: a rounding of 1e-7 exchanges them.
        pair = _places(other["boxes"], labels), _places(ours.boxes, ours.labels)
        order = torch.cdist(*pair, compute_mode="donot_use_mm_for_euclid_dist").argmin(dim=1)
        assert order.sort().values.tolist() == list(range(len(order)))
        torch.testing.assert_close(ours.boxes[order], other["boxes"], rtol=1e-4, atol=1e-2)
        assert torch.equal(ours.labels[order], labels)
        masks = outputs["roi_mask_logits"][i, outputs["valid"][i]].sigmoid()[order]
        # Boxes that differ in the last bits shift the samples: single pixels of steep masks by up to 4e-4.
        torch.testing.assert_close(masks, other["masks"][:, 0], rtol=1e-3, atol=1e-3)


def test_epsilon_of_the_published_file_is_none():
    """Norms of COCO_V1 divide by the bare deviation; its mask convolutions have the names that they had in 2019."""
    reference = _reference(50, (96, 128), 2).eval()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for module in reference.modules():
            if hasattr(module, "running_var"):
                module.running_var.copy_(
                    torch.rand(module.running_var.shape, generator=generator) * 1e-3 + 1e-4
                )
                module.weight.mul_(0.02)
                module.eps = 0.0
    state = {
        re.sub(r"mask_head\.(\d)\.0\.", lambda m: f"mask_head.mask_fcn{int(m[1]) + 1}.", key): value
        for key, value in reference.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    image = torch.rand(1, 3, 96, 128, generator=generator)
    with torch.no_grad():
        expected = reference.backbone.body(image)["3"]
        exact = build_maskrcnn(state).eval().backbone(image)[-1]
        assumed = build_maskrcnn(reference.state_dict()).eval().backbone(image)[-1]
    torch.testing.assert_close(exact, expected, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(assumed, expected, rtol=1e-3, atol=1e-4)
