"""A small seeded slice of ``benchmarks/fuzz.py``, whose ten thousand cases take minutes."""

import importlib.util
import logging
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "fuzz.py"
CASES = {"coco": 120, "tiff": 60, "png": 20, "jpeg": 20, "npy": 30, "nifti": 20, "zarr": 20, "config": 4}
SEED = 7


def load_script():
    specification = importlib.util.spec_from_file_location("fuzz", SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.filterwarnings("ignore")
def test_mutated_input_is_read_or_refused_and_nothing_else(kind, tmp_path, monkeypatch):
    if kind == "nifti":
        pytest.importorskip("nibabel")
    monkeypatch.setattr(logging.getLogger("pixvox"), "disabled", True)
    fuzz = load_script()
    outcomes = [fuzz.run_case(kind, SEED, number, tmp_path / str(number)) for number in range(CASES[kind])]
    findings = {
        number: outcome for number, outcome in enumerate(outcomes) if outcome[0].startswith("FINDING")
    }
    assert not findings
    refused = {name for name, _ in outcomes} - {"ok"}
    assert refused == {"ConfigError" if kind == "config" else "DataError"}


def test_a_case_is_the_same_each_time(tmp_path):
    fuzz = load_script()
    texts = []
    for place in ("one", "other"):
        fuzz.run_case("coco", SEED, 3, tmp_path / place)
        texts.append((tmp_path / place / "instances.json").read_text())
    assert texts[0] == texts[1]


def test_anything_but_the_own_errors_is_a_finding(tmp_path, monkeypatch):
    fuzz = load_script()
    raised = iter((KeyError("x"), MemoryError("y"), fuzz.Hang()))

    def broken(folder, draw):
        raise next(raised)

    monkeypatch.setitem(fuzz.KINDS, "coco", broken)
    names = [fuzz.run_case("coco", 0, number, tmp_path / str(number))[0] for number in range(3)]
    assert names == ["FINDING KeyError", "FINDING memory", "FINDING hang"]
