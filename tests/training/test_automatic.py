import json

import pytest

from pixvox.configuration import compose
from pixvox.data.suggestions import Suggestion
from pixvox.errors import ConfigError
from pixvox.training.automatic import FILE_NAME, Suggestions, suggest, suggestions_of
from pixvox.training.run_folder import RunFolder

SMALL = ["backbone=simple", "backbone.channels=[4,8,16]", "neck.out_channels=8", "head.box_features=16",
         "head.mask_channels=4", "data.train.num_images=8", "data.val.num_images=1"]  # fmt: skip
VOLUMES = ["data=nuclei3d", "data.train.image_size=[12,32,40]", "data.train.count=[3,5]", *SMALL]


@pytest.mark.parametrize("data", [["data=shapes", *SMALL], VOLUMES])
def test_every_suggestion_composes_and_tells_its_reason(data):
    found = suggest(data)
    config = compose("train", [*found.overrides, *data])
    assert {"image_size", "batch_size", "backbone.strides", "head.anchor_sizes"} <= {
        s.key for s in found.suggestions
    }
    assert len(config.head.anchor_sizes) == len(config.backbone.strides) + bool(config.neck.extra_level)
    assert all(suggestion.read and suggestion.why for suggestion in found.suggestions)
    text = str(found)
    assert all(suggestion.why in text for suggestion in found.suggestions)


def test_what_the_user_has_set_is_kept_and_named():
    own = [
        "data=shapes",
        *SMALL,
        "image_size=64",
        "head.anchor_sizes=[[9],[18],[36]]",
        "neck.extra_level=false",
    ]
    found = suggest(own)
    assert {"image_size", "head.anchor_sizes", "neck.extra_level"} <= set(found.given)
    config = compose("train", [*found.overrides, *own])
    assert (config.image_size, config.head.anchor_sizes[0][0]) == (64, 9)


def test_data_for_another_task_choose_its_head():
    lines = [line for line in SMALL if not line.startswith(("head.", "neck."))]
    found = suggest(["data=shapes", "data.train.task=semantic", *lines])
    assert "head=fcn" in found.overrides


def test_a_chosen_head_for_another_task_is_refused():
    lines = [line for line in SMALL if not line.startswith(("head.", "neck."))]
    with pytest.raises(ConfigError, match=r"labelled for instance segmentation; choose head=maskrcnn"):
        suggest(["data=shapes", "head=fcn", *lines])


def test_a_resumed_run_keeps_its_suggestions(tmp_path):
    run = RunFolder(tmp_path)
    first = Suggestions({"facts": 1}, [Suggestion("image_size", [32, 48], "read", "why")], ["seed"], ["note"])
    first.write(run)
    assert suggestions_of(run, ["no such override"], None) == first
    Suggestions({}, [], [], []).write(run)
    assert json.loads((tmp_path / FILE_NAME).read_text())["overrides"] == ["image_size=[32,48]"]
    (tmp_path / FILE_NAME).write_text("{")
    with pytest.raises(ConfigError, match=r"suggestions\.json cannot be read"):
        Suggestions.read(run)
