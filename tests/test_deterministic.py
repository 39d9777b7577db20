import pytest
import torch

from pixvox.training.train import train
from pixvox.weights.checkpoint import read_torch_file

pytestmark = pytest.mark.usefixtures("no_pictures")

DATA = [
    "data=shapes", "data.train.num_images=4", "data.val.num_images=1", "data.train.radius=[5,8]",
    "data.train.image_size=[32,48]", "image_size=[32,48]", "batch_size=2", "num_workers=0", "backbone=simple",
    "backbone.channels=[8,16]", "backbone.strides=[4,8]", "trainer.accelerator=cpu", "logger=none",
    "deterministic=true", "max_steps=4", "learning_rate=1e-2",
]  # fmt: skip
HEADS = {
    "fcn": ["head=fcn", "data.train.task=semantic", "head.dropout=0.5"],
    "maskrcnn": ["head=maskrcnn", "neck.out_channels=8", "neck.extra_level=false", "head.anchor_sizes=[[8],[16]]",
                 "head.box_features=16", "head.mask_channels=8", "head.mask_convs=1", "head.num_proposals=[20,20]",
                 "head.num_candidates=[40,40]", "head.rpn_samples=16", "head.box_samples=16", "head.box_levels=2"],
}  # fmt: skip


def weights(folder, head, seed):
    run = train([*DATA, *HEADS[head], f"seed={seed}"], runs_dir=str(folder))
    return read_torch_file(run.dir / "checkpoints" / "last.ckpt")["state_dict"]


@pytest.mark.parametrize("head", ["fcn", pytest.param("maskrcnn", marks=pytest.mark.slow)])
def test_same_seed_gives_the_same_bits_and_another_seed_others(head, tmp_path):
    try:
        first, again, other = (weights(tmp_path, head, seed) for seed in (1, 1, 2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)
