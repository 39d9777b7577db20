"""A student and its teacher, with every head, in images and volumes."""

from dataclasses import replace
from functools import partial

import pytest
import torch

import pixvox
from parity import randomise
from pixvox import create_model, list_heads
from pixvox.errors import ConfigError
from pixvox.methods.mean_teacher import MeanTeacher
from pixvox.structures import Batch, Geometry, Instances
from pixvox.training.train import train
from small_heads import over_any_backbone, slow_if_alike, small
from small_runs import TINY, logged

pytestmark = pytest.mark.usefixtures("no_pictures")

SIZES = {2: (48, 64), 3: (16, 32, 48)}
HEADS = over_any_backbone()
OF_OBJECTS = list_heads(task="instance")
CASES = [(head, dims) for dims in (2, 3) for head in over_any_backbone(dims)]
SGD = partial(torch.optim.SGD, lr=0.1)


def _model(head, dims, **options):
    torch.manual_seed(0)
    backbone = {"backbone__channels": [8, 8, 16], "backbone__strides": [2, 4, 8], "backbone__norm": "group"}
    given = small(head, **backbone, **options)
    return create_model(
        head=head, backbone="simple", num_classes=2, spatial_dims=dims, in_channels=1, **given
    )


def _method(model, **options):
    return MeanTeacher(model, SGD, **{"warmup_steps": 0, "rampup_steps": 0, **options}).train()


def _batch(dims, valid=None):
    size = SIZES[dims]
    generator = torch.Generator().manual_seed(3)
    images = torch.rand(2, 1, *size, generator=generator)
    geometries = [Geometry.identity(size), Geometry(size, valid or size, valid or size)]
    return Batch(images, None, geometries, views=[images * 0.5 + 0.3])


def _case(head, dims):
    """A teacher that is not at its beginning, where some heads are sure that nothing is there."""
    model = _model(head, dims)
    if head != "maskrcnn":  # whose masks are half full at the beginning, and empty at random weights
        randomise(model.head)
    return _method(model, threshold=0.0), _batch(dims)


def test_terms_of_the_loss_on_pseudo_labels_have_factors_of_their_own():
    method, batch = _case("maskrcnn", 2)
    strong = replace(batch, images=batch.views[0], targets=method.pseudo_labels(batch).targets)
    torch.manual_seed(5)
    _, terms, _ = method._losses(method.segmenter, strong)
    method.unsupervised_terms = {"mask": 0.0, "box": 0.5}
    torch.manual_seed(5)
    expected = sum(terms.values()) - terms["mask"] - 0.5 * terms["box"]
    assert terms["mask"] > 0 and method.taught(strong).item() == pytest.approx(expected.item(), rel=1e-5)
    method.unsupervised_terms = {"masks": 0.0}
    with pytest.raises(ConfigError, match="the loss has no term 'masks'; it has .*mask"):
        method.taught(strong)


@pytest.mark.parametrize(("head", "dims"), [slow_if_alike(*case) for case in CASES])
def test_a_teacher_of_any_head_gives_labels_and_its_student_learns_from_them(head, dims):
    method, batch = _case(head, dims)
    loss, facts = method.learn_from_teacher(batch)
    if head in OF_OBJECTS:
        assert all((each.masks.areas() > 0).all() for each in method.pseudo_labels(batch).targets)
    kept = facts.get("pseudo_instances", facts.get("pseudo_share"))
    assert kept > 0, "a teacher without a single label would teach nothing"
    before = {name: value.clone() for name, value in method.segmenter.named_parameters()}
    optimizer = SGD(method.segmenter.parameters())
    loss.backward()
    assert all(parameter.grad is None for parameter in method.teacher.parameters())
    optimizer.step()
    changed = [
        name for name, value in method.segmenter.named_parameters() if not torch.equal(value, before[name])
    ]
    assert any(name.startswith("backbone.") for name in changed) and any(
        name.startswith("head.") for name in changed
    )


@pytest.mark.parametrize("head", OF_OBJECTS)
def test_images_without_labels_teach_nothing_at_all(head):
    method = _method(_model(head, 2), threshold=1.0)
    loss, facts = method.learn_from_teacher(_batch(2))
    assert facts["pseudo_instances"] == 0
    loss.backward()
    gradients = [p.grad.abs().max() for p in method.segmenter.parameters() if p.grad is not None]
    assert max(gradients) < 1e-6, "what is not known must teach neither objects nor background"


@pytest.mark.parametrize("head", ["maskrcnn", "mask2former", "solov2"])
def test_images_without_labels_may_teach_background(head):
    method = _method(_model(head, 2), threshold=1.0, without_labels="background")
    loss, _ = method.learn_from_teacher(_batch(2))
    loss.backward()
    assert max(p.grad.abs().max() for p in method.segmenter.parameters() if p.grad is not None) > 1e-4


