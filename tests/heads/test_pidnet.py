"""PIDNet computes what its authors' computed, its losses too (see tests/fixtures/semantic_networks)."""

import pytest
import torch

from formula import assert_every_second_pixel, fill, recorded, uniform
from parity import assert_near
from pixvox.errors import ConfigError
from pixvox.heads.pidnet import borders_of
from pixvox.losses.balanced_bce import BalancedBCE
from pixvox.losses.ohem import OHEM
from pixvox.models import create_model

SIZE = (72, 104)


def parts(variant):
    i, p, d = (
        [f"backbone.{branch}_stages.{k}" for k in range(n)] for branch, n in (("i", 5), ("p", 3), ("d", 3))
    )
    to_p = [f"backbone.i_to_p.{k}.{part}" for part in ("compress", "own", "other") for k in (0, 1)]
    pags = [name for k in (0, 1) for name in to_p if f"i_to_p.{k}" in name and "compress" not in name]
    names = ["backbone.stem", *i, *(name for name in to_p if "compress" in name), *pags, *p]
    names += [d[0], d[1], "backbone.i_to_d.0", "backbone.i_to_d.1"]
    scales = [f"backbone.pooling.scales.scales.{k}" for k in (1, 2, 3, 4, 0)]
    names += [*scales, *(f"backbone.pooling.{part}" for part in ("smooth", "compress", "shortcut"))]
    return [*names, "backbone.fusion", d[2], "head.aux_classifier", "head.borders", "head.classifier"]


def narrow(variant="s", **options):
    given = {"backbone__channels": 8, "backbone__scale_channels": 6, "hidden_channels": 10}
    return create_model("pidnet", num_classes=3, backbone__variant=variant, **given, **options)


def reference(variant):
    wanted, names = recorded(f"pidnet_{variant}")
    model = fill(narrow(variant), parts(variant), names)
    with torch.no_grad():
        model.head.borders[5].weight.mul_(8)
    return model, wanted


def targets():
    labels = (uniform("labels", (2, *SIZE)) * 1.5 + 1.5).long()
    labels[0, :20, :30], labels[1, 40:, 60:] = 1, 2
    labels[:, 5:9, 50:] = 255
    borders = torch.zeros(2, *SIZE, dtype=torch.bool)
    borders[:, 18:22, :30], borders[:, 38:42, 60:] = True, True
    return labels, borders


@pytest.mark.parametrize("variant", ["s", "l"])
def test_scores_and_losses_equal_the_reference(variant, monkeypatch):
    model, wanted = reference(variant)
    labels, borders = targets()
    model.head.losses["ohem"] = OHEM(threshold=0.9, min_kept=1000)
    monkeypatch.setattr("pixvox.heads.pidnet.borders_of", lambda *_: borders)
    with torch.no_grad():
        outputs = model(uniform("image", (2, 3, *SIZE)), labels)
        everywhere = model.head.border_loss(outputs["border_logits"], borders, torch.ones_like(borders))
    assert_every_second_pixel(outputs["logits"], wanted["logits"])
    assert_every_second_pixel(outputs["aux_logits"]["aux_p"], wanted["aux_p"])
    assert_every_second_pixel(outputs["border_logits"][:, None], wanted["boundary"])
    losses = outputs["losses"]
    # The reference counts ignored pixels in the mean over details, and learns borders there too.
    counted = (labels != 255).float().mean()
    assert_near(counted * losses["aux_p_cross_entropy"] + losses["ohem"], wanted["semantic_loss"])
    assert_near(everywhere, wanted["boundary_loss"])
    assert_near(
        losses["near_border_ohem"], wanted["total"] - wanted["semantic_loss"] - wanted["boundary_loss"], 1e-4
    )


@pytest.mark.parametrize(("variant", "weights"), [("s", 7_720_871), ("m", 28_762_983), ("l", 37_314_183)])
def test_variants_have_as_many_weights_as_the_reference(variant, weights):
    with torch.device("meta"):
        model = create_model(
            "pidnet",
            num_classes=19,
            backbone__variant=variant,
            hidden_channels=256 if variant == "l" else 128,
        )
    # The reference has two biases in front of batch norms, which take them away, on top.
    assert sum(parameter.numel() for parameter in model.parameters()) == weights


def test_borders_lie_on_both_sides_of_where_classes_meet_and_not_at_padding():
    labels = torch.zeros(1, 6, 8, dtype=torch.int64)
    labels[:, :, 4:6], labels[:, :, 6:] = 1, 255
    found = borders_of(labels, torch.tensor([[6, 6]]), 2)
    assert torch.equal(found, torch.tensor([0, 0, 0, 1, 1, 0, 0, 0]).bool().expand(1, 6, 8))
    assert borders_of(labels, torch.tensor([[6, 8]]), 2)[0, 0].tolist() == [False] * 3 + [True] * 4 + [False]
    assert not borders_of(labels * 0, torch.tensor([[6, 8]]), 4).any()


def test_borders_are_learned_only_where_labels_are_known():
    head = narrow().head
    logits, labels = torch.randn(1, 3, 8, 8), torch.zeros(1, 8, 8, dtype=torch.int64)
    labels[:, :, :4] = 255
    outputs = {
        "logits": logits, "aux_logits": {"aux_p": logits}, "border_logits": torch.randn(1, 8, 8).requires_grad_(),
        "valid_sizes": torch.tensor([[8, 8]]),
    }  # fmt: skip
    head.loss(outputs, labels)["border"].backward()
    assert not outputs["border_logits"].grad[:, :, :4].any() and outputs["border_logits"].grad[:, :, 4:].any()


def test_balanced_entropy_weighs_both_answers_alike_and_is_zero_without_one_of_them():
    truth = torch.tensor([[True, False, False, False]])
    logits = torch.zeros(1, 4, requires_grad=True)
    BalancedBCE()(logits, truth, torch.ones(1, 4, dtype=torch.bool)).backward()
    assert logits.grad[0, 0].item() == pytest.approx(-logits.grad[0, 1:].sum().item())
    assert BalancedBCE()(logits, truth & False, torch.ones(1, 4, dtype=torch.bool)) == 0
    assert BalancedBCE()(logits, truth, torch.zeros(1, 4, dtype=torch.bool)) == 0


def test_predictions_do_without_what_only_teaches_and_unknown_variants_are_refused():
    assert narrow().eval()(torch.rand(1, 3, 61, 63)).keys() == {"logits", "valid_sizes"}
    with pytest.raises(ConfigError, match="variant must be one of 's', 'm', 'l', got 'xl'"):
        narrow("xl")
