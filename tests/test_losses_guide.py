"""The guide to losses: its commands compose, its terms learn, its code runs."""

import re
from pathlib import Path

import pytest
import torch

from pixvox.configuration import CONFIG_FOLDER, compose, instantiate

GUIDE = (Path(__file__).parents[1] / "docs" / "how-to" / "losses.md").read_text()
COMMANDS = [line.split() for line in re.findall(r"^    pixvox train (.*)$", GUIDE, re.MULTILINE)]


def terms(config):
    """Build the losses of a head; words for class weights are left out, as the data are not there."""
    for term in config.head.losses.values():
        if isinstance(term.get("class_weights"), str):
            term.class_weights = None
    return instantiate(config.head.losses, "losses")


def test_its_commands_compose_to_terms_that_learn():
    expected = [
        {"cross_entropy", "dice"}, {"cross_entropy", "dice", "lovasz"}, {"ohem"}, {"cross_entropy"}, {"cross_entropy"},
    ]  # fmt: skip
    logits, labels = torch.randn(1, 3, 5, 7, requires_grad=True), torch.randint(0, 3, (1, 5, 7))
    for words, names in zip(COMMANDS, expected, strict=True):
        losses = terms(compose("train", words[words.index("--data") + 2 :]))
        assert losses.keys() == names
        (slope,) = torch.autograd.grad(sum(term(logits, labels) for term in losses.values()), logits)
        assert slope.abs().max() > 0


def test_its_experiment_composes(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "rare.yaml").write_text(re.search(r"```yaml\n(.*?)```", GUIDE, re.DOTALL)[1])
    config = compose("train", ["experiment=rare"], tmp_path)
    assert config.head.losses.cross_entropy.class_weights == "sqrt"
    assert config.head.losses.boundary.weight == 0.02
    assert terms(config).keys() == {"cross_entropy", "dice", "boundary"}


def test_its_code_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = {}
    exec(re.search(r"```python\n(.*?)```", GUIDE, re.DOTALL)[1], found)
    assert len(found["loss"].class_weights) == len(found["pixels"]) == 4


def test_it_lists_every_loss():
    listed = set(re.findall(r"^\| `(\w+)` \| (?!m|square|log m|the first)", GUIDE, re.MULTILINE))
    assert listed == {file.stem for file in (CONFIG_FOLDER / "loss").glob("*.yaml")}


def test_adding_a_loss_without_a_plus_is_told():
    with pytest.raises(ValueError, match=r"use \+loss=dice"):
        compose("train", ["head=fcn", "loss=dice"])