@pytest.mark.parametrize("task", ["semantic", "panoptic"])
def test_mask2former_teaches_classes_and_segments(task):
    options = {"is_thing": [True, False]} if task == "panoptic" else {}
    model = _model("mask2former", 2, task=task, **options)
    randomise(model.head)
    method = _method(model, threshold=0.0)
    loss, facts = method.learn_from_teacher(_batch(2))
    loss.backward()
    assert facts.get("pseudo_share", facts.get("pseudo_instances")) > 0 and loss > 0


@pytest.mark.parametrize("head", ["fcn", "mask2former"])
def test_asking_for_probabilities_changes_no_class(head):
    model = _model(head, 2, **({"task": "semantic"} if head == "mask2former" else {})).eval()
    randomise(model.head)
    batch = _batch(2)
    with torch.no_grad():
        plain = model.segment(batch)
        model.head.gives_probabilities = True
        told = model.segment(batch)
    for one, other in zip(plain, told, strict=True):
        assert torch.equal(one.class_map, other.class_map)
        assert other.probabilities.min() >= 0 and other.probabilities.sum(dim=0).max() <= 1 + 1e-5


def test_boxes_alone_teach_boxes():
    method = _method(_model("deformable_detr", 2, masks=False, neck__mask_channels=None), threshold=0.0)
    loss, facts = method.learn_from_teacher(_batch(2))
    loss.backward()
    assert facts["pseudo_instances"] > 0 and loss > 0


def test_the_teacher_sees_the_weak_view_and_the_student_the_strong_one(monkeypatch):
    method, batch = _case("fcn", 2)
    seen = {}
    for name in ("teacher", "segmenter"):
        model = getattr(method, name)
        monkeypatch.setattr(
            model, "normalize", lambda images, *rest, name=name: seen.setdefault(name, images), raising=True
        )
    method.learn_from_teacher(batch)
    assert torch.equal(seen["teacher"], batch.images) and torch.equal(seen["segmenter"], batch.views[0])


def test_labels_lie_in_the_padded_frame_and_not_in_the_padding():
    for head in ("maskrcnn", "fcn"):
        method = _method(_model(head, 2), threshold=0.0)
        labels = method.pseudo_labels(_batch(2, valid=(40, 50)))
        if head == "fcn":
            assert (labels.targets[1, 40:] == 255).all() and (labels.targets[1, :, 50:] == 255).all()
            assert (labels.targets[1, :40, :50] != 255).all() and (labels.targets[0] != 255).all()
        else:
            padded = labels.targets[1]
            assert padded.size == SIZES[2] and len(padded)
            assert padded.boxes[:, 2].max() <= 50 and padded.boxes[:, 3].max() <= 40


@pytest.mark.parametrize(
    ("step", "weight"),
    [(0, 0.0), (499, 0.0), (500, 0.0), (1500, 0.4), (3000, 1.0), (5500, 2.0), (99_999, 2.0)],
)
def test_the_weight_of_unlabelled_images_waits_and_then_rises(step, weight):
    method = MeanTeacher(_model("fcn", 2), SGD, warmup_steps=500, rampup_steps=5000, unsupervised_weight=2.0)
    assert method.weight_at(step) == pytest.approx(weight)


def test_without_ramp_the_weight_is_there_at_once():
    method = MeanTeacher(_model("fcn", 2), SGD, warmup_steps=3, rampup_steps=0)
    assert [method.weight_at(step) for step in (2, 3)] == [0.0, 1.0]


def test_the_teacher_is_the_average_of_the_student_and_has_its_buffers(monkeypatch):
    torch.manual_seed(0)
    model = create_model("fcn", "simple", num_classes=2, in_channels=1, backbone__channels=[4, 8],
                         backbone__strides=[2, 4])  # fmt: skip
    method = MeanTeacher(model, SGD, decay=0.9, decay_warmup=False)
    start = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for value in model.state_dict().values():
            value.add_(1)
    monkeypatch.setattr(MeanTeacher, "global_step", 7)
    method.update_teacher()
    parameters = dict(model.named_parameters())
    for name, value in method.teacher.state_dict().items():
        expected = 0.9 * start[name] + 0.1 * (start[name] + 1) if name in parameters else start[name] + 1
        torch.testing.assert_close(value, expected.to(value.dtype))


@pytest.mark.parametrize(("step", "share"), [(0, 0.0), (1, 0.5), (3, 0.75), (10_000, 0.999)])
def test_a_young_teacher_forgets_its_random_start(step, share, monkeypatch):
    method = MeanTeacher(_model("fcn", 2), SGD)
    with torch.no_grad():
        for own, new in zip(method.teacher.parameters(), method.segmenter.parameters(), strict=True):
            own.fill_(1.0)
            new.fill_(0.0)
    monkeypatch.setattr(MeanTeacher, "global_step", step)
    method.update_teacher()
    assert all(value.min().item() == pytest.approx(share) for value in method.teacher.parameters())


def test_the_teacher_predicts_even_while_the_student_trains():
    method = _method(_model("maskrcnn", 2))
    assert method.segmenter.training and not any(module.training for module in method.teacher.modules())


