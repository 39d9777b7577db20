import json

import pytest

from pixvox.configuration import compose
from pixvox.errors import ConfigError
from pixvox.overrides import override
from pixvox.training.run_folder import RunFolder
from pixvox.training.sweep import (
    Cell,
    folder_name,
    folder_of_configs,
    grid,
    is_finished,
    run_sweep,
    sweep_name,
)


class Pixvox:
    """Stands for ``pixvox train``: notes the arguments, leaves a run folder, returns the code it was told."""

    def __init__(self, codes=()):
        self.calls = []
        self.codes = dict(codes)

    def __call__(self, arguments):
        self.calls.append(list(arguments))
        if "--resume" in arguments:
            run = RunFolder(type(self).path(arguments[arguments.index("--resume") + 1]))
        else:
            config = compose("train", [line for line in arguments[1:] if "=" in line])
            run = RunFolder(self.path(config.run_dir))
            assert not run.path.exists()
            run.make()
            run.write_json(run.environment, {"overrides": list(arguments[1:])})
        code = self.codes.pop(run.path.name, 0)
        if code == 0:
            run.write_json(run.summary, {"status": "finished"})
        elif code != 2:  # 2 comes before anything is saved
            run.last.touch()
        return code

    @staticmethod
    def path(text):
        from pathlib import Path

        return Path(text)


def test_grid_is_the_product_of_all_lists():
    cells = grid(["head=maskrcnn,fcn", "epochs=3", "learning_rate=choice(1e-3,1e-4)", "seed=range(1,4,2)"])
    assert len(cells) == 8
    assert cells[0].overrides == ("epochs=3", "head=maskrcnn", "learning_rate=0.001", "seed=1")
    assert cells[-1].name == "head=fcn,learning_rate=0.0001,seed=3"
    assert len({cell.name for cell in cells}) == 8


def test_lists_in_brackets_and_quoted_texts_are_single_values():
    cells = grid(["image_size=[64,96],[32,32]", "data.path='my a=b, c/x'"])
    assert [cell.overrides[-1] for cell in cells] == ["image_size=[64,96]", "image_size=[32,32]"]
    assert all("data.path='my a=b, c/x'" in cell.overrides for cell in cells)


def test_names_of_folders_stay_apart_when_they_look_alike():
    cells = grid(["data.path='a b','a/b'"])
    assert [cell.name for cell in cells] == ["data.path=a-b", "data.path=a-b-2"]
    assert len(folder_name("x" * 400)) == 100


def test_sweep_without_values_to_choose_is_one_training():
    assert [cell.name for cell in grid(["epochs=1"])] == ["run"]
    assert sweep_name(["epochs=1"]) == "sweep"


@pytest.mark.parametrize("text", ["learning_rate=interval(0,1)", "seed=range("])
def test_what_has_no_list_of_values_is_refused(text):
    with pytest.raises(ConfigError, match=text.partition("=")[0]):
        grid([text])


def test_failing_training_is_told_and_does_not_stop_the_rest(tmp_path):
    start = Pixvox({"seed=0": 1})
    outcome = run_sweep(grid(["seed=range(3)"]), tmp_path, start=start)
    assert outcome.failed == {"seed=0": 1}
    assert outcome.finished == ["seed=1", "seed=2"]


def test_sweep_that_is_started_again_skips_resumes_and_repeats(tmp_path):
    cells = grid(["seed=range(4)"])
    run_sweep(cells, tmp_path, start=Pixvox({"seed=1": -9, "seed=2": 2}))
    again = Pixvox()
    outcome = run_sweep(cells, tmp_path, start=again)
    assert outcome.skipped == ["seed=0", "seed=3"]
    assert outcome.finished == [cell.name for cell in cells]
    resumed, repeated = again.calls
    assert resumed == ["train", "--resume", str(tmp_path / "seed=1")]  # it had saved something
    assert repeated[:2] == ["train", "seed=2"]
    assert (tmp_path / "failed" / "seed=2-1").is_dir()
    assert is_finished(RunFolder(tmp_path / "seed=2"))


def test_more_values_continue_the_same_sweep(tmp_path):
    run_sweep(grid(["seed=0,1"]), tmp_path, start=Pixvox())
    more = Pixvox()
    run_sweep(grid(["seed=0,1,2"]), tmp_path, start=more)
    assert [call[1] for call in more.calls] == ["seed=2"]


