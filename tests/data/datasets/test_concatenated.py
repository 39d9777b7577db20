import pytest

from pixvox.configuration import compose, instantiate
from pixvox.data.datasets.concatenated import open_concatenated
from pixvox.data.make import make_dataset
from pixvox.errors import ConfigError, DataError


@pytest.fixture
def two(tmp_path):
    for name, classes in (("a", ["circle", "triangle"]), ("b", ["triangle", "rectangle"])):
        make_dataset("shapes", tmp_path / name, 3, 1, image_size=40, radius=(5, 9), classes=classes)
    return tmp_path


def test_sources_in_a_configuration_of_ones_own_train_as_one(two, tmp_path):
    (tmp_path / "configs" / "data").mkdir(parents=True)
    (tmp_path / "configs" / "data" / "both.yaml").write_text(
        "# @package _global_\n"
        "defaults: [concatenated]\n"
        "data:\n  train:\n    sources:\n"
        f"      a: {{path: {two / 'a'}}}\n"
        f"      b: {{path: {two / 'b'}, mapping: {{rectangle: square, triangle: null}}}}\n"
    )
    config = compose("train", ["data=both", "image_size=32", "batch_size=2"], tmp_path / "configs")
    module = instantiate(config.data, "data")
    assert module.metadata.class_names == ("circle", "triangle", "square")
    assert (len(module.train), len(module.val)) == (6, 2)
    second = [module.train[i] for i in range(3, 6)]
    assert {int(label) for s in second for label in s.labels[~s.ignore]} <= {2}
    assert next(iter(module.train_dataloader())).images.shape == (2, 3, 32, 32)


def test_mistakes_in_sources_are_said(two):
    with pytest.raises(DataError, match="nothing to join; list the datasets"):
        open_concatenated({})
    with pytest.raises(DataError, match="sources.a needs a path"):
        open_concatenated({"a": {}})
    with pytest.raises(ConfigError, match="takes no option 'tsak'.*task"):
        open_concatenated({"a": {"path": str(two / "a"), "tsak": "instance"}})
    with pytest.raises(DataError, match="no source has a split 'test': a"):
        open_concatenated({"a": {"path": str(two / "a")}}, split="test")