def test_thresholds_of_classes_go_by_name():
    model = _model("fcn", 2)
    model.class_names = ("cell", "dust")
    method = MeanTeacher(model, SGD, class_thresholds={"dust": 0.4, 0: 0.5})
    assert method.threshold.classes == {1: 0.4, 0: 0.5}
    with pytest.raises(ConfigError, match="'yeast' is no class; there are cell, dust"):
        MeanTeacher(model, SGD, class_thresholds={"yeast": 0.4})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmup_steps": -1}, "warmup_steps must be at least 0"),
        ({"decay": 1.5}, "decay must be from 0 to 1"),
        ({"threshold": 7.0}, "threshold must be from 0 to 1"),
        ({"ignore_above": -1.0}, "ignore_above must be from 0 to 1"),
    ],
)
def test_mistakes_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        MeanTeacher(_model("fcn", 2), SGD, **options)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return train(TINY, run_dir=str(tmp_path_factory.mktemp("runs") / "run"))


def test_a_run_goes_over_pairs_and_tells_what_it_learned_from(run):
    steps = [row for row in logged(run) if "train/loss" in row]
    assert len(steps) == 2 * 2  # five unlabelled images in whole batches of two
    assert [row["train/unsupervised_weight"] for row in steps] == [0.0, 0.0, 0.0, 0.5]
    assert ["train/unsupervised_loss" in row for row in steps] == [False, False, True, True]
    last = steps[-1]
    total = last["train/supervised_loss"] + 0.5 * last["train/unsupervised_loss"]
    assert last["train/loss"] == pytest.approx(total, rel=1e-4)
    assert last["train/pseudo_threshold"] == pytest.approx(0.1)
    assert 0 < last["train/pseudo_share"] <= 1 and 0 <= last["train/pseudo_accuracy"] <= 1


def test_the_teacher_moves_once_per_step_of_the_optimiser(tmp_path, monkeypatch):
    moved = []
    update = MeanTeacher.update_teacher
    monkeypatch.setattr(
        MeanTeacher, "update_teacher", lambda self: (moved.append(self.global_step), update(self))
    )
    train([*TINY, "accumulate_grad_batches=2", "epochs=3"], run_dir=str(tmp_path / "run"))
    assert moved == [0, 1, 2]  # two batches in each epoch


def test_thresholds_of_classes_are_taken_from_the_command_line(tmp_path):
    never = "method.class_thresholds={background: 1.0, circle: 1.0, rectangle: 1.0, triangle: 1.0}"
    steps = [
        row for row in logged(train([*TINY, never], run_dir=str(tmp_path / "run"))) if "train/loss" in row
    ]
    assert [row["train/pseudo_share"] for row in steps if "train/pseudo_share" in row] == [0.0, 0.0]
    with pytest.raises(ConfigError, match="'square' is no class; there are background, circle"):
        train([*TINY, "method.class_thresholds={square: 0.5}"], run_dir=str(tmp_path / "other"))


def test_the_teacher_is_what_is_given_out(run):
    state = torch.load(run.dir / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    model = pixvox.load(run.dir / "checkpoints" / "last.ckpt")
    differs = False
    for name, value in model.named_parameters():
        assert torch.equal(value, state[f"teacher.{name}"])
        differs |= not torch.equal(value, state[f"segmenter.{name}"])
    assert differs


def test_a_second_average_of_the_weights_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"averages weights itself; set method\.decay"):
        train([*TINY, "ema_decay=0.9"], run_dir=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_run_without_unlabelled_images_says_what_to_do(tmp_path):
    without = [line for line in TINY if not line.startswith("num_labeled")]
    with pytest.raises(
        pixvox.errors.DataError, match="set num_labeled_images to use the annotations of some"
    ):
        train(without, run_dir=str(tmp_path / "run"))


def test_instances_of_hidden_truth_are_scored(tmp_path):
    run = train(
        [
            *TINY, "head=maskrcnn", "data.train.task=instance", "neck.out_channels=8", "head.box_features=8",
            "head.mask_channels=4", "head.mask_convs=1", "head.score_threshold=0.01", "epochs=1", "warmup_steps=0",
            "method.threshold=0.02",
        ],
        run_dir=str(tmp_path / "run"),
    )  # fmt: skip
    steps = [row for row in logged(run) if "train/pseudo_instances" in row]
    assert steps and any("train/pseudo_precision" in row for row in steps)
    assert all("train/pseudo_recall" in row for row in steps if row["train/pseudo_instances"])


def test_instances_on_a_larger_canvas_stay_where_they_are():
    instances = Instances(masks=torch.eye(3).bool()[None], scores=torch.tensor([0.5]))
    larger = instances.on_canvas((5, 4))
    assert larger.size == larger.masks.size == (5, 4) and larger.scores.tolist() == [0.5]
    assert torch.equal(larger.masks.dense()[0, :3, :3], torch.eye(3).bool())
