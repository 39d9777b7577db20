"""Two processes with two images each learn what one with four does; so for every head that is trained."""

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

import pixvox
from pixvox.distributed.sharding import shard
from pixvox.distributed.world import process_rank, world_size
from pixvox.losses.cross_entropy import CrossEntropy
from pixvox.losses.dice import Dice
from pixvox.structures import Instances
from together import together

STEPS = 3
SMALL = {"neck__out_channels": 8, "box_features": 8, "mask_channels": 4, "mask_convs": 1, "num_proposals": [30, 30],
         "box_samples": 8, "rpn_samples": 8, "positive_fraction": 0.5}  # fmt: skip
QUERIES = {"neck__channels": 8, "neck__mask_channels": 4, "neck__num_layers": 1, "neck__num_heads": 2,
           "neck__feedforward": 8, "num_queries": 6, "num_layers": 1, "num_heads": 2, "feedforward": 8,
           "num_points": 30}  # fmt: skip
CELLS = {"neck__out_channels": 8, "num_grids": [4, 3, 2], "channels": 8, "num_convs": 1,
         "scale_ranges": [[0, 10], [5, 40], [8, 99]]}  # fmt: skip
HEADS = {
    "maskrcnn-2d": ("maskrcnn", (32, 40), SMALL),
    "maskrcnn-3d": ("maskrcnn", (8, 24, 32), SMALL),
    "maskdino-2d": ("maskdino", (32, 40), {**QUERIES, "denoising_queries": 7}),
    "maskdino-3d": ("maskdino", (8, 24, 32), {**QUERIES, "denoising_queries": 7}),
    "mask2former-3d": (
        "mask2former",
        (8, 24, 32),
        {**QUERIES, "channels": 8, "weights": {"class": 2.0, "mask": 5.0, "dice": 5.0, "pixel_class": 10.0}},
    ),
    "lw_detr-2d": (
        "lw_detr",
        (32, 40),
        {
            "neck__out_channels": 8,
            "neck__num_blocks": 1,
            "neck__norm": "group",
            "num_queries": 6,
            "groups": 2,
            "num_layers": 2,
            "num_heads": 2,
            "num_cross_heads": 2,
            "feedforward": 8,
            "mask_feedforward": 8,
            "num_points": None,
        },
    ),
    "solov2-2d": ("solov2", (32, 40), {**CELLS, "mask_channels": 8, "kernel_channels": 4}),
    "decoupled_solo-3d": ("decoupled_solo", (8, 24, 32), CELLS),
    "fcn-2d": ("fcn", (24, 32), {"norm": "group", "dropout": 0.0}),
    "fcn-3d": ("fcn", (4, 12, 16), {"norm": "group", "dropout": 0.0}),
}


def _model(case):
    head, size, options = HEADS[case]
    torch.manual_seed(0)
    model = pixvox.create_model(
        head, "simple", num_classes=2, in_channels=1, spatial_dims=len(size), backbone__channels=[8, 8],
        backbone__strides=[2, 4], backbone__norm="group", **options,
    )  # fmt: skip
    if head == "fcn":
        losses = {
            "cross_entropy": CrossEntropy(class_weights=[0.1, 2.0], label_smoothing=0.1),
            "dice": Dice(),
        }
        model.head.losses = torch.nn.ModuleDict(losses)
    return model


def _label_map(size, seed, count):
    label_map = torch.zeros(size, dtype=torch.int64)
    generator = torch.Generator().manual_seed(seed)
    for i in range(count):
        low = [int(torch.randint(0, n // 2, (), generator=generator)) for n in size]
        label_map[tuple(slice(a, a + 2 + n // 4) for a, n in zip(low, size, strict=True))] = i + 1
    return label_map


def _batch(case, step):
    """Return the images of one step over all processes, with unequal targets; the second process may get none."""
    head, size, _ = HEADS[case]
    images = torch.randn(4, 1, *size, generator=torch.Generator().manual_seed(step))
    counts = [(3, 0, 1, 0), (3, 2, 0, 1), (0, 0, 0, 0)][step]
    maps = [_label_map(size, 10 * step + i, count) for i, count in enumerate(counts)]
    if head == "fcn":
        targets = torch.stack([(label_map > 0).long() for label_map in maps])
        targets[1 + step % 2, ..., : 5 + step] = 255
        return images, targets if step < 2 else torch.full_like(targets, 255)
    ids = [label_map.unique()[1:] for label_map in maps]
    return images, [
        Instances(masks=label_map, labels=each % 2) if len(each) else Instances.empty(size)
        for label_map, each in zip(maps, ids, strict=True)
    ]


def _train(case, sharded=False):
    model = _model(case)
    if sharded:
        shard(model, torch.device("cpu"), min_parameters=200)
    whole = DistributedDataParallel(model) if world_size() > 1 and not sharded else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step in range(STEPS):
        images, targets = _batch(case, step)
        mine = list(range(process_rank(), 4, world_size()))
        targets = targets[mine] if torch.is_tensor(targets) else [targets[i] for i in mine]
        losses = whole(images[mine], targets, seeds=[100 * step + i for i in mine])["losses"]
        optimizer.zero_grad()
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        assert all(parameter.grad is not None for parameter in model.parameters())
        optimizer.step()
    state = {name: value.full_tensor() if sharded else value for name, value in model.named_parameters()}
    return {name: value.detach() for name, value in state.items()}


def _train_all():
    return {case: _train(case) for case in HEADS}


def _train_sharded():
    return {case: _train(case, sharded=True) for case in ("maskrcnn-2d", "fcn-3d")}


@pytest.fixture(scope="module")
def one():
    return _train_all()


@pytest.fixture(scope="module")
def two():
    return together(_train_all)


@pytest.mark.parametrize("case", HEADS)
def test_data_parallel_steps_equal_those_of_one_process(case, one, two):
    start = dict(_model(case).named_parameters())
    assert any(not torch.equal(start[name], value) for name, value in one[case].items())
    for rank in range(2):
        for name, value in two[rank][case].items():
            torch.testing.assert_close(value, one[case][name], rtol=0, atol=1e-5, msg=f"rank {rank}: {name}")


def test_sharded_steps_equal_those_of_one_process(one):
    for result in together(_train_sharded):
        for case, parameters in result.items():
            for name, value in parameters.items():
                torch.testing.assert_close(value, one[case][name], rtol=0, atol=1e-5, msg=f"{case}: {name}")


def test_draws_of_an_image_depend_on_its_seed_alone():
    model = _model("maskrcnn-2d").eval()
    images, targets = _batch("maskrcnn-2d", 0)

    def sampled(places, seeds):
        outputs = model(images[places], [targets[i] for i in places], seeds=seeds)
        return [sample["negatives"].tolist() for sample in outputs["rpn"]["samples"]]

    whole = sampled([0, 1, 2, 3], [5, 6, 7, 8])
    torch.manual_seed(1)
    assert sampled([2], [7]) == [whole[2]]
    assert sampled([2], [8]) != [whole[2]]
