import torch

from pixvox.masks import Masks
from pixvox.ops.mask_nms import mask_nms


def _greedy(dense, scores, labels, threshold):
    kept = []
    for i in scores.argsort(descending=True).tolist():
        overlaps = [
            (dense[i] & dense[j]).sum() / (dense[i] | dense[j]).sum() > threshold
            for j in kept
            if labels[i] == labels[j]
        ]
        if not any(overlaps):
            kept.append(i)
    return kept


def test_suppression_equals_the_greedy_rule_on_full_canvases():
    generator = torch.Generator().manual_seed(0)
    for size in ((12, 17), (5, 12, 17)):
        dense = torch.zeros((30, *size), dtype=torch.bool)
        for i in range(30):
            low = [int(torch.randint(0, n // 2, (), generator=generator)) for n in size]
            dense[i][tuple(slice(a, a + n // 2) for a, n in zip(low, size, strict=True))] = True
            dense[i] &= torch.rand(size, generator=generator) > 0.1
        scores, labels = torch.rand(30, generator=generator), torch.arange(30) % 2
        for threshold in (0.2, 0.5):
            expected = _greedy(dense, scores, labels, threshold)
            assert mask_nms(Masks.from_dense(dense), scores, labels, threshold).tolist() == expected
            assert len(expected) < 30


def test_nothing_is_suppressed_among_nothing():
    empty = torch.zeros(0)
    assert mask_nms(Masks.empty((3, 4)), empty, empty.long(), 0.5).tolist() == []
