import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def reference():
    return runpy.run_path(str(ROOT / "docs" / "make_reference.py"))


def test_the_page_of_all_keys_is_up_to_date(reference):
    assert reference["PAGE"].read_text() == reference["page"](), "run make docs"


def test_keys_are_found_with_their_place_default_and_comment(reference):
    text = "a: 1  # one\nb:\n  c: [1, 2]\n  d:\n    e: 'x # y'  # e\n# f: 2\ng: null\n"
    found = [(key.place, key.default, key.comment) for key in reference["keys_of"](text)]
    assert found == [
        ("a", "1", "one"),
        ("b.c", "[1, 2]", ""),
        ("b.d.e", "'x # y'", "e"),
        ("g", "null", ""),
    ]


def test_meanings_come_from_the_docstring_where_a_file_has_no_comment(reference):
    told = reference["documented"]("pixvox.heads.fcn.FCN")
    assert told["in_channels"] == "Channels of each level, finest first."
    assert "https" not in told["num_classes"]
