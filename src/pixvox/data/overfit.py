"""Learn a few images by heart: the shortest test that data, model and loss fit together."""

from __future__ import annotations

from pixvox.data.datamodule import DataModule
from pixvox.data.dataset import Subset
from pixvox.errors import DataError

STEPS_PER_EPOCH = 25
"""An epoch repeats the images this often, so that it is not all validation."""


def overfit(datamodule: DataModule, count: int) -> None:
    """Let a data module train and validate on the same first annotated images, without augmentation.

    The images are whole, as validation sees them. A batch holds each at most once.

    Args:
        datamodule: Changed in place.
        count: Images.

    Raises:
        DataError: If there are not as many.
    """
    hidden = set(datamodule.train.unlabelled_indices())
    annotated = [index for index in range(len(datamodule.train)) if index not in hidden]
    if count > len(annotated):
        raise DataError(
            f"overfit_images={count}, but {len(annotated)} training images are annotated; give a number up to that"
        )
    chosen = annotated[:count]
    datamodule.batch_size = min(datamodule.batch_size, count)
    steps = max(1, count // datamodule.batch_size)
    datamodule.val = Subset(datamodule.train, chosen)
    datamodule.train = Subset(datamodule.train, chosen * max(1, -(-STEPS_PER_EPOCH // steps)))
    datamodule.test = datamodule.unlabelled = None
    datamodule.train_transforms = datamodule.eval_transforms
    datamodule.weights = None
