from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from pixvox.errors import ConfigError
from pixvox.signatures import describe, example, fits, locate, nearest, signature


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (1, int, True),
        (True, int, False),
        (1.0, int, False),
        (1, float, True),
        ("1", float, False),
        (None, int, False),
        (None, int | None, True),
        ("a", Literal["a", "b"], True),
        ("c", Literal["a", "b"], False),
        (1, Literal[True], False),
        ([1, 2], Sequence[int], True),
        ([1, 2.5], list[int], False),
        ([1, 2], tuple[int, ...], True),
        ([1, 2], tuple[int, int, int], False),
        ("ab", Sequence[str], False),
        ("file", Path, True),
        (3, Path, False),
        ({"a": 1}, dict[str, int], True),
        ([["x"]], Sequence[Sequence[float]], False),
        ("abc", float | torch.Tensor, False),
        ("abc", torch.nn.Module, False),
        ("abc", Any, True),
        (3, Callable[[int], int], True),
    ],
)
def test_value_fits_its_annotation(value, annotation, expected):
    assert fits(value, annotation) is expected


def test_description_leaves_out_what_cannot_be_typed():
    assert describe(float | torch.Tensor | None) == "a number or null"
    assert describe(Literal["max", "min"]) == "one of max, min"


def test_example_of_a_size_is_a_list():
    assert example(int | list[int]) == "8 or [512,512]"


def test_annotations_that_only_type_checkers_see_are_skipped():
    def part(size: "int", other: "NotImported"):
        """Take a size."""

    assert signature(part).annotations == {"size": int, "other": Any}


def test_keyword_arguments_leave_a_signature_open():
    assert signature(lambda a, **more: a).open
    assert not signature(lambda a: a).open


def test_error_inside_a_module_is_told_from_a_missing_one(tmp_path, monkeypatch):
    (tmp_path / "broken_part.py").write_text("import not_installed_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="not_installed_anywhere"):
        locate("broken_part.Head")
    with pytest.raises(ConfigError, match="no module 'absent_part'"):
        locate("absent_part.Head")


def test_nearest_finds_the_right_word_at_the_wrong_place():
    assert "optimizer.weight_decay" in nearest("weight_decay", ["optimizer.weight_decay", "seed"])
    assert "optimizer.weight_decay" in nearest("wieght_decay", ["optimizer.weight_decay", "seed"])


def test_nearest_puts_the_same_word_at_another_place_first():
    known = ["in_channels", "neck.in_channels", "head.in_channels", "data.options.channels"]
    assert nearest("channels", known).startswith("did you mean data.options.channels")
