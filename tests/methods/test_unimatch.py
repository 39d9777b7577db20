"""Two strong views that learn one set of labels."""

from functools import partial

import pytest
import torch

from parity import randomise
from pixvox import create_model
from pixvox.errors import ConfigError
from pixvox.methods.unimatch import UniMatch
from pixvox.structures import Batch, Features, Geometry
from pixvox.training.train import train
from small_runs import TINY, logged

pytestmark = pytest.mark.usefixtures("no_pictures")

SGD = partial(torch.optim.SGD, lr=0.1)
SIZES = {2: (16, 24), 3: (8, 12, 16)}


def _method(dims=2, **options):
    torch.manual_seed(0)
    model = create_model("fcn", "simple", num_classes=3, in_channels=1, spatial_dims=dims, backbone__channels=[8, 8],
                         backbone__strides=[2, 4], backbone__norm="group", norm="group", dropout=0.0)  # fmt: skip
    randomise(model.head)
    return UniMatch(model, SGD, **{"warmup_steps": 0, "rampup_steps": 0, "threshold": 0.0, **options}).train()


def _batch(dims=2):
    size = SIZES[dims]
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(3, 1, *size, generator=generator)
    views = [images + 0.1, images + 0.2]
    return Batch(images, None, [Geometry.identity(size)] * 3, views=views, seeds=[1, 2, 3])


@pytest.mark.parametrize("dims", [2, 3])
def test_both_views_teach_the_student_and_nothing_teaches_the_teacher(dims):
    method = _method(dims)
    loss, facts = method.learn_from_teacher(_batch(dims))
    loss.backward()
    assert facts["pseudo_share"] == 1.0 and loss > 0
    assert all(p.grad is not None for p in method.segmenter.parameters())
    assert all(p.grad is None for p in method.teacher.parameters())


def test_without_disturbance_it_is_the_mean_of_the_views():
    method, batch = _method(dropout=0.0, cut_mix=0.0), _batch()
    loss, _ = method.learn_from_teacher(batch)
    labels = method.pseudo_labels(batch).targets
    each = [method.segmenter.loss(method.segmenter.normalize(view), labels) for view in batch.views]
    expected = sum(sum(terms.values()) for terms in each) / 2
    torch.testing.assert_close(loss, expected)


def test_unsure_pixels_count_with_a_loss_of_zero():
    method, batch = _method(dropout=0.0, cut_mix=0.0), _batch()
    everything, _ = method.learn_from_teacher(batch)
    method.threshold.value = 0.5
    labels = method.pseudo_labels(batch)
    assert 0 < labels.kept < 1
    loss, facts = method.learn_from_teacher(batch)
    assert facts["pseudo_share"] == labels.kept and 0 < loss < everything


def test_what_one_view_loses_the_other_keeps():
    method = _method(dropout=0.5)
    levels = (torch.ones(8, 20, 4, 6), torch.ones(8, 20, 2, 3))
    features = Features(
        levels, ((2, 2), (4, 4)), torch.zeros(8, 1, 8, 12), (8, 12), torch.tensor([[8, 12]] * 8)
    )
    disturbed = method._disturbed(features, torch.Generator().manual_seed(0))
    for level in disturbed.levels:
        first, second = level[:4, :, 0, 0], level[4:, :, 0, 0]
        assert (first + second == 2).all()
        dropped = (first != 1).any(dim=1)
        assert 0 < dropped.sum() < 4, "some images stay whole"
        assert set(first[dropped].unique().tolist()) == {0.0, 2.0}
        assert (level == level[:, :, :1, :1]).all()


def test_boxes_of_other_images_come_with_their_labels():
    method = _method(cut_mix=1.0)
    images = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 1, 16, 24)
    labels = torch.arange(3).view(3, 1, 1).expand(3, 16, 24)
    geometries = [Geometry.identity((16, 24))] * 2 + [Geometry((16, 24), (10, 12), (10, 12))]
    batch = Batch(images, None, geometries)
    mixed, maps = method._mixed(images, labels, batch, torch.Generator().manual_seed(1))
    assert torch.equal(mixed[:, 0].long(), maps)
    assert (maps[0] == 2).any() and (maps[2] == 0).any() and (maps[1] == 1).all()
    assert torch.equal(labels[0], torch.zeros(16, 24).long()), "what was given stays"
    assert (maps[2, 10:] == 2).all() and (maps[2, :, 12:] == 2).all(), "nothing is pasted into padding"


def test_boxes_come_at_the_range_of_intensities_of_their_new_image():
    method = _method(cut_mix=1.0)
    ranges = torch.tensor([[[0.0, 10.0]], [[100.0, 2100.0]]])
    images = torch.stack([torch.full((1, 16, 24), 5.0), torch.full((1, 16, 24), 600.0)])
    batch = Batch(images, None, [Geometry.identity((16, 24))] * 2, intensity_ranges=ranges)
    labels = torch.tensor([0, 1]).view(2, 1, 1).expand(2, 16, 24)
    mixed, maps = method._mixed(images, labels, batch, torch.Generator().manual_seed(1))
    assert mixed[0, 0][maps[0] == 1].unique().tolist() == [2.5]
    assert mixed[1, 0][maps[1] == 0].unique().tolist() == [1100.0]


def test_the_same_seeds_give_the_same_loss():
    losses = [_method().learn_from_teacher(_batch())[0] for _ in range(2)]
    assert torch.equal(*losses)


def test_objects_are_refused():
    model = create_model("solov2", "simple", num_classes=1, channels=8, num_convs=1)
    with pytest.raises(ConfigError, match="this model for instance; choose method=mean_teacher"):
        UniMatch(model, SGD)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"cut_mix_share": [0.5, 0.2]}, "ascending range"), ({"dropout": 2.0}, "dropout must be from 0 to 1")],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        _method(**options)


def test_a_run_learns_from_two_views(tmp_path):
    options = [line for line in TINY if not line.startswith("method=")]
    run = train([*options, "method=unimatch", "epochs=1", "warmup_steps=0"], run_dir=str(tmp_path / "run"))
    steps = [row for row in logged(run) if "train/unsupervised_loss" in row]
    assert len(steps) == 2 and all("train/pseudo_accuracy" in row for row in steps)
