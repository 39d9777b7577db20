"""Run a function in several gloo processes, forked from this one: nothing is imported again."""

import pickle
import tempfile
import time
import traceback
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def _enter(rank, world, folder, function, arguments):
    torch.set_num_threads(1)
    folder = Path(folder)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    try:
        outcome = ("returned", function(*arguments))
    except BaseException:
        outcome = ("raised", traceback.format_exc())
    (folder / str(rank)).write_bytes(pickle.dumps(outcome))


def together(function, *arguments, world=2, timeout=90.0):
    """Return what ``function`` returned in each process, by rank; a process that hangs or raises is an error."""
    with tempfile.TemporaryDirectory() as folder:
        processes = mp.start_processes(
            _enter, (world, folder, function, arguments), nprocs=world, join=False, start_method="fork"
        )
        deadline = time.monotonic() + timeout
        try:
            while not processes.join(timeout=1.0):
                assert time.monotonic() < deadline, "the processes wait for each other"
        finally:
            for process in processes.processes:
                process.kill()
        outcomes = [pickle.loads((Path(folder) / str(rank)).read_bytes()) for rank in range(world)]
    for rank, (how, what) in enumerate(outcomes):
        assert how == "returned", f"rank {rank}: {what}"
    return [what for _, what in outcomes]
