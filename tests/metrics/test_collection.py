import math
import os
import socket

import pytest
import torch
import torch.multiprocessing as mp
from hydra.utils import instantiate
from omegaconf import OmegaConf

import pixvox
from pixvox.assembly import build_metrics
from pixvox.configuration import compose
from pixvox.data.metadata import Metadata
from pixvox.errors import ConfigError
from pixvox.metrics.collection import Metrics, default_metrics, parse_best_by
from pixvox.metrics.semantic import SemanticScores
from pixvox.structures import Instances, Segmentation


def nuclei(spatial_dims):
    return Metadata("instance", spatial_dims, ("nucleus",), in_channels=1)


def result(offset, spatial_dims=2):
    label_map = torch.zeros((1, 4, 7)[-spatial_dims:], dtype=torch.int64)
    label_map[..., :2, 1:4] = 1
    label_map[..., 2:, offset : offset + 3] = 2
    return Segmentation(Instances(masks=label_map, scores=torch.tensor([0.9, 0.8])))


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_instance_set_scores_both_dimensions(spatial_dims):
    metrics = default_metrics(nuclei(spatial_dims))
    metrics.update([result(0, spatial_dims)], [result(0, spatial_dims)])
    scores = metrics.compute()
    assert {"AP", "AP50", "matched_AP50", "PQ", "F1_50"} <= scores.keys()
    assert scores["AP"] == scores["matched_AP"] == scores["PQ"] == 1.0
    assert ("mask_AP" in scores) == ("box_AP50" in scores) == (spatial_dims == 2)
    assert metrics.monitor in scores
    assert len(metrics.curves()) == 10
    metrics.reset()
    assert math.isnan(metrics.compute()["AP"])


@pytest.mark.parametrize("iou_types", [["bbox", "segm"], ["bbox"]])
def test_instances_are_scored_per_class_on_request(iou_types):
    names = ("disc", "ring")
    metadata = Metadata("instance", 2, names, in_channels=1)
    true, found = result(0), result(0)
    true.instances.labels, found.instances.labels = torch.tensor([0, 1]), torch.tensor([0, 0])
    for per_class in (None, False, True):
        metrics = default_metrics(metadata, per_class=per_class, iou_types=iou_types)
        metrics.update([found], [true])
        scores = {name: value for name, value in metrics.compute().items() if "/" in name}
        kinds = ("mask", "box") if "segm" in iou_types else ("box",)
        assert set(scores) == (
            {f"{kind}_AP/{name}" for kind in kinds for name in names} if per_class else set()
        )
        for kind in kinds if per_class else ():
            assert scores[f"{kind}_AP/disc"] == pytest.approx(1.0)
            assert scores[f"{kind}_AP/ring"] == 0


def test_boxes_alone_are_scored_as_boxes():
    metrics = default_metrics(nuclei(2), iou_types=["bbox"])
    boxes = Segmentation(
        Instances(boxes=result(0).instances.boxes, scores=torch.tensor([0.9, 0.8]), size=(4, 7))
    )
    metrics.update([boxes], [result(0)])
    scores = metrics.compute()
    assert scores["box_AP"] == scores[metrics.monitor] == 1.0
    assert not any(name.startswith(("mask_", "matched_", "PQ")) for name in scores)
    with pytest.raises(ConfigError, match=r"metrics\.iou_types=\[bbox\]"):
        default_metrics(nuclei(2)).update([boxes], [result(0)])
    with pytest.raises(ConfigError, match="boxes of volumes have no scores"):
        default_metrics(nuclei(3), iou_types=["bbox"])
    with pytest.raises(ConfigError, match="iou_types must be"):
        default_metrics(nuclei(2), iou_types=["mask"])


