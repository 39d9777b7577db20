import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import worker_tasks as tasks
from pixvox.configuration import compose
from pixvox.distributed.launch import from_first, process_count, run_together, started_from_outside
from pixvox.distributed.strategies import check_support
from pixvox.errors import ConfigError, DataError, TrainingError


def config(**trainer):
    return OmegaConf.create({"trainer": {"accelerator": "cpu", **trainer}})


@pytest.mark.parametrize(
    ("devices", "count"), [(1, 1), (3, 3), ("2", 2), ("auto", 1), (-1, 1), ([0, 1], 2), ("0,1,2", 3)]
)
def test_processes_are_counted_by_devices(devices, count):
    assert process_count(config(devices=devices)) == count


@pytest.mark.parametrize("devices", [0, -2, 1.5])
def test_impossible_devices_are_refused(devices):
    with pytest.raises(ConfigError, match=r"trainer\.devices"):
        process_count(config(devices=devices))


def test_a_process_knows_when_it_is_one_of_several(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    assert not started_from_outside(config(devices=2))
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setenv("SLURM_LOCALID", "1")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert not started_from_outside(config(devices=2)), "one task of a batch script starts its own processes"
    monkeypatch.setenv("SLURM_NTASKS", "4")
    assert started_from_outside(config(devices=2, num_nodes=2))
    monkeypatch.setenv("SLURM_JOB_NAME", "interactive")
    assert not started_from_outside(config(devices=2, num_nodes=2))
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert started_from_outside(config(devices=1))


def test_the_first_process_decides_and_its_error_is_everyones():
    assert from_first(lambda: "here") == "here"
    with pytest.raises(ConfigError, match="no"):
        from_first(lambda: (_ for _ in ()).throw(ConfigError("no")))


def test_workers_return_what_the_first_returned():
    assert run_together(tasks.places, (), 2) == {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}


def test_an_error_of_any_worker_is_raised_here():
    with pytest.raises(DataError, match="image 3"):
        run_together(tasks.one_refuses, (1,), 2, grace=5.0)


def test_workers_that_hang_are_ended_when_another_has_died():
    started = time.monotonic()
    with pytest.raises(TrainingError, match="process 1 of 2 was ended by SIGKILL, .*memory"):
        run_together(tasks.one_dies, (1,), 2, grace=0.5)
    assert time.monotonic() - started < 60


def test_a_crash_is_shown_with_its_cause(caplog):
    with pytest.raises(TrainingError, match="process 0 of 2 failed with exit code 1"):
        run_together(tasks.all_crash, (), 2, grace=5.0)
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.skipif(sys.platform == "win32", reason="no signals")
@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_signals_are_handed_on_and_everyone_ends(tmp_path, number, error):
    def send():
        while len(list(tmp_path.iterdir())) < 2:
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    threading.Thread(target=send, daemon=True).start()
    before = signal.getsignal(number)
    with pytest.raises(error) as raised:
        run_together(tasks.wait_for_signal, (str(tmp_path),), 2)
    assert error is KeyboardInterrupt or raised.value.code == 143
    assert signal.getsignal(number) is before
    deadline = time.monotonic() + 10
    while any(Path(f"/proc/{place.name}").exists() for place in tmp_path.iterdir()):
        assert time.monotonic() < deadline, "orphan"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["trainer=fsdp2", "precision=16-mixed"], "bf16-mixed"),
        (["trainer=fsdp2", "ema_decay=0.99"], "ema_decay=null"),
        (["trainer=fsdp2", "head=fcn", "inference.tile_size=64"], "give it to pixvox evaluate"),
        (["trainer=ddp", "trainer.sync_batchnorm=true"], "backbone.norm=group"),
    ],
)
def test_what_a_strategy_cannot_do_is_refused(overrides, text):
    with pytest.raises(ConfigError, match=text):
        check_support(compose("train", [*overrides, "trainer.accelerator=cpu"]))
    check_support(compose("train", [overrides[0], "trainer.accelerator=cpu"]))
