import os

import pytest
import torch

from pixvox.errors import ConfigError, WeightsError
from pixvox.training.run_folder import RunFolder, environment, find_run, readable_checkpoint


def made(path):
    run = RunFolder(path)
    run.make()
    return run


def test_two_runs_of_one_second_get_two_folders(tmp_path):
    first = RunFolder.reserve(tmp_path, "a_b")
    first.make()
    for _ in range(2):
        second = RunFolder.reserve(tmp_path, "a_b")
        assert second.path != first.path
        assert not second.path.exists()


def test_last_points_to_the_newest_and_leaves_a_users_folder_alone(tmp_path):
    for name in ("one", "two"):
        made(tmp_path / name).point_last()
        assert (tmp_path / "last").resolve() == (tmp_path / name).resolve()
    (tmp_path / "last").unlink()
    (tmp_path / "last").mkdir()
    (tmp_path / "last" / "mine.txt").touch()
    made(tmp_path / "three").point_last()
    assert (tmp_path / "last" / "mine.txt").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last", "one", "three", "two"]


def test_last_is_a_file_with_the_name_where_links_do_not_exist(tmp_path, monkeypatch):
    def no_links(*arguments, **options):
        raise OSError("links do not exist here")

    monkeypatch.setattr("pathlib.Path.symlink_to", no_links)
    run = made(tmp_path / "one")
    run.point_last()
    assert (tmp_path / "last").read_text().strip() == "one"
    assert find_run(tmp_path / "last").path == run.path.resolve()


def test_run_is_found_by_folder_and_by_checkpoint(tmp_path):
    run = made(tmp_path / "one")
    run.last.touch()
    assert find_run(run.path).path == find_run(run.last).path == run.path.resolve()
    with pytest.raises(ConfigError, match=r"no run at .*two; .* holds one"):
        find_run(tmp_path / "two")
    (tmp_path / "other").mkdir()
    with pytest.raises(ConfigError, match="no run folder"):
        find_run(tmp_path / "other")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "0 bytes"),
        (b"\x80\x04garbage", "refused"),
        ({"state": 1}, "not the checkpoint of a training"),
        ([1], "not the checkpoint of a training"),
    ],
)
def test_problem_of_a_checkpoint_is_told(tmp_path, content, said):
    run = made(tmp_path / "one")
    run.last.write_bytes(content) if isinstance(content, bytes) else torch.save(content, run.last)
    with pytest.raises(WeightsError, match=rf"last\.ckpt: .*{said}"):
        readable_checkpoint(run)
    torch.save({"pixvox": {}, "state_dict": {}, "global_step": 1}, run.best)
    assert readable_checkpoint(run) == run.best


def test_newest_readable_checkpoint_stands_in_for_the_last(tmp_path, caplog):
    run = made(tmp_path / "one")
    assert readable_checkpoint(run) is None
    run.last.write_bytes(b"")
    for age, path in enumerate((run.previous, run.best, run.checkpoints / "epoch_0010.ckpt")):
        torch.save({"pixvox": {}, "state_dict": {}, "global_step": 1}, path)
        os.utime(path, (0, 100 - age))
    assert readable_checkpoint(run) == run.previous
    assert "last.ckpt: the file is empty (0 bytes)" in caplog.text
    run.previous.unlink()
    assert readable_checkpoint(run) == run.best
    run.best.write_bytes(b"x")
    assert readable_checkpoint(run).name == "epoch_0010.ckpt"


def test_json_is_written_whole_or_not_at_all(tmp_path):
    run = made(tmp_path / "one")
    run.write_json(run.summary, {"a": 1})
    circle = {}
    circle["self"] = circle
    with pytest.raises(ValueError, match="[Cc]ircular"):
        run.write_json(run.summary, circle)
    assert '"a": 1' in run.summary.read_text()
    assert {path.name for path in run.path.iterdir()} == {"checkpoints", "summary.json"}


def test_environment_is_plain():
    import json

    found = environment({"overrides": ["epochs=1"]})
    assert json.loads(json.dumps(found))["overrides"] == ["epochs=1"]
    assert found["packages"]["torch"]
