"""Datasets, transforms and loaders of one experiment."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from pixvox.data.balance import Balance, image_weights
from pixvox.data.cache import CachedDataset, cache_folder
from pixvox.data.collate import Collate
from pixvox.data.concatenation import Concatenation
from pixvox.data.dataset import Dataset, Subset, seeded_subset
from pixvox.data.loader import ResumableLoader
from pixvox.data.metadata import Metadata
from pixvox.data.options import check_options
from pixvox.data.relabel import class_agnostic as without_classes
from pixvox.data.sampler import EpochSampler
from pixvox.data.split import drawn_splits
from pixvox.data.transforms.compose import Compose, Transform, geometric_part
from pixvox.data.transforms.resample import Resample, spacing_per_axis
from pixvox.data.views import EvaluationView, TrainingView, read_sample
from pixvox.errors import DataError
from pixvox.structures import Batch

if TYPE_CHECKING:
    from lightning.pytorch.utilities import CombinedLoader

logger = logging.getLogger(__name__)


class DataModule(LightningDataModule):
    """Give a training its batches.

    Give either datasets, or a ``path`` whose layout is found by ``open_dataset``. Everything random is drawn
    from ``(seed, epoch, index)``: the number of workers changes nothing. The sampler shares images among
    processes by itself, so a ``Trainer`` needs ``use_distributed_sampler=False``; evaluation then sees each
    image exactly once.

    Args:
        train: Images to learn from.
        val: Images to evaluate on, without augmentation, in their original frame.
        test: Images for ``test_dataloader``.
        unlabelled: Images without annotations for semi-supervised methods.
        path: Folder of a dataset, instead of the four above.
        options: Options of ``open_dataset`` for ``path``, such as ``task`` or ``val_fraction``.
        train_transforms: Augmentation; nothing when None.
        strong_transforms: Makes the strong views of unlabelled images; these go through the steps of
            ``train_transforms`` that only move, cut or pad before. It moves nothing.
        eval_transforms: Deterministic steps, such as a resize; nothing when None.
        spacing: Size of a pixel or voxel, one for all axes or per axis in array order, to which all images are
            resampled before other transforms, in the unit of the first training image; None leaves them as they are.
        image_size: Training batches are padded to at least this size, one length or one per axis in array
            order.
        batch_size: Images per process and step.
        eval_batch_size: Images per evaluation step; 1 avoids padding images of different sizes.
        num_workers: Processes that load; 0 loads in the main process.
        seed: Seed of order, augmentation and subsets.
        size_divisor: Padded sizes are multiples of it, one for all axes or per axis in array order; a model
            tells its own as ``segmenter.size_divisor``.
        min_object_size: Smaller objects (pixels or voxels) are not learned.
        num_labeled_images: Size of the seeded subset of ``train`` whose annotations are used: a number, a
            share in (0, 1), or -1 for all. Larger subsets of one seed hold the smaller ones.
        num_unlabeled_images: Size of the seeded subset of unlabelled images: those of ``unlabelled``, those
            of ``train`` without annotations and those whose annotations are not used; a number, a share in
            (0, 1), -1 for all, or 0 for none.
        on_bad_sample: ``"raise"``, or ``"skip"`` to train on the next good image instead of one that cannot
            be read; what was skipped is counted and listed in ``bad_samples()``. Evaluation always raises.
        val_fraction: Share of the annotated images of ``train`` that becomes ``val`` when there is none,
            drawn by seed; 0.2 for a ``path`` when None.
        test_fraction: The same for ``test``; nothing is drawn when None.
        class_agnostic: Learn and score objects whatever their class.
        balance: Over-sample labelled images of rare classes: ``"repeat_factor"`` as in LVIS, or
            ``"inverse_frequency"``; see ``pixvox.data.balance``.
        balance_threshold: With ``"repeat_factor"``, share of the images below which a class is rare.
        cache: Folder of memory-mapped copies of the decoded images, or True for the user's cache folder; see
            ``CachedDataset``.
        cache_type: ``"source"`` keeps every value of an image, ``"float16"`` rounds floats.

    Raises:
        DataError: If there is nothing to train on, or if the parts do not fit together.
    """

    def __init__(
        self,
        train: Dataset | None = None,
        val: Dataset | None = None,
        test: Dataset | None = None,
        unlabelled: Dataset | None = None,
        path: str | Path | None = None,
        options: Mapping[str, Any] | None = None,
        train_transforms: Transform | None = None,
        eval_transforms: Transform | None = None,
        image_size: int | Sequence[int] | None = None,
        batch_size: int = 4,
        eval_batch_size: int = 1,
        num_workers: int = 0,
        seed: int = 42,
        size_divisor: int | Sequence[int] = 32,
        min_object_size: int = 4,
        num_labeled_images: int | float = -1,
        num_unlabeled_images: int | float = 0,
        on_bad_sample: Literal["raise", "skip"] = "raise",
        val_fraction: float | None = None,
        test_fraction: float | None = None,
        class_agnostic: bool = False,
        balance: Balance | None = None,
        balance_threshold: float = 0.1,
        cache: str | Path | bool | None = None,
        cache_type: Literal["source", "float16"] = "source",
        strong_transforms: Transform | None = None,
        spacing: float | Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if on_bad_sample not in ("raise", "skip"):
            raise ValueError(f"on_bad_sample must be 'raise' or 'skip', got {on_bad_sample!r}")
        if path is not None:
            own = {} if val_fraction is None else {"val_fraction": val_fraction}
            options = {"val_fraction": 0.2, **(options or {}), **own}
            (train, val, test, unlabelled), val_drawn = _open_splits(path, options, seed)
            if val_drawn and test is None and test_fraction is not None:
                test_fraction = _share_of_rest(test_fraction, options["val_fraction"])
        if train is None:
            raise DataError("a DataModule needs a train dataset, or the path of a dataset")
        if cache:
            folder = cache_folder() if cache is True else Path(cache)
            skip = on_bad_sample == "skip"
            train = CachedDataset(train, folder, cache_type, num_workers, skip)
            val, test, unlabelled = (
                CachedDataset(part, folder, cache_type, num_workers, skip) if part is not None else None
                for part in (val, test, unlabelled)
            )
        train, val, test = _drawn(train, val, test, val_fraction, test_fraction, seed)
        if class_agnostic:
            train = without_classes(train)
            val = without_classes(val) if val is not None else None
            test = without_classes(test) if test is not None else None
        self.train, self.unlabelled = _labelled_and_not(
            train, unlabelled, num_labeled_images, num_unlabeled_images, seed
        )
        self.val, self.test = val, test
        for name, dataset in (("val", val), ("test", test), ("unlabelled", self.unlabelled)):
            if dataset is not None:
                check_fits(train.metadata, dataset.metadata, name)
        axes = train.metadata.spatial_dims
        if isinstance(image_size, Sequence) and len(image_size) != axes:
            raise DataError(
                f"image_size={list(image_size)} has {len(image_size)} lengths, {train.metadata.name or 'the data'} "
                f"{axes} axes; give one length, or one per axis in array order"
            )
        self.train_transforms, self.eval_transforms = train_transforms, eval_transforms
        self.strong_transforms = strong_transforms
        self.resample = None if spacing is None else _resample(train, spacing)
        if self.resample is not None:
            self.train_transforms = Compose([self.resample, train_transforms])
            self.eval_transforms = Compose([self.resample, eval_transforms])
        self.strong_views = 0  # above 0, training goes over pairs of labelled and unlabelled batches
        self.image_size, self.size_divisor = image_size, size_divisor
        self.batch_size, self.eval_batch_size, self.num_workers = batch_size, eval_batch_size, num_workers
        self.seed, self.min_object_size, self.on_bad_sample = seed, min_object_size, on_bad_sample
        self.weights = image_weights(self.train, balance, balance_threshold) if balance else None
        self._epoch = 0
        self._samplers: list[EpochSampler] = []
        self._views: list[TrainingView] = []

    @property
    def metadata(self) -> Metadata:
        """Task, classes, channels and dimensions of the training data, and the spacing to which they are brought."""
        known = self.train.metadata
        if self.resample is None:
            return known
        steps = spacing_per_axis(self.resample.spacing, known.spatial_dims)
        return replace(known, spacing=steps, unit=self.resample.unit or known.unit)

    def set_epoch(self, epoch: int) -> None:
        """Choose order and augmentation of an epoch; Lightning's loops do so by themselves."""
        self._epoch = epoch
        for sampler in self._samplers:
            sampler.set_epoch(epoch)

    def train_dataloader(self) -> DataLoader[Batch] | CombinedLoader:
        """Return labelled, augmented batches; with ``strong_views``, pairs of ``combined_dataloader``."""
        return self.combined_dataloader() if self.strong_views else self.labelled_dataloader()

    def labelled_dataloader(self) -> DataLoader[Batch]:
        """Return labelled, augmented batches."""
        return self._training_loader(self.train, self.seed)

    def unlabelled_dataloader(self) -> DataLoader[Batch]:
        """Return batches without targets, weakly augmented, with ``strong_views`` strong views of each image.

        Raises:
            DataError: If there are no unlabelled images.
        """
        return self._training_loader(self.check_unlabelled(), self.seed + 1)

    def check_unlabelled(self) -> Dataset:
        """Return the unlabelled images.

        Raises:
            DataError: If there are none.
        """
        if self.unlabelled is None:
            raise DataError(
                "there are no unlabelled images: set num_labeled_images to use the annotations of some images alone, "
                "add images without annotations to the dataset, or raise num_unlabeled_images"
            )
        return self.unlabelled

    def combined_dataloader(self) -> CombinedLoader:
        """Return pairs of batches, ``{"labelled": ..., "unlabelled": ...}``, for semi-supervised methods.

        An epoch ends with the longer of the two. The shorter begins again as often as needed, each time in
        another order and with other augmentation.

        Raises:
            DataError: If there are no unlabelled images.
        """
        from lightning.pytorch.utilities import CombinedLoader

        seeds = {"labelled": self.seed, "unlabelled": self.seed + 1}
        loaders = {"labelled": self.labelled_dataloader(), "unlabelled": self.unlabelled_dataloader()}
        batches = max(map(len, loaders.values()))
        for name, loader in loaders.items():
            if len(loader) < batches:
                dataset = self.train if name == "labelled" else self.check_unlabelled()
                loaders[name] = self._training_loader(dataset, seeds[name], batches)
        return CombinedLoader(loaders, mode="max_size_cycle")

    def val_dataloader(self) -> DataLoader[Batch]:
        """Return batches with ``truths`` in the original frame.

        Raises:
            DataError: If there is no validation split.
        """
        if self.val is None:
            raise DataError("this dataset has no val split; give one, or set val_fraction")
        return self._evaluation_loader(self.val)

    def test_dataloader(self) -> DataLoader[Batch]:
        """Return batches of the test split with ``truths``.

        Raises:
            DataError: If there is no test split.
        """
        if self.test is None:
            raise DataError("this dataset has no test split; give one, or set test_fraction")
        return self._evaluation_loader(self.test)

    def bad_samples(self) -> list[str]:
        """Return what training has skipped so far, one line per unreadable image."""
        return sorted({line for view in self._views for line in view.skipped()})

    def teardown(self, stage: str) -> None:
        """List the images that were skipped."""
        skipped = self.bad_samples()
        if skipped:
            logger.warning("%d unreadable images were skipped:\n%s", len(skipped), "\n".join(skipped))

    def _training_loader(self, dataset: Dataset, seed: int, batches: int | None = None) -> DataLoader[Batch]:
        skip_bad = self.on_bad_sample == "skip"
        if dataset is self.train:
            view = TrainingView(dataset, self.train_transforms, seed, skip_bad)
        else:
            weak = geometric_part(self.train_transforms)
            view = TrainingView(dataset, weak, seed, skip_bad, self.strong_transforms, self.strong_views)
        images = None if batches is None else batches * self.batch_size
        weights = self.weights if dataset is self.train else None
        sampler = EpochSampler(len(dataset), seed, shuffle=True, images=images, weights=weights)
        sampler.set_epoch(self._epoch)
        self._samplers.append(sampler)
        self._views.append(view)
        collate = Collate(self.size_divisor, self.image_size, self.min_object_size)
        # With fewer images than a batch, dropping the last batch would leave nothing.
        drop_last = sampler.per_process > self.batch_size
        return self._loader(view, self.batch_size, sampler, collate, drop_last)

    def _evaluation_loader(self, dataset: Dataset) -> DataLoader[Batch]:
        view = EvaluationView(dataset, self.eval_transforms, Collate(self.size_divisor), self.seed)
        sampler = EpochSampler(len(dataset), self.seed, shuffle=False, batch_size=self.eval_batch_size)
        return self._loader(view, self.eval_batch_size, sampler, view.collate, drop_last=False)

    def _loader(
        self, view: Any, batch_size: int, sampler: EpochSampler, collate: Any, drop_last: bool
    ) -> DataLoader[Batch]:
        return ResumableLoader(
            view,
            batch_size=batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            drop_last=drop_last,
            # Its own generator: drawing the base seed of the workers must not move the global one.
            generator=torch.Generator().manual_seed(self.seed),
            persistent_workers=False,
        )


