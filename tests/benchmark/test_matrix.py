import itertools
import json

import pytest
import torch

from pixvox.benchmark import matrix
from pixvox.benchmark.matrix import REFUSALS, Cell, check, check_all, families, pairs
from pixvox.benchmark.matrix_report import write_markdown
from pixvox.cli import run
from pixvox.errors import ConfigError
from pixvox.models import part_class
from small_backbones import OPTIONS, pyramids, small_families
from small_heads import SMALL, over_any_backbone
from unlucky import killed_over_fcn


def options(backbone, head):
    own = {f"backbone__{key}": value for key, value in OPTIONS.get(backbone, {}).items()}
    return {**own, **SMALL.get(head, {}), **({"score_threshold": 0.0} if head in SMALL else {})}


def some(dims):
    """Pair each backbone with one head, and so each head with some backbone; the whole is in ``test_every_pair``."""
    return list(zip(pyramids(dims), itertools.cycle(over_any_backbone(dims)), strict=False))


CASES = [(*pair, 2) for pair in some(2)[::5]]
CASES += [
    ("mobilenetv3", "fcn", 3),
    ("dino", "maskrcnn", 3),
    ("swin", "mask2former", 3),
    ("convnext", "solov2", 3),
    ("pidnet", "pidnet", 2),
]


@pytest.mark.parametrize(("backbone", "head", "dims"), CASES)
def test_a_pair_learns_predicts_and_comes_back_from_a_file(backbone, head, dims):
    cell = check(backbone, head, dims, options(backbone, head))
    assert (cell.status, cell.reason) == ("works", "")
    assert cell.parameters > 0 and cell.gmacs > 0 and cell.seconds > 0 and cell.peak_mib > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "cell", [cell for dims in (2, 3) for cell in pairs(small_families(dims), dims=[dims])], ids=str
)
def test_every_pair(cell):
    refused = (cell.head, cell.spatial_dims) in REFUSALS or (cell.head, cell.backbone) in REFUSALS
    cell = check(cell.backbone, cell.head, cell.spatial_dims, options(cell.backbone, cell.head))
    assert cell.status == ("refused" if refused else "works"), cell.reason


def test_what_goes_wrong_is_told_with_the_step(monkeypatch):
    cell = check("simple", "fcn", 2, {"channels_": 3})
    assert (
        cell.status == "failed"
        and cell.reason.startswith("build: ConfigError: ")
        and "channels_" in cell.reason
    )
    monkeypatch.setattr(matrix, "_targets", lambda model, size: torch.full((2, *size), 77))
    cell = check("simple", "fcn", 2, options("simple", "fcn"))
    assert cell.status == "failed" and cell.reason.startswith("learn from (64, 64): ")


def test_a_prediction_that_changes_on_the_way_through_a_file_is_found_out(monkeypatch):
    def forgets(model, path):
        for parameter in model.parameters():
            parameter.data.zero_()
        return original(model, path)

    from pixvox.weights import checkpoint

    original = checkpoint.save_safetensors
    monkeypatch.setattr(checkpoint, "save_safetensors", forgets)
    cell = check("simple", "fcn", 2, options("simple", "fcn"))
    assert (
        cell.reason
        == "predict alike: RuntimeError: after loading, the prediction has other classes of pixels"
    )


def test_contours_of_volumes_are_refused_with_a_reason():
    cell = check("simple", "contourformer", 3)
    assert cell.status == "refused" and "curves in a plane" in cell.reason


def test_the_whole_matrix_has_each_family_under_each_head_once():
    cells = pairs()
    assert len({cell.place for cell in cells}) == len(cells)
    own = {(cell.backbone, cell.head) for cell in cells if part_class("head", cell.head).branches}
    assert own == {("bisenetv2", "bisenetv2"), ("pidnet", "pidnet")}
    over = sum(name not in ("bisenetv2", "pidnet") for dims in (2, 3) for name in families(dims))
    assert len(cells) == over * len(over_any_backbone()) + len(own)
    seed = {"simple", "dino", "sam", "swin", "convnext", "repvgg", "resnet"}
    assert seed <= {cell.backbone for cell in cells if cell.spatial_dims == 2}
    assert run(["benchmark", "matrix", "--dims", "two"]) == 2
    with pytest.raises(ConfigError, match="--heads: 'nope' is none of bisenet, "):
        pairs(heads=["nope"])


def test_a_process_that_is_killed_is_one_failed_pair_and_the_others_go_on(monkeypatch):
    monkeypatch.setattr(matrix, "_check_here", killed_over_fcn)
    cells = [Cell("simple", head, 2) for head in ("fcn", "solo", "hybrid")]
    found = {cell.head: cell for cell in check_all(cells, jobs=2)}
    assert {head: cell.status for head, cell in found.items()} == {
        "fcn": "failed",
        "solo": "works",
        "hybrid": "works",
    }
    assert found["fcn"].reason.startswith("its process ended: ")


def test_command_writes_the_matrix_and_goes_on_where_it_was(tmp_path, capsys):
    command = ["benchmark", "matrix", "--backbones", "simple", "--heads", "fcn,contourformer", "--dims", "3"]
    assert run([*command, "--out", str(tmp_path), "--json"]) == 0
    out = capsys.readouterr()
    assert json.loads(out.out.splitlines()[-1])["works"] == 1
    assert "1/2" in out.err and "2/2" in out.err
    text = (tmp_path / "matrix.md").read_text()
    assert "| `simple` | - | yes |" in text and "curves in a plane" in text and "GMACs" in text
    assert run([*command, "--out", str(tmp_path)]) == 0
    assert "simple + fcn" not in capsys.readouterr().err


def test_failures_are_in_the_table_and_the_exit_code(tmp_path):
    facts = {"machine": "m", "threads": 1, "torch": "2"}
    write_markdown([Cell("simple", "fcn", 2, "failed", "build: it broke")], facts, tmp_path / "m.md")
    text = (tmp_path / "m.md").read_text()
    assert "| `simple` | **no** |" in text and "- `simple` + `fcn`: build: it broke" in text
