import pytest

from pixvox.configuration import compose
from pixvox.data.datamodule import DataModule
from pixvox.data.overfit import STEPS_PER_EPOCH, overfit
from pixvox.data.synthetic.shapes import Shapes
from pixvox.data.transforms.flip import RandomFlip
from pixvox.errors import DataError
from pixvox.training.train import train

pytestmark = pytest.mark.usefixtures("no_pictures")


def module(count=6, batch_size=4):
    data = Shapes(num_images=count, seed=0, image_size=32, radius=(4.0, 6.0))
    return DataModule(
        train=data, val=Shapes(num_images=2, seed=1), train_transforms=RandomFlip(), batch_size=batch_size
    )


@pytest.mark.parametrize(("count", "batch", "steps"), [(1, 1, 25), (3, 3, 25), (6, 4, 25)])
def test_training_and_validation_see_the_same_images_without_augmentation(count, batch, steps):
    data = module()
    overfit(data, count)
    assert data.train_transforms is data.eval_transforms
    assert (data.batch_size, len(data.val)) == (batch, count)
    assert {data.train.source(i) for i in range(len(data.train))} == {
        data.val.source(i) for i in range(count)
    }
    assert len(data.train) // batch >= steps == STEPS_PER_EPOCH


def test_more_images_than_there_are_is_refused():
    with pytest.raises(DataError, match="overfit_images=7, but 6 training images"):
        overfit(module(), 7)


SMALL = ["backbone=simple", "data=shapes", "data.train.num_images=4", "num_workers=0", "logger=none",
         "trainer.accelerator=cpu", "overfit_images=1"]  # fmt: skip
TWO = [*SMALL, "backbone.channels=[24,48,96]", "backbone.strides=[2,4,8]", "data.train.image_size=[128,144]",
       "data.train.count=[3,3]", "data.train.radius=[20,26]", "data.train.overlap=0"]  # fmt: skip
HEADS = {
    "maskrcnn": ["head=maskrcnn", "neck.out_channels=48", "neck.extra_level=false", "head.box_features=128",
                 "head.anchor_sizes=[[32],[42],[54]]", "head.mask_channels=48", "head.mask_convs=4",
                 "head.num_proposals=[100,50]", "head.num_candidates=[200,100]", "head.rpn_samples=64",
                 "head.box_samples=64", "head.positive_fraction=0.5", "head.box_levels=2",
                 "head.positive_iou=0.7"],
    "fcn": ["head=fcn", "data.train.task=semantic"],
    "hybrid": ["head=hybrid", "neck.out_channels=48", "neck.coarsest_channels=64", "head.channels=96",
               "head.num_layers=2", "head.num_heads=4", "head.feedforward=192", "head.dropout=0",
               "head.num_queries=20", "head.mask_convs=1", "learning_rate=1e-3"],
}  # fmt: skip


SCORES = {"maskrcnn": "mean_matched_IoU", "fcn": "mIoU", "hybrid": "mean_matched_IoU"}


@pytest.mark.parametrize(("head", "rate"), [("fcn", 3e-3), ("hybrid", 3e-4)])
def test_the_head_says_how_fast_to_learn_by_heart(head, rate):
    chosen = [f"head={head}", "overfit_images=1"]
    assert compose("train", chosen).optimizer.lr == rate
    assert compose("train", [*chosen, "learning_rate=1e-2"]).optimizer.lr == 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("head", sorted(HEADS))
def test_one_image_is_learned_by_heart_in_a_hundred_steps(head, seed, tmp_path):
    run = train([*TWO, *HEADS[head], f"seed={seed}", f"data.train.seed={seed}"], runs_dir=str(tmp_path))
    assert run.summary["steps"] == 100
    assert run.summary["last"].get("F1_50", 1.0) == 1.0  # every object is found, and nothing else
    assert run.summary["last"][SCORES[head]] >= 0.95