def _resample(train: Dataset, spacing: float | Sequence[float]) -> Resample:
    """Return what brings all images to a spacing, in the unit of the first one.

    Raises:
        DataError: If the spacing is none, or has another number of axes than the images.
    """
    try:
        spacing_per_axis(spacing, train.metadata.spatial_dims)
        first = read_sample(train, 0)
        step = Resample(spacing, first.unit)
    except ValueError as error:
        raise DataError(f"transforms.spacing: {error}") from error
    step.size_of(first)  # an image without a spacing is told before anything is trained
    return step


def _open_splits(
    path: str | Path, options: dict[str, Any], seed: int
) -> tuple[tuple[Dataset, Dataset, Dataset | None, Dataset | None], bool]:
    """Return train, val, test and unlabelled images, and whether val was drawn from train."""
    from pixvox.data.datasets.layout import split_names
    from pixvox.data.datasets.open import open_dataset

    check_options(options, open_dataset, given=("path", "split"))
    options.setdefault("seed", seed)
    found = split_names(path)
    train = open_dataset(path, "train", **options)
    val = open_dataset(path, "val", **options)
    test = open_dataset(path, "test", **options) if "test" in found else None
    unlabelled = open_dataset(path, "unlabelled", **options) if "unlabelled" in found else None
    return (train, val, test, unlabelled), "val" not in found


