import json

import pytest

from pixvox.cli import run
from pixvox.config_files import file_overrides, with_file
from pixvox.configuration import compose
from pixvox.errors import ConfigError

pytestmark = pytest.mark.usefixtures("no_pictures")


def written(folder, name, text):
    path = folder / name
    path.write_text(text)
    return path


def test_toml_and_yaml_say_the_same(tmp_path):
    toml = "head = 'fcn'\nimage_size = [32, 48]\n[backbone]\nchannels = [8, 16]\n"
    yaml = "head: fcn\nimage_size: [32, 48]\nbackbone:\n  channels: [8, 16]\n"
    expected = ["head=fcn", "image_size=[32,48]", "backbone.channels=[8,16]"]
    assert file_overrides(written(tmp_path, "a.toml", toml)) == expected
    assert file_overrides(written(tmp_path, "a.yaml", yaml)) == expected


def test_parameters_of_scripts_have_our_names(tmp_path):
    text = "num_epochs = 50\nbatch_size = 20\nlr = 1e-4\nnum_workers = 4\n"
    config = compose("train", file_overrides(written(tmp_path, "hybrid.toml", text)))
    found = (config.epochs, config.batch_size, config.learning_rate, config.num_workers)
    assert found == (50, 20, 1e-4, 4)


def test_what_is_given_beside_a_file_wins(tmp_path):
    path = written(tmp_path, "a.yaml", "head: fcn\nepochs: 3\n")
    assert with_file(path, ["head=maskrcnn", "seed=1"]) == ["epochs=3", "head=maskrcnn", "seed=1"]


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.toml", "head = ", "cannot be read"),
        ("a.json", "{}", "a configuration is a .yaml or .toml file"),
        ("a.yaml", "3", "a.yaml"),
        ("a.yaml", "- fcn", "each item of the list is an override"),
    ],
)
def test_files_that_are_none_are_refused(tmp_path, name, text, told):
    with pytest.raises(ConfigError, match=told):
        file_overrides(written(tmp_path, name, text))


def test_the_command_trains_what_a_file_says(tmp_path, capsys):
    path = written(
        tmp_path,
        "tiny.toml",
        "data = 'shapes'\nhead = 'fcn'\nbackbone = 'simple'\nimage_size = 32\nfast_dev_run = true\n"
        "logger = 'none'\nnum_workers = 0\n",
    )
    command = ["train", "--config", str(path), f"run_dir={tmp_path / 'run'}", "seed=7", "--json"]
    assert run([*command, "data.train.num_images=2", "data.val.num_images=1", "head=hybrid"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["run"] == str(tmp_path / "run")
    assert run(["train", "--config", str(tmp_path / "none.toml")]) == 2
