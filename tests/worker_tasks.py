"""What the processes of ``test_launch.py`` do; they import this module and little else."""

import os
import signal
import time
from pathlib import Path

from pixvox.errors import DataError


def places():
    return {name: os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}


def one_refuses(rank):
    if int(os.environ["RANK"]) == rank:
        raise DataError("image 3 cannot be read")


def one_dies(rank):
    if int(os.environ["RANK"]) == rank:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(300)


def all_crash():
    return 1 / 0


def wait_for_signal(folder):
    (Path(folder) / str(os.getpid())).touch()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    time.sleep(300)
