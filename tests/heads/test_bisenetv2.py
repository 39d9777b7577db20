"""BiSeNet V2 computes what CoinCheung's computed (see tests/fixtures/semantic_networks)."""

import torch

from formula import assert_every_second_pixel, fill, recorded, uniform
from pixvox.models import create_model

BLOCKS = [f"backbone.stages.{stage}.{i}" for stage, count in enumerate((2, 2, 4)) for i in range(count)]
PARTS = [
    *("backbone.detail", "backbone.stem"),
    *(f"{block}.{part}" for block in BLOCKS for part in ("layers", "shortcut")),
    "backbone.context",
    *(f"head.aggregation.{branch}_{what}" for what in ("detail", "context") for branch in ("fine", "coarse")),
    "head.aggregation.last",
    *("head.classifier", "head.aux_classifiers"),
]


def test_scores_and_auxiliary_scores_equal_the_reference():
    wanted, names = recorded("bisenetv2")
    model = fill(create_model("bisenetv2", num_classes=3), PARTS, names)
    model.head.gives_aux = True
    with torch.no_grad():
        outputs = model(uniform("image", (1, 3, 64, 96)))
    for name, maps in {"logits": outputs["logits"], **outputs["aux_logits"]}.items():
        assert_every_second_pixel(maps, wanted.pop(name))
    assert not wanted


def test_blocks_begin_as_their_shortcuts():
    block = create_model("bisenetv2", backbone__width=0.25).backbone.stages[0][1].eval()
    x = torch.rand(1, 8, 5, 6)
    assert torch.equal(block(x), x)
