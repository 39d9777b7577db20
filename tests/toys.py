"""Toy parts that exercise the contract of parts: a backbone, a semantic head and a query head."""

from pathlib import Path

import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import nn

from pixvox.backbones.backbone import Backbone
from pixvox.callbacks.hooks import Hooks
from pixvox.distributed.world import world_mean
from pixvox.heads.head import Head
from pixvox.layers import conv, resize
from pixvox.ops.boxes import box_convert
from pixvox.segmenter import Segmenter
from pixvox.structures import Instances, Masks, Segmentation


class ToyBackbone(Backbone):
    """One strided convolution."""

    def __init__(self, spatial_dims=2, in_channels=1, channels=4):
        super().__init__(spatial_dims, in_channels, (channels,), ((4,) * spatial_dims,))
        self.conv = conv(spatial_dims, in_channels, channels, 5, 4)

    def forward(self, images):
        return (F.relu(self.conv(images)),)


class ToySemanticHead(Head):
    """A linear classifier of every position."""

    task = "semantic"

    def __init__(self, in_channels, strides, num_classes=2, spatial_dims=2):
        super().__init__(spatial_dims, num_classes)
        self.classify = conv(spatial_dims, in_channels[0], num_classes, 1)

    def forward(self, features, targets=None):
        logits = resize(self.classify(features.levels[0]), features.padded_size)
        return {"logits": logits[(..., *(slice(length) for length in features.input_size))]}

    def loss(self, outputs, targets):
        total = F.cross_entropy(outputs["logits"], targets, ignore_index=255, reduction="sum")
        return {"cross_entropy": total / world_mean((targets != 255).sum())}

    def postprocess(self, outputs, geometries):
        maps = [
            resize(logits[(None, ..., *(slice(n) for n in g.valid_size))], g.original_size)[0].argmax(0)
            for logits, g in zip(outputs["logits"], geometries, strict=True)
        ]
        return [Segmentation(class_map=m, geometry=g) for m, g in zip(maps, geometries, strict=True)]


class ToyQueryHead(Head):
    """A few learned queries, each a class, a box and a mask; matched one to one."""

    task = "instance"

    def __init__(self, in_channels, strides, num_classes=2, spatial_dims=2, num_queries=5):
        super().__init__(spatial_dims, num_classes, score_threshold=0.0, pseudo_label_threshold=0.0)
        width = in_channels[0]
        self.queries = nn.Parameter(torch.randn(num_queries, width))
        self.classes = nn.Linear(width, num_classes + 1)
        self.boxes = nn.Linear(width, 2 * spatial_dims)

    def forward(self, features, targets=None):
        level = features.levels[0]
        context = level.flatten(2).mean(2)[:, None] + self.queries
        return {
            "class_logits": self.classes(context),
            "boxes": self.boxes(context).sigmoid(),
            "mask_logits": torch.einsum("bqc,bc...->bq...", context, level),
            "input_size": features.input_size,
            "padded_size": features.padded_size,
        }

    def loss(self, outputs, targets):
        count = world_mean(sum(len(t) for t in targets))
        terms = {"class": 0.0, "box": 0.0, "mask": 0.0}
        size = outputs["input_size"]
        for i, instances in enumerate(targets):
            logits, boxes, masks = (outputs[k][i] for k in ("class_logits", "boxes", "mask_logits"))
            sides = boxes.new_tensor(size[::-1] * 2)
            wanted = box_convert(instances.boxes, "xyxy", "cxcywh") / sides
            cost = torch.cdist(boxes.detach(), wanted, p=1)
            rows, cols = (torch.as_tensor(v) for v in linear_sum_assignment(cost.cpu()))
            labels = torch.full((len(logits),), self.num_classes)
            labels[rows] = instances.labels[cols]
            canvas = (len(instances), *masks.shape[1:])
            truth = torch.zeros(canvas)
            if len(instances):
                dense = torch.zeros((len(instances), *outputs["padded_size"]))
                inner = (slice(None), *(slice(n) for n in instances.masks.size))
                dense[inner] = instances.masks.dense().float()
                truth = resize(dense[:, None], masks.shape[1:])[:, 0]
            terms["class"] = terms["class"] + F.cross_entropy(logits, labels, reduction="sum")
            terms["box"] = terms["box"] + F.l1_loss(boxes[rows], wanted[cols], reduction="sum")
            mask_loss = F.binary_cross_entropy_with_logits(masks[rows], truth[cols], reduction="none")
            terms["mask"] = terms["mask"] + mask_loss.flatten(1).mean(1).sum()
        return {name: value / count for name, value in terms.items()}

    def postprocess(self, outputs, geometries):
        results = []
        for i, geometry in enumerate(geometries):
            scores, labels = outputs["class_logits"][i].softmax(-1)[:, :-1].max(-1)
            full = resize(outputs["mask_logits"][i][None], outputs["padded_size"])[0]
            full = full[(slice(None), *(slice(n) for n in geometry.valid_size))]
            masks = Masks.from_dense(resize(full[None], geometry.original_size)[0] > 0)
            results.append(
                Segmentation(Instances(labels=labels, masks=masks, scores=scores), geometry=geometry)
            )
        return results


def toy_segmenter(kind, spatial_dims=2, num_classes=2):
    """A toy model of a kind: "semantic" or "query"."""
    torch.manual_seed(0)
    backbone = ToyBackbone(spatial_dims)
    head = {"semantic": ToySemanticHead, "query": ToyQueryHead}[kind]
    return Segmenter(backbone, None, head(backbone.channels, backbone.strides, num_classes, spatial_dims))


def toy_targets(kind, size, batch=2, empty=False):
    """Targets for ``batch`` images: a bright corner of class 1, or nothing to learn from."""
    label_map = torch.zeros(size, dtype=torch.int64)
    if not empty:
        label_map[tuple(slice(1, n // 2) for n in size)] = 1
    if kind == "semantic":
        return torch.stack([label_map.fill_(255) if empty else label_map] * batch)
    if empty:
        return [Instances.empty(size) for _ in range(batch)]
    return [Instances(masks=label_map, labels=torch.tensor([1])) for _ in range(batch)]


def toy_batches(kind, size=(16, 24)):
    """Images and targets of two processes: three images with annotations, and two without."""
    images = torch.randn(5, 1, *size, generator=torch.Generator().manual_seed(1))
    return [(images[:3], toy_targets(kind, size, 3)), (images[3:], toy_targets(kind, size, 2, empty=True))]


class Diary(Hooks):
    """Writes down what it is told."""

    def __init__(self, path: str):
        self.path = Path(path)

    def write(self, *words):
        with self.path.open("a") as file:
            print(*words, file=file)

    def on_running_metrics_updated(self, step, epoch, metrics):
        self.write("running", step, epoch, *metrics)

    def on_job_epoch_ended(self, stage, epoch, metrics):
        self.write("epoch", stage, epoch, *metrics)

    def on_snapshots_created(self, paths):
        assert all(path.is_file() for path in paths)
        self.write("pictures", *(path.name for path in paths))

    def on_checkpoint_saved(self, path, step):
        self.write("checkpoint", path.name, step, path.is_file())


class BrokenHooks(Hooks):
    """Fails whenever an epoch ends."""

    def on_job_epoch_ended(self, stage, epoch, metrics):
        raise RuntimeError("the mail server is down")
