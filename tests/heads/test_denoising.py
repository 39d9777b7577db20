"""Denoising queries start where objects are, plus noise, and see nothing that would give the answer away."""

import pytest
import torch

from pixvox.heads import denoising
from pixvox.heads.denoising import NOTHING, Denoising, draw_noise, separate, shift_boxes
from pixvox.losses.set_prediction import SetTargets


def _truth(count, dims=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    centre = torch.rand(count, dims, generator=generator) * 0.4 + 0.3
    side = torch.rand(count, dims, generator=generator) * 0.3 + 0.1
    labels = torch.randint(5, (count,), generator=generator)
    return SetTargets(labels, torch.cat([centre, side], dim=1), torch.zeros(0, 2 * dims))


def _generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.mark.parametrize("dims", [2, 3])
def test_without_noise_queries_are_the_objects(dims):
    module = Denoising(5, 8, number=7, noise_scale=0.0)
    truths = [_truth(3, dims), _truth(1, dims, seed=1)]
    noised = module(truths, 4, _generators(0, 1))
    assert noised.objects.tolist() == [[0, 1, 2] * 2, [0, NOTHING, NOTHING] * 2]
    assert torch.allclose(noised.boxes[0], truths[0].boxes.repeat(2, 1), atol=1e-6)
    assert torch.equal(noised.content[0, :3], module.labels(truths[0].labels))
    assert (noised.content[1, 1:3] == 0).all()
    assert torch.allclose(noised.boxes[1, 1:3], torch.tensor(0.5))


def test_boxes_move_by_at_most_the_scale_and_labels_change_at_half_of_it():
    module = Denoising(5, 8, number=6000, noise_scale=0.4)
    truth = _truth(3)
    noised = module([truth], 1, _generators(0))
    objects = noised.objects[0]
    moved = noised.boxes[0] - truth.boxes[objects]
    extent = truth.boxes[objects][:, 2:].repeat(1, 2) * torch.tensor([0.5, 0.5, 1.0, 1.0])
    share = (moved / extent).abs()
    assert 0.39 < share.max() <= 0.4 + 1e-4
    changed = (noised.content[0] != module.labels(truth.labels)[objects]).any(dim=1).float().mean()
    # A fifth of the labels is drawn anew, of which a fifth draws itself.
    assert changed == pytest.approx(0.2 * 0.8, abs=0.02)


def test_noise_never_leaves_the_image():
    boxes = torch.tensor([[0.0, 1.0, 0.9, 1.0]])
    shifted = shift_boxes(boxes, torch.rand(50, 1, 4), scale=1.0, far=True)
    assert shifted.min() == 0 and shifted.max() == 1


def test_contrastive_queries_are_moved_farther_and_come_from_nothing():
    module = Denoising(5, 8, number=4000, noise_scale=0.4, contrastive=True)
    truth = _truth(2)
    noised = module([truth], 1, _generators(0))
    objects = noised.objects.unflatten(1, (-1, 4))[0]
    assert objects.shape[0] == 1000
    assert (objects == torch.tensor([0, 1, NOTHING, NOTHING])).all()
    boxes = noised.boxes.unflatten(1, (-1, 4))[0, :, 2:]
    extent = truth.boxes[:, 2:] / 2
    share = ((boxes - truth.boxes)[..., :2] / extent).abs()
    assert share.min() >= 0.4 - 1e-4 and share.max() <= 0.8 + 1e-4


def test_the_noise_of_an_image_does_not_depend_on_its_batch():
    module = Denoising(5, 8, number=12)
    truth = _truth(2)
    alone = module([truth], 3, _generators(7))
    beside = module([_truth(4, seed=3), truth], 3, _generators(5, 7))
    groups = beside.objects.unflatten(1, (3, 4))[1]
    assert (groups[:, :2] == torch.tensor([0, 1])).all()
    boxes = beside.boxes.unflatten(1, (3, 4))[1, :, :2]
    assert torch.equal(boxes, alone.boxes.unflatten(1, (6, 2))[0, :3])


def test_queries_see_their_own_group_and_those_to_match_and_no_other():
    mask = separate(groups=3, width=2, num_queries=4)
    for row in range(10):
        for column in range(10):
            same = row < 6 and column < 6 and row // 2 == column // 2
            assert bool(mask[row, column]) == (column < 6 and not same), (row, column)


def test_nothing_to_denoise_and_too_much_of_it_give_no_queries():
    module = Denoising(5, 8, number=3)
    assert module([_truth(0), _truth(0)], 4, [None, None]) is None
    assert module([_truth(4), _truth(1)], 4, [None, None]) is None


def test_all_processes_make_as_many_groups(monkeypatch):
    monkeypatch.setattr(denoising, "world_max", lambda value: max(value, 5.0))
    noised = Denoising(5, 8, number=10)([_truth(2)], 4, [None])
    assert noised.objects.tolist() == [[0, 1, NOTHING, NOTHING, NOTHING] * 2]


def test_draws_come_from_the_generator_of_the_image():
    first, again = (draw_noise(2, 3, 6, 4, *_generators(1), torch.device("cpu")) for _ in range(2))
    assert torch.equal(first.shifts, again.shifts) and torch.equal(first.labels, again.labels)
    assert first.shifts.shape == (2, 3, 6) and first.flips.shape == (2, 3)


def test_a_negative_number_is_refused():
    with pytest.raises(ValueError, match="0 queries switch denoising off"):
        Denoising(5, 8, number=-1)
