"""RegSeg computes what its author's computed (see tests/fixtures/semantic_networks)."""

import pytest
import torch

from formula import assert_every_second_pixel, fill, recorded, uniform
from pixvox.errors import ConfigError
from pixvox.models import create_model

BLOCK = ("reduce", "spread", "norm", "expand", "attention", "shortcut")
"""Parts of a D block in the reference's order."""

BLOCKS = [f"backbone.stages.{stage}.{i}" for stage, count in enumerate((1, 3, 14)) for i in range(count)]
PARTS = [
    "backbone.stem",
    *(f"{block}.{part}" for block in BLOCKS for part in BLOCK),
    *("head.laterals.2", "head.laterals.1", "head.laterals.0", "head.middle", "head.fine", "head.classifier"),
]


def test_scores_equal_the_reference_with_as_many_weights():
    wanted, names = recorded("regseg")
    model = create_model("regseg", "regseg", num_classes=3)
    with torch.no_grad():
        fill(model, PARTS, names)
        assert_every_second_pixel(model(uniform("image", (1, 3, 80, 112)))["logits"], wanted["logits"])
    weights = sum(parameter.numel() for parameter in model.parameters())
    assert weights + 16 * (64 + 1) == 3_334_951  # the published 3.33 million, with 19 classes


def test_channels_that_cannot_be_split_and_a_level_alone_are_refused():
    with pytest.raises(
        ConfigError, match=r"48 channels cannot be split in 2 parts of whole groups of 16; .* of 32"
    ):
        create_model("regseg", "regseg", backbone__channels=[16, 16, 32, 48, 48])
    with pytest.raises(ConfigError, match=r"channels needs 5 entries, got \[8\]"):
        create_model("regseg", "regseg", backbone__channels=[8])
    with pytest.raises(ConfigError, match=r"RegSeg joins levels, got one alone of stride \(4, 4\)"):
        create_model("regseg", "simple", backbone__channels=[8], backbone__strides=[4])
