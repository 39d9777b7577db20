"""Score the best checkpoint of a run on the test split, once, when training is done."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from pixvox.errors import ConfigError

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from pixvox.data.datamodule import DataModule
    from pixvox.training.run_folder import RunFolder

log = logging.getLogger("pixvox")


def check_test_split(datamodule: DataModule) -> None:
    """Refuse a training with ``test=true`` that could not be tested, before it starts.

    Raises:
        ConfigError: If there is no test split, or it has no annotations.
    """
    test = datamodule.test
    name = datamodule.metadata.name or "the dataset"
    if test is None:
        raise ConfigError(
            f"test=true needs a test split, and {name} has none; draw one from the training images by "
            "data.test_fraction=0.1, or leave test out"
        )
    if len(test) == 0 or len(test.unlabelled_indices()) == len(test):
        raise ConfigError(
            f"test=true needs annotations, and the test split of {name} has none; leave test out"
        )


def score_best(
    trainer: pl.Trainer, method: pl.LightningModule, datamodule: DataModule, run: RunFolder
) -> dict[str, float]:
    """Return the scores of the best checkpoint (the last, when none was scored) on the test split.

    All processes join; the scores become part of ``summary.json``.

    Args:
        trainer: The trainer of the run, when it is done.
        method: What was trained; it takes the weights of the checkpoint.
        datamodule: Has a test split.
        run: Where the checkpoints lie.
    """
    from pixvox.callbacks.progress import headline
    from pixvox.callbacks.summary import summary_of

    checkpoint = run.best if run.best.exists() else run.last
    found: Any = trainer.test(
        method,
        dataloaders=datamodule.test_dataloader(),
        ckpt_path=str(checkpoint),
        weights_only=True,
        verbose=False,
    )
    scores = {name.removeprefix("test/"): float(value) for name, value in found[0].items()}
    summary = summary_of(trainer)
    summary["test"] = scores
    if trainer.is_global_zero:
        run.write_json(run.summary, summary)
        log.info("%s on %d test images: %s", checkpoint.name, len(datamodule.test or ()), headline(scores))
    return scores
