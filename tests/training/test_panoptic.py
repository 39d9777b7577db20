"""Panoptic segmentation from data to scores and pictures, by the task of the data alone."""

import json

import pytest

from pixvox.errors import ConfigError
from pixvox.training.train import train
from pixvox.weights import load

TINY = [
    "data=shapes", "data.train.task=panoptic", "data.train.num_images=4", "data.val.num_images=2",
    "data.train.radius=[4,8]", "data.train.image_size=[32,64]", "image_size=[32,64]", "transforms=none",
    "batch_size=2", "num_workers=0", "trainer.accelerator=cpu", "logger=none", "backbone=simple",
    "backbone.channels=[4,8]", "backbone.strides=[4,8]", "head=mask2former", "neck.channels=8",
    "neck.mask_channels=4", "neck.num_layers=1", "neck.num_heads=2", "head.channels=8", "head.num_layers=1",
    "head.num_heads=2", "head.num_queries=5", "head.num_points=null", "head.segment_threshold=0.0",
    "head.overlap_threshold=0.0",
]  # fmt: skip


def test_a_panoptic_run_trains_validates_draws_and_loads(tmp_path):
    run = train([*TINY, "epochs=1"], runs_dir=str(tmp_path))
    assert (run.dir / "val_predictions.png").is_file()
    header = (run.dir / "metrics.csv").read_text().splitlines()[0]
    assert "val/PQ_things" in header and "val/PQ_stuff" in header
    assert json.loads((run.dir / "summary.json").read_text())
    model = load(run.dir)
    assert (model.task, model.head.is_thing) == ("panoptic", (True, True, True, False))
    from pixvox.data.synthetic.shapes import Shapes

    (result,) = model.predict([Shapes(1, seed=9, image_size=(32, 64))[0].image.byte().movedim(0, -1).numpy()])
    assert [segment["id"] for segment in result.segments] == list(range(1, len(result.segments) + 1))
    assert result.label_map().max() == len(result.segments) > 0
    for segment, label in zip(result.segments, result.instances.labels.tolist(), strict=True):
        assert (segment["category_id"], segment["isthing"]) == (label, label < 3)


def test_another_task_than_that_of_the_data_is_refused_with_the_repair(tmp_path):
    with pytest.raises(ConfigError, match=r"labelled for panoptic segmentation; set head\.task=panoptic"):
        train([*TINY, "head.task=instance", "epochs=1"], runs_dir=str(tmp_path))
    with pytest.raises(ConfigError, match=r"choose head=mask2former"):
        train([*TINY[:-11], "head=maskrcnn", "epochs=1"], runs_dir=str(tmp_path))
