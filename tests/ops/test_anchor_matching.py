import pytest
import torch
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from torchvision.models.detection._utils import Matcher as TorchvisionMatcher

from pixvox.ops import Matcher, balanced_sample


@pytest.mark.parametrize("low_quality", [False, True])
def test_matcher_equals_torchvision_with_ties(low_quality):
    generator = torch.Generator().manual_seed(0)
    quality = torch.randint(1, 11, (6, 40), generator=generator) / 10  # few values: ties in both directions
    expected = TorchvisionMatcher(0.7, 0.3, low_quality)(quality)
    assert torch.equal(Matcher(0.7, 0.3, low_quality)(quality), expected)


def test_an_object_below_the_thresholds_claims_all_its_best_predictions():
    quality = torch.tensor([[0.1, 0.2, 0.2, 0.0], [0.0, 0.25, 0.0, 0.9]])
    assert Matcher(0.7, 0.3)(quality).tolist() == [-1, -1, -1, 0 + 1]
    assert Matcher(0.7, 0.3, True)(quality).tolist() == [-1, 1, 0, 1]


def test_an_object_that_nothing_overlaps_claims_nothing():
    quality = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.8, 0.1]])
    assert Matcher(0.7, 0.3, True)(quality).tolist() == [-1, 1, -1]


def test_no_objects_means_background():
    assert Matcher(0.7, 0.3, True)(torch.zeros(0, 3)).tolist() == [-1, -1, -1]
    assert Matcher(0.7, 0.3, True)(torch.zeros(2, 0)).tolist() == []
    with pytest.raises(ValueError, match="low_threshold"):
        Matcher(0.3, 0.7)


def test_sampling_draws_as_torchvision_does():
    matches = torch.randint(-2, 3, (200,), generator=torch.Generator().manual_seed(0))
    labels = torch.where(matches >= 0, 1, torch.where(matches == -1, 0, -1)).float()
    torch.manual_seed(5)
    theirs = BalancedPositiveNegativeSampler(64, 0.25)([labels])
    positives, negatives = balanced_sample(matches, 64, 0.25, torch.Generator().manual_seed(5))
    assert torch.equal(positives.sort()[0], theirs[0][0].nonzero()[:, 0])
    assert torch.equal(negatives.sort()[0], theirs[1][0].nonzero()[:, 0])


def test_background_fills_up_what_objects_leave():
    matches = torch.tensor([3] + [-1] * 9 + [-2] * 5)
    positives, negatives = balanced_sample(matches, 8, 0.5)
    assert positives.tolist() == [0]
    assert len(negatives) == 7
    assert (matches[negatives] == -1).all()
    assert [len(part) for part in balanced_sample(torch.zeros(0, dtype=torch.int64), 8, 0.5)] == [0, 0]
