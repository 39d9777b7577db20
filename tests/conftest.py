"""Shapes and types of every annotated function are checked while the tests run; comparisons need their oracle."""

import importlib.util
import re
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

install_import_hook("pixvox", "typechecking.typechecked")

# The job of the oldest allowed versions cannot install transformers, which wants newer ones.
if importlib.util.find_spec("transformers") is None:
    collect_ignore = [
        str(file)
        for file in Path(__file__).parent.rglob("test_*.py")
        if re.search(r"^\s*(from|import) transformers", file.read_text(), re.MULTILINE)
    ]


@pytest.fixture
def no_pictures(monkeypatch):
    """Leave out the pictures of trainings in this process: they take more than half of a tiny one's time."""
    from pixvox.callbacks.pictures import Pictures
    from pixvox.callbacks.train_samples import TrainSamples

    for callback in (Pictures, TrainSamples):
        monkeypatch.setattr(callback, "draw", lambda self: None)
