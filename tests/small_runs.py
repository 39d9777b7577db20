"""A training with a teacher that takes seconds, and what it logged."""

import csv

TINY = [
    "head=fcn", "backbone=simple", "backbone.channels=[4,8]", "backbone.strides=[4,8]", "data=shapes",
    "data.train.task=semantic", "data.train.num_images=9", "data.val.num_images=2", "data.train.radius=[4,8]",
    "data.train.image_size=[32,40]", "image_size=[24,32]", "batch_size=2", "num_workers=0", "logger=none",
    "trainer.accelerator=cpu", "trainer.log_every_n_steps=1", "epochs=2", "method=mean_teacher",
    "num_labeled_images=4", "warmup_steps=2", "unsup_rampup_steps=2", "method.threshold=0.1",
]  # fmt: skip


def logged(run):
    """Return the rows of a run's table of metrics, what is empty left out."""
    with (run.dir / "metrics.csv").open() as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
