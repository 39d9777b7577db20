import contextlib
import re

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins import AsyncCheckpointIO

from pixvox.callbacks.checkpoints import SaveError, SummedCheckpoints, keep_sums
from pixvox.errors import WeightsError
from pixvox.files import check_sum


def test_checkpoints_are_written_compared_and_removed_with_their_sums(tmp_path):
    path, io = tmp_path / "new" / "best.ckpt", SummedCheckpoints()
    for number in (1, 2):
        io.save_checkpoint({"weight": torch.full((4,), number)}, path)
    assert {file.name for file in path.parent.iterdir()} == {"best.ckpt", "best.ckpt.sha256"}
    check_sum(path)
    assert io.load_checkpoint(path, weights_only=True)["weight"].tolist() == [2, 2, 2, 2]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"best\.ckpt: damaged"):
        io.load_checkpoint(path, weights_only=True)
    io.remove_checkpoint(path)
    assert list(path.parent.iterdir()) == []


def test_plugin_of_the_users_stays(tmp_path):
    options = {"accelerator": "cpu", "logger": False, "default_root_dir": tmp_path}
    plain, own = Trainer(**options), Trainer(**options, plugins=[AsyncCheckpointIO()])
    for trainer in (plain, own):
        keep_sums(trainer)
    assert isinstance(plain.strategy.checkpoint_io, SummedCheckpoints)
    assert isinstance(own.strategy.checkpoint_io, AsyncCheckpointIO)


@contextlib.contextmanager
def file_size_limit(limit):
    """Writing past ``limit`` bytes fails, as on a full disk."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("on_error", ["raise", "warn"])
def test_full_disk_leaves_the_old_checkpoint_whole(tmp_path, caplog, on_error):
    path, io = tmp_path / "last.ckpt", SummedCheckpoints(on_error)
    io.save_checkpoint({"weight": torch.zeros(8)}, path)
    said = r"last\.ckpt: the checkpoint was not written \(File too large\).*MiB are free.*the one before it is whole"
    big = {"weight": torch.zeros(100_000)}
    if on_error == "raise":
        with file_size_limit(20_000), pytest.raises(SaveError, match=said + r".*on_save_error=warn"):
            io.save_checkpoint(big, path)
    else:
        with file_size_limit(20_000):
            io.save_checkpoint(big, path)
        assert re.search(said, caplog.text)
    assert {file.name for file in tmp_path.iterdir()} == {"last.ckpt", "last.ckpt.sha256"}
    assert len(io.load_checkpoint(path, weights_only=True)["weight"]) == 8