def _share_of_rest(test_fraction: float, val_fraction: float) -> float:
    """Return the share of what the val split leaves that is ``test_fraction`` of the whole."""
    if test_fraction + val_fraction >= 1:
        raise DataError(
            f"val_fraction={val_fraction} and test_fraction={test_fraction} leave nothing to train on; together they "
            "must stay below 1"
        )
    return test_fraction / (1 - val_fraction)


def _drawn(
    train: Dataset,
    val: Dataset | None,
    test: Dataset | None,
    val_fraction: float | None,
    test_fraction: float | None,
    seed: int,
) -> tuple[Dataset, Dataset | None, Dataset | None]:
    """Return the splits with those drawn from ``train`` that are asked for and that there are not."""
    given = {"val": (val, val_fraction), "test": (test, test_fraction)}
    shares = {name: share for name, (split, share) in given.items() if split is None and share is not None}
    if not shares:
        return train, val, test
    parts = drawn_splits(train, shares, seed)
    return parts["train"], parts.get("val", val), parts.get("test", test)


def _labelled_and_not(
    train: Dataset,
    unlabelled: Dataset | None,
    num_labeled: int | float,
    num_unlabeled: int | float,
    seed: int,
) -> tuple[Dataset, Dataset | None]:
    """Return the images whose annotations are used, and those that serve without annotations."""
    missing = set(train.unlabelled_indices())
    annotated = [index for index in range(len(train)) if index not in missing]
    if not annotated:
        raise DataError(f"the train split of {train.metadata.name or 'this dataset'} has no annotated image")
    try:
        chosen = [annotated[place] for place in seeded_subset(len(annotated), num_labeled, seed)]
    except ValueError as error:
        raise DataError(f"num_labeled_images: {error}") from error
    if not chosen:
        raise DataError("num_labeled_images=0 leaves nothing to learn from; give a number, or -1 for all")
    labelled = train if len(chosen) == len(train) else Subset(train, chosen)
    if num_unlabeled == 0:
        return labelled, None
    rest = sorted(set(range(len(train))) - set(chosen))
    pools = [Subset(train, rest, unlabelled=True)] if rest else []
    if unlabelled is not None:
        pools.append(Subset(unlabelled, range(len(unlabelled)), unlabelled=True))
    if not pools and num_unlabeled == -1:
        return labelled, None
    if not pools:
        raise DataError(
            f"num_unlabeled_images={num_unlabeled}, but every image is labelled and used; "
            f"lower num_labeled_images, or put images without labels into the dataset"
        )
    pool = Concatenation(pools)
    try:
        return labelled, Subset(pool, seeded_subset(len(pool), num_unlabeled, seed), unlabelled=True)
    except ValueError as error:
        raise DataError(f"num_unlabeled_images: {error}") from error


def check_fits(train: Metadata, other: Metadata, name: str) -> None:
    """Refuse splits that do not go through one model."""
    fields = ("spatial_dims", "in_channels")
    if name != "unlabelled":
        fields = (*fields, "task", "class_names")  # type: ignore[assignment]
    for field in fields:
        ours, theirs = getattr(train, field), getattr(other, field)
        if ours != theirs:
            raise DataError(f"{field} of the splits must agree: train has {ours!r}, {name} has {theirs!r}")
