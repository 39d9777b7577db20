import json

import pytest
import torch
import yaml
from omegaconf import OmegaConf

import pixvox
from pixvox.configuration import compose
from pixvox.data.class_weights import class_weights
from pixvox.data.metadata import Metadata
from pixvox.errors import ConfigError
from pixvox.training import class_weights as module
from pixvox.training.class_weights import PIXELS_FILE, leave_words_out, resolve_class_weights
from pixvox.training.run_folder import RunFolder
from small_runs import TINY

pytestmark = pytest.mark.usefixtures("no_pictures")

PLACE = "head.losses.cross_entropy.class_weights"


class Data:
    """What a datamodule tells, without any image."""

    train, num_workers, on_bad_sample = None, 0, "raise"

    def __init__(self, task="semantic"):
        self.metadata = Metadata(task, 2, ("road", "pole", "sky"), 3, name="streets")


@pytest.fixture
def counted(monkeypatch):
    """Three classes' pixels in place of counting; the list grows by each time."""
    calls = []
    monkeypatch.setattr(module, "count_pixels", lambda *given: calls.append(given) or [400, 100, 25])
    return calls


def terms(**class_weights):
    """A configuration of a head with a loss for each argument."""
    part = {"_target_": "pixvox.losses.dice.Dice"}
    losses = {name: {**part, "class_weights": weights} for name, weights in class_weights.items()}
    return OmegaConf.create({"head": {"dropout": 0.1, "losses": {**losses, "plain": part}, "more": [part]}})


def test_words_become_numbers_and_pixels_are_counted_once(counted):
    config = terms(cross_entropy="sqrt", dice="log", ohem=[1, 2, 3])
    kept = resolve_class_weights(config, Data())
    assert kept == {"class_names": ["road", "pole", "sky"], "pixels": [400, 100, 25]}
    losses = config.head.losses
    assert losses.cross_entropy.class_weights == [0.5, 1.0, 2.0]
    assert losses.dice.class_weights == class_weights([400, 100, 25], "log")
    assert losses.ohem.class_weights == [1, 2, 3]
    assert resolve_class_weights(config, Data()) is None
    assert len(counted) == 1


def test_without_words_nothing_is_counted(counted):
    for config in (terms(), terms(dice=None), terms(dice=[1, 1, 5])):
        assert resolve_class_weights(config, Data()) is None
    assert not counted


def test_a_list_of_another_length_is_refused_with_the_classes():
    with pytest.raises(
        ConfigError, match=r"dice.class_weights has 2 numbers, streets has 3 classes: .* pole, sky"
    ):
        resolve_class_weights(terms(dice=[1, 2]), Data())


def test_a_word_that_there_is_not_is_refused():
    with pytest.raises(ConfigError, match="class_weights=inverted: .* inverse, sqrt, log, effective"):
        compose("train", ["head=fcn", f"{PLACE}=inverted"])


def test_words_need_classes_of_pixels():
    with pytest.raises(ConfigError, match="streets is labelled for instance segmentation"):
        resolve_class_weights(terms(dice="log"), Data("instance"))


def test_a_model_to_be_measured_has_no_words():
    config = terms(cross_entropy="sqrt", dice=[1, 2])
    leave_words_out(config)
    assert config.head.losses.cross_entropy.class_weights is None
    assert config.head.losses.dice.class_weights == [1, 2]


def test_a_run_that_has_counted_does_so_no_more(tmp_path, counted):
    run = RunFolder(tmp_path)
    run.write_json(tmp_path / PIXELS_FILE, {"class_names": ["road", "pole", "sky"], "pixels": [4, 1, 1]})
    config = terms(dice="inverse")
    resolve_class_weights(config, Data(), run)
    assert config.head.losses.dice.class_weights == [0.25, 1.0, 1.0]
    assert not counted
    (tmp_path / PIXELS_FILE).write_text("{")
    assert resolve_class_weights(terms(dice="inverse"), Data(), run)["pixels"] == [400, 100, 25]


def test_a_run_keeps_the_numbers_and_counts_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    options = [
        *TINY,
        "method=supervised",
        f"runs_dir={tmp_path}",
        "+loss=dice",
        f"{PLACE}=inverse",
        "epochs=1",
    ]
    run = pixvox.train([line for line in options if "method.threshold" not in line])
    pixels = json.loads((run.dir / PIXELS_FILE).read_text())
    assert pixels["class_names"][0] == "background" and sum(pixels["pixels"]) == 4 * 32 * 40
    expected = class_weights(pixels["pixels"], "inverse")
    config = yaml.safe_load((run.dir / "config.yaml").read_text())
    assert config["head"]["losses"]["cross_entropy"]["class_weights"] == expected
    loaded = pixvox.load(run.dir)
    assert loaded.head.losses["cross_entropy"].class_weights.tolist() == pytest.approx(expected)
    assert loaded.head.losses["dice"].class_weights is None

    def never(*given):
        raise AssertionError("a resumed run counts again")

    monkeypatch.setattr(module, "count_pixels", never)
    longer = pixvox.train(["epochs=2"], resume=run.dir)
    weights = torch.load(longer.dir / "checkpoints" / "last.ckpt", weights_only=True)
    assert str(expected[-1]) in str(weights["pixvox"])