def test_semantic_set_follows_the_metadata():
    metrics = default_metrics(Metadata("semantic", 3, ("background", "vessel"), 1, ignore_index=9))
    truth = Segmentation(class_map=torch.tensor([[[0, 1, 9]]]))
    metrics.update([Segmentation(class_map=torch.tensor([[[0, 1, 0]]]))], [truth])
    scores = metrics.compute()
    assert scores["mIoU"] == scores["Dice/vessel"] == scores["mDice_foreground"] == 1.0
    assert metrics.curves() == []
    assert metrics.best_by == "max:mIoU"


def test_config_completes_with_metadata():
    path = os.path.join(os.path.dirname(pixvox.__file__), "configs", "metrics", "default.yaml")
    config = OmegaConf.load(path)
    config.best_by = "max:matched_AP50"
    metrics = instantiate(config)(nuclei(3))
    assert (metrics.mode, metrics.monitor) == ("max", "matched_AP50")


@pytest.mark.parametrize(("given", "used"), [(None, 0.3), (0.6, 0.6)])
def test_an_open_threshold_is_the_score_from_which_the_head_is_confident(given, used):
    config = compose("evaluate", [] if given is None else [f"metrics.score_threshold={given}"])
    head = pixvox.create_model("lw_detr", "simple").head
    metrics = build_metrics(config, nuclei(2), head)
    assert metrics.metrics["label_map"].score_threshold == config.metrics.score_threshold == used


@pytest.mark.parametrize("rule", ["mIoU", "max", "best:mIoU", "max:", ""])
def test_wrong_rule_is_refused(rule):
    with pytest.raises(ConfigError, match="best_by must be"):
        parse_best_by(rule)


def test_better_follows_the_rule():
    metrics = Metrics({}, "min:loss")
    assert metrics.is_better(0.1, than=0.2)
    assert not metrics.is_better(0.2, than=0.2)
    assert not metrics.is_better(math.nan, than=0.2)
    assert metrics.is_better(5.0, than=math.nan)
    assert not metrics.is_better(math.nan, than=math.nan)


def test_equal_names_are_refused():
    metrics = Metrics({"a": SemanticScores(2), "b": SemanticScores(2)}, "max:mIoU")
    with pytest.raises(ConfigError, match="mIoU"):
        metrics.compute()


def _rank(rank, port, results):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    metrics = default_metrics(nuclei(2))
    offsets = [(0, 1), (2, 2), (3, 1)][rank::2]  # two images on one process, one on the other
    metrics.update([result(a) for a, _ in offsets], [result(b) for _, b in offsets])
    semantic = SemanticScores(2)
    class_map = torch.tensor([[0, 1]])
    semantic.update([Segmentation(class_map=class_map)], [Segmentation(class_map=class_map * (rank == 0))])
    results[rank] = metrics.compute() | semantic.compute()
    torch.distributed.destroy_process_group()


def test_two_processes_equal_one():
    """Each image counts exactly once (fault 46), also when the processes have different numbers of images."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    results = mp.get_context("fork").Manager().dict()
    mp.start_processes(_rank, (port, results), nprocs=2, start_method="fork")
    alone = default_metrics(nuclei(2))
    alone.update([result(0), result(2), result(3)], [result(1), result(2), result(1)])
    expected = alone.compute() | {"acc": 0.75}
    for rank in (0, 1):
        shared = dict(results[rank])
        assert {name: shared[name] for name in expected} == pytest.approx(expected, nan_ok=True)


def test_panoptic_set_scores_things_and_stuff_without_a_threshold():
    metrics = default_metrics(Metadata("panoptic", 2, ("cell", "ground"), 1, is_thing=(True, False)))
    truth = Instances(
        masks=torch.tensor([[1, 1, 2, 2]]), labels=torch.tensor([0, 1]), scores=torch.tensor([0.9, 0.1])
    )
    metrics.update([Segmentation(truth)], [Segmentation(truth)])
    scores = metrics.compute()
    assert (scores["PQ"], scores["PQ_things"], scores["PQ_stuff"]) == (1.0, 1.0, 1.0)
    assert (metrics.mode, metrics.monitor) == ("max", "PQ")
