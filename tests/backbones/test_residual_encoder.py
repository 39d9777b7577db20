from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pixvox.backbones.residual_encoder import ResidualEncoder
from pixvox.data.fingerprint import Fingerprint
from pixvox.data.metadata import Metadata

RECORDED = Path(__file__).parents[1] / "fixtures" / "residual_encoder" / "levels.safetensors"

CASES = {
    "plane": {"channels": (3, 4, 4), "strides": (1, 2, 4), "blocks": (1, 2, 1)},
    "volume": {
        "channels": (2, 4, 6), "strides": (1, (1, 2, 2), (2, 4, 4)), "kernel_sizes": ((1, 3, 3), 3, 3),
        "blocks": (1, 1, 2),
    },
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_equals_nnunets(case):
    recorded = {
        key.removeprefix(f"{case}."): value
        for key, value in load_file(RECORDED).items()
        if key.startswith(case)
    }
    encoder = ResidualEncoder(recorded["images"].dim() - 2, 2, **CASES[case])
    encoder.load_state_dict(
        {key.removeprefix("weights."): value for key, value in recorded.items() if key.startswith("weights.")}
    )
    for i, level in enumerate(encoder(recorded["images"])):
        expected = recorded[f"level{i}"]
        assert (level - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("order", [(1, 2, 0), (2, 1, 0)])
def test_permuted_axes_permute_the_maps(order):
    options = {"channels": (3, 4, 5), "blocks": (1, 1, 1)}
    strides, kernels = ((1, 1, 1), (1, 2, 2), (2, 4, 2)), ((1, 3, 3), (1, 3, 3), (3, 3, 5))
    turned = [
        tuple(tuple(entry[axis] for axis in order) for entry in entries) for entries in (strides, kernels)
    ]
    straight = ResidualEncoder(3, 1, strides=strides, kernel_sizes=kernels, **options)
    other = ResidualEncoder(3, 1, strides=turned[0], kernel_sizes=turned[1], **options)
    axes = (0, 1, *(axis + 2 for axis in order))
    state = {key: v.permute(axes) if v.dim() == 5 else v for key, v in straight.state_dict().items()}
    other.load_state_dict(state)
    x = torch.randn(1, 1, 7, 9, 13)
    for level, expected in zip(other(x.permute(axes)), straight(x), strict=True):
        assert torch.allclose(level, expected.permute(axes), atol=1e-5)


@pytest.mark.parametrize("freeze", [0, 1, 2, -1])
def test_frozen_levels_keep_their_weights(freeze):
    encoder = ResidualEncoder(2, 1, (2, 3), (1, 2), blocks=(1, 1), freeze=freeze)
    learning = {
        key.split(".")[0] + key.split(".")[1] for key, v in encoder.named_parameters() if v.requires_grad
    }
    everything = {"stemconv", "stemnorm", "stages0", "stages1"}
    assert learning == {0: everything, 1: {"stages1"}, 2: set(), -1: set()}[freeze]


def test_thick_slices_are_neither_halved_nor_looked_along_at_first():
    thick = Fingerprint(
        Metadata("instance", 3, ("cell",), 1), 9, np.array([[32, 256, 256]]), spacing=(2.0, 0.5, 0.5)
    )
    chosen = {s.key: s.value for s in ResidualEncoder.suggest(thick, {"channels": [4, 8, 8, 8]})}
    assert chosen["strides"] == [[1, 1, 1], [1, 2, 2], [1, 4, 4], [2, 8, 8]]
    assert chosen["kernel_sizes"] == [[1, 3, 3], [1, 3, 3], [3, 3, 3], [3, 3, 3]]
    encoder = ResidualEncoder(3, 1, (4, 8, 8, 8), **chosen)
    assert [tuple(level.shape[2:]) for level in encoder(torch.zeros(1, 1, 4, 16, 16))][-1] == (2, 2, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strides": (1,)}, "strides needs one entry for each of the 2 entries of channels"),
        ({"strides": (2, 3)}, r"stride \(3, 3\) is not a multiple of the stride before it, \(2, 2\)"),
        ({"out_levels": (2,)}, r"out_levels must be of 0 to 1, got \[2\]"),
        ({"freeze": 3}, "freeze=3: it is a number of levels from 0 to 2"),
    ],
)
def test_refuses_what_does_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        ResidualEncoder(**{"channels": (2, 3), "strides": (1, 2), **options})
