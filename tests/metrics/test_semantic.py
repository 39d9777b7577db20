import math

import numpy as np
import pytest
import torch

from pixvox.errors import ConfigError, DataError
from pixvox.metrics.semantic import SemanticScores, confusion_counts
from pixvox.structures import Segmentation

SIZES = [(13, 18), (4, 7, 9)]


def random_maps(seed, size, num_classes, count=3):
    generator = np.random.default_rng(seed)
    pairs = []
    for _ in range(count):
        true = generator.integers(0, num_classes, size)
        predicted = np.where(generator.random(size) < 0.6, true, generator.integers(0, num_classes, size))
        true[generator.random(size) < 0.1] = 255
        pairs.append((torch.from_numpy(predicted), torch.from_numpy(true)))
    return pairs


def score(pairs, num_classes, **options):
    metric = SemanticScores(num_classes, **options)
    for predicted, true in pairs:
        metric.update([Segmentation(class_map=predicted)], [Segmentation(class_map=true)])
    return metric


@pytest.mark.parametrize("size", SIZES)
def test_scores_equal_torchmetrics(size):
    from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score, MulticlassJaccardIndex

    pairs = random_maps(0, size, 5)
    results = score(pairs, 5).compute()
    predicted = torch.stack([pair[0] for pair in pairs])
    true = torch.stack([pair[1] for pair in pairs])
    options = {"num_classes": 5, "ignore_index": 255}
    for name, reference in {
        "acc": MulticlassAccuracy(average="micro", **options),
        "macc": MulticlassAccuracy(average="macro", **options),
        "mIoU": MulticlassJaccardIndex(average="macro", **options),
        "fwIoU": MulticlassJaccardIndex(average="weighted", **options),
        "mDice": MulticlassF1Score(average="macro", **options),
    }.items():
        assert results[name] == pytest.approx(float(reference(predicted, true)), abs=1e-6), name


def test_values_worked_by_hand():
    """Truth 0 0 0 1 1 2 and prediction 0 0 1 1 2 2: IoU 2/3, 1/3, 1/2."""
    pairs = [(torch.tensor([[0, 0, 1, 1, 2, 2]]), torch.tensor([[0, 0, 0, 1, 1, 2]]))]
    metric = score(pairs, 3, class_names=("background", "cell", "wall"))
    results = metric.compute()
    assert metric.confusion_matrix.tolist() == [[2, 1, 0], [0, 1, 1], [0, 0, 1]]
    assert results["acc"] == pytest.approx(4 / 6)
    assert results["macc"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert results["mIoU"] == pytest.approx((2 / 3 + 1 / 3 + 1 / 2) / 3)
    assert results["fwIoU"] == pytest.approx((3 * 2 / 3 + 2 / 3 + 1 / 2) / 6)
    assert results["mDice"] == pytest.approx((4 / 5 + 1 / 2 + 2 / 3) / 3)
    assert results["mDice_foreground"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert results["IoU/wall"] == pytest.approx(1 / 2)
    assert results["Dice/cell"] == pytest.approx(1 / 2)


def test_absent_classes_are_left_out():
    """A perfect prediction scores 1 although class 2 appears nowhere; the option counts it as 0."""
    perfect = [(torch.tensor([[0, 1]]), torch.tensor([[0, 1]]))]
    results = score(perfect, 3).compute()
    assert results["mIoU"] == results["macc"] == results["mDice"] == 1.0
    assert math.isnan(results["IoU/2"])
    assert score(perfect, 3, absent_as_zero=True).compute()["mIoU"] == pytest.approx(2 / 3)


def test_class_predicted_but_never_true_counts_as_zero_iou():
    results = score([(torch.tensor([[0, 1]]), torch.tensor([[0, 0]]))], 2).compute()
    assert results["mIoU"] == pytest.approx((1 / 2 + 0) / 2)
    assert results["macc"] == pytest.approx(1 / 2)  # class 1 has no true pixel to be right about


def test_ignored_and_foreign_truth_is_not_scored():
    predicted, true = torch.tensor([[0, 1, 1, 0]]), torch.tensor([[0, 255, 7, -1]])
    metric = score([(predicted, true)], 2)
    assert metric.confusion_matrix.sum() == 1
    assert metric.compute()["acc"] == 1.0


def test_abstaining_is_an_error():
    metric = score([(torch.tensor([[0, 255]]), torch.tensor([[0, 0]]))], 2)
    assert metric.compute()["acc"] == metric.compute()["IoU/0"] == 0.5
    assert metric.confusion_matrix.tolist() == [[1, 0], [0, 0]]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_integer_types_do_not_matter(dtype):
    predicted, true = torch.tensor([[0, 1, 2]]), torch.tensor([[0, 2, 255]])
    counts = confusion_counts(predicted.to(dtype), true.to(dtype), 3, 255)
    assert counts.tolist() == [[1, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]


def test_no_image_is_safe():
    metric = SemanticScores(2)
    assert all(math.isnan(value) for value in metric.compute().values())
    pairs = random_maps(1, (4, 5), 2, 1)
    metric.update([Segmentation(class_map=pairs[0][0])], [Segmentation(class_map=pairs[0][1])])
    metric.reset()
    assert metric.confusion_matrix.sum() == 0


def test_wrong_inputs_are_named():
    with pytest.raises(DataError, match="holds class 3, but there are 2 classes"):
        score([(torch.tensor([[3]]), torch.tensor([[0]]))], 2)
    with pytest.raises(ConfigError, match="no class map"):
        SemanticScores(2).update([Segmentation(class_map=torch.tensor([[0]]))], [_instances()])
    with pytest.raises(ConfigError, match="3 class names"):
        SemanticScores(2, ("a", "b", "c"))


def _instances():
    from pixvox.structures import Instances

    return Segmentation(Instances.empty((1, 1)))


def test_columns_of_the_class_table():
    """Truth 0 0 0 1 1 2 and prediction 0 0 1 1 2 2, as worked by hand above; class 3 is absent."""
    pairs = [(torch.tensor([[0, 0, 1, 1, 2, 2]]), torch.tensor([[0, 0, 0, 1, 1, 2]]))]
    columns = score(pairs, 4, per_class=False).class_columns()
    assert list(columns) == ["IoU", "Dice", "precision", "recall", "share"]
    assert columns["precision"][:3].tolist() == pytest.approx([1, 1 / 2, 1 / 2])
    assert columns["recall"][:3].tolist() == pytest.approx([2 / 3, 1 / 2, 1])
    assert columns["share"].tolist() == pytest.approx([3 / 6, 2 / 6, 1 / 6, 0])
    assert math.isnan(columns["IoU"][3]) and math.isnan(columns["recall"][3])


@pytest.mark.parametrize("ignore_index", [255, -1, 1])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64])
def test_counts_equal_a_plain_loop(dtype, ignore_index):
    generator = torch.Generator().manual_seed(0)
    low = 0 if dtype == torch.uint8 else -3
    predicted, true = torch.randint(low, 9, (2, 5, 7), generator=generator).to(dtype)
    expected = torch.zeros(4, 5, dtype=torch.int64)
    for found, label in zip(predicted.flatten().tolist(), true.flatten().tolist(), strict=True):
        if label != ignore_index and 0 <= label < 4:
            expected[label, found if found != ignore_index and 0 <= found < 4 else 4] += 1
    assert torch.equal(confusion_counts(predicted, true, 4, ignore_index), expected)


def test_more_classes_than_a_byte_holds():
    labels = torch.tensor([[0, 255]], dtype=torch.uint8)
    assert confusion_counts(labels, labels, 300, -1)[255, 255] == 1