def test_folder_of_other_settings_is_refused(tmp_path):
    run_sweep(grid(["seed=0,1", "epochs=3"]), tmp_path, start=Pixvox())
    with pytest.raises(ConfigError, match=r"other settings \(epochs=3, epochs=4\).*--name"):
        run_sweep(grid(["seed=0,1", "epochs=4"]), tmp_path, start=Pixvox())


def test_mistake_in_one_combination_is_found_before_the_first_training(tmp_path):
    start = Pixvox()
    with pytest.raises(ConfigError, match="head=fnc: there is no head=fnc; did you mean fcn"):
        run_sweep(grid(["head=fcn,fnc"]), tmp_path, start=start)
    assert not start.calls


def test_interruption_by_the_user_ends_the_sweep(tmp_path):
    start = Pixvox({"seed=0": 130})
    with pytest.raises(SystemExit) as caught:
        run_sweep(grid(["seed=range(3)"]), tmp_path, start=start)
    assert caught.value.code == 130
    assert len(start.calls) == 1


def test_paths_with_signs_and_spaces_reach_the_trainings(tmp_path):
    folder = tmp_path / "my a=b, c's"
    outcome = run_sweep(grid([override("data.path", str(folder)), "seed=0"]), folder, start=Pixvox())
    assert outcome.finished == ["run"]
    assert is_finished(RunFolder(folder / "run"))


def test_every_file_of_a_folder_is_trained_and_kept_with_its_run(tmp_path):
    configs = tmp_path / "configs"
    configs.mkdir()
    (configs / "b_list.yaml").write_text("- head=fcn\n- learning_rate=1e-3\n")
    (configs / "a_map.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /backbone: simple\n"
        "head: fcn\nimage_size: [64, 96]\nbackbone:\n  channels: [8, 16]\nmethod: {channels_last: true}\n"
    )
    (configs / "c_losses.yml").write_text(
        "head: fcn\nepochs: 2\n"  # a new part, by its target
        "callbacks:\n  mine: {_target_: lightning.pytorch.callbacks.Timer}\n"
    )
    cells = folder_of_configs(configs, ["epochs=1"])
    assert [cell.name for cell in cells] == ["a_map", "b_list", "c_losses"]
    assert cells[0].overrides == (
        "backbone=simple", "head=fcn", "image_size=[64,96]", "backbone.channels=[8,16]", "method.channels_last=true",
        "epochs=1",
    )  # fmt: skip
    assert cells[1].overrides == ("head=fcn", "learning_rate=1e-3", "epochs=1")
    outcome = run_sweep(cells, tmp_path / "sweep", start=Pixvox())
    assert outcome.finished == ["a_map", "b_list", "c_losses"]
    kept = tmp_path / "sweep" / "b_list" / "given_b_list.yaml"
    assert kept.read_text() == (configs / "b_list.yaml").read_text()


def test_files_and_values_multiply(tmp_path):
    (tmp_path / "one.yaml").write_text("head: fcn\n")
    cells = folder_of_configs(tmp_path, ["seed=0,1"])
    assert [cell.name for cell in cells] == ["one,seed=0", "one,seed=1"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- head\n", "an override such as head=fcn"),
        ("3\n", "cannot be read"),
        ("a: [\n", "cannot be read"),
    ],
)
def test_unreadable_configuration_is_named(tmp_path, text, message):
    (tmp_path / "broken.yaml").write_text(text)
    with pytest.raises(ConfigError, match=rf"broken\.yaml.*{message}"):
        folder_of_configs(tmp_path)


def test_folder_without_configurations_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no \.yaml or \.toml file"):
        folder_of_configs(tmp_path)


def test_damaged_summary_is_not_finished(tmp_path):
    run = RunFolder(tmp_path)
    assert not is_finished(run)
    run.summary.write_text("{")
    assert not is_finished(run)
    run.summary.write_text(json.dumps({"status": "interrupted: KeyboardInterrupt"}))
    assert not is_finished(run)


def test_cell_keeps_what_it_trains_with():
    assert Cell("run", ("epochs=1",)).source is None
