import copy

import pytest
import torch

from pixvox.errors import ConfigError
from pixvox.gradient_checkpointing import recompute_blocks
from pixvox.models import create_model
from pixvox.structures import Instances
from toys import toy_segmenter

SMALL = {
    "fcn": {"dropout": 0.5},
    "maskrcnn": {"anchor_sizes": [[8], [16], [32]], "box_features": 16, "mask_channels": 8, "mask_convs": 2,
                 "num_proposals": [20, 20], "num_candidates": [40, 40], "rpn_samples": 16, "box_samples": 16},
}  # fmt: skip


def model(head="fcn", dims=2, backbone="simple"):
    torch.manual_seed(0)
    parts = {"backbone__channels": [8, 16], "backbone__strides": [2, 4], "backbone__blocks": 2}
    parts = parts if backbone == "simple" else {}
    if head == "maskrcnn":
        parts.update(neck__out_channels=8)
    return create_model(head, backbone, 2, dims, 1, **SMALL[head], **parts).train()


def case(head, dims):
    size = (8, 16, 24)[-dims:]
    images = torch.rand(2, 1, *size, generator=torch.Generator().manual_seed(1))
    if head == "fcn":
        return images, (images[:, 0] > 0.5).long()
    near, far = [2.0] * dims, [float(side - 2) for side in size[::-1]]
    masks = torch.zeros((1, *size), dtype=torch.bool)
    masks[(slice(None), *[slice(2, side - 2) for side in size])] = True
    one = Instances(boxes=torch.tensor([near + far]), labels=torch.tensor([1]), masks=masks)
    return images, [one, one]


def learn(segmenter, images, targets, steps=2):
    """Return losses, gradients and all buffers after some steps."""
    optimizer = torch.optim.SGD(segmenter.parameters(), lr=0.01)
    torch.manual_seed(7)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = sum(segmenter.loss(images, targets).values())
        loss.backward()
        losses.append(loss.detach())
        optimizer.step()
    gradients = {name: p.grad for name, p in segmenter.named_parameters() if p.grad is not None}
    return (
        losses,
        gradients,
        {name: buffer.clone() for name, buffer in segmenter.named_buffers()},
        torch.rand(1),
    )


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("head", ["fcn", "maskrcnn"])
def test_losses_gradients_statistics_and_random_numbers_are_those_of_plain_training(head, dims):
    plain, twice = model(head, dims), model(head, dims)
    assert recompute_blocks(twice)
    expected, got = learn(plain, *case(head, dims)), learn(twice, *case(head, dims))
    assert len(got[1]) == len(expected[1]) > 10
    # with dropout: the second computation drops the same channels; batch norms count each step once
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7)
    counts = [value for name, value in got[2].items() if name.endswith("num_batches_tracked")]
    assert counts and all(count == 2 for count in counts)


@pytest.mark.parametrize("dims", [2, 3])
def test_network_of_timm_is_computed_twice_too(dims):
    plain, twice = (model("fcn", dims, "resnet18") for _ in range(2))
    assert len(recompute_blocks(twice)) == 8
    images = torch.rand(2, 1, *(32, 48, 64)[-dims:])
    labels = (images[:, 0] > 0.5).long()
    expected, got = learn(plain, images, labels, 1), learn(twice, images, labels, 1)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


def kept_bytes(segmenter, images, targets):
    """Return the bytes that a step keeps for its gradients, each storage once."""
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        sum(segmenter.loss(images, targets).values())
    weights = {p.untyped_storage().data_ptr() for p in segmenter.parameters()}
    return sum(size for place, size in storages.items() if place not in weights)


def test_fewer_bytes_are_kept():
    images = torch.rand(2, 1, 64, 96)
    labels = torch.zeros(2, 64, 96, dtype=torch.long)
    plain, twice = model(), model()
    recompute_blocks(twice)
    assert kept_bytes(twice, images, labels) < 0.7 * kept_bytes(plain, images, labels)


def test_frozen_parts_stay_frozen():
    segmenter = model()
    recompute_blocks(segmenter)
    segmenter.backbone.eval()
    before = copy.deepcopy(segmenter.backbone.state_dict())
    learn(segmenter, *case("fcn", 2), steps=1)
    buffers = dict(segmenter.backbone.named_buffers())
    assert all(torch.equal(before[name], buffer) for name, buffer in buffers.items())


def test_copies_compute_with_their_own_weights():
    segmenter = model()
    recompute_blocks(segmenter)
    other = copy.deepcopy(segmenter)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    images = torch.rand(1, 1, 16, 24)
    assert other.eval()(images)["logits"].abs().max() == 0
    assert segmenter.eval()(images)["logits"].abs().max() > 0


def test_names_of_weights_stay():
    twice = model()
    recompute_blocks(twice)
    assert list(twice.state_dict()) == list(model().state_dict())


def test_model_without_blocks_is_refused():
    with pytest.raises(ConfigError, match="gradient_checkpointing=true: neither ToyBackbone nor"):
        recompute_blocks(toy_segmenter("semantic"))
