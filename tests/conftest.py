"""Shapes and types of every annotated function are checked while the tests run; comparisons need their oracle."""

import importlib.util
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from jaxtyping import install_import_hook

install_import_hook("pixvox", "typechecking.typechecked")

# The job of the oldest allowed versions cannot install transformers, which wants newer ones.
if importlib.util.find_spec("transformers") is None:
    collect_ignore = [
        str(file)
        for file in Path(__file__).parent.rglob("test_*.py")
        if re.search(r"^\s*(from|import) transformers", file.read_text(), re.MULTILINE)
    ]


@pytest.fixture(autouse=True)
def seeded():
    """Give a test the same random weights and inputs in every run, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  # other libraries draw from it
    torch.manual_seed(0)


@pytest.fixture
def no_pictures(monkeypatch):
    """Leave out the pictures of trainings in this process: they take more than half of a tiny one's time."""
    from pixvox.callbacks.pictures import Pictures
    from pixvox.callbacks.train_samples import TrainSamples

    for callback in (Pictures, TrainSamples):
        monkeypatch.setattr(callback, "draw", lambda self: None)
