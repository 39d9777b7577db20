"""One of the processes that ``pixvox.distributed.launch`` starts: calls a function and leaves its outcome."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import signal
import sys
import threading
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

from pixvox.errors import PixvoxError


def main(folder: Path) -> int:
    """Call what ``folder`` says and return the exit code.

    Args:
        folder: Holds the call; the outcome goes there.
    """
    rank = int(os.environ["RANK"])
    _speak(rank)
    # A job in the background of a shell ignores Ctrl-C and so would its children; whoever hands one on means it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    function, arguments = pickle.loads((folder / "call").read_bytes())
    try:
        outcome, code = function(*arguments), 0
    except PixvoxError as error:
        outcome, code = error, 2
    except KeyboardInterrupt:
        return 130
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except BaseException:
        outcome, code = traceback.format_exc(), 1
    with contextlib.suppress(FileNotFoundError):  # whoever started this has gone
        _leave(folder / f"outcome{rank}", outcome)
    return code


def _speak(rank: int) -> None:
    """Let the first process speak as the command line does, and the others keep still."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for name in ("httpx", "matplotlib", "fsspec", "numcodecs"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if rank > 0:
        logging.disable(logging.WARNING)
        warnings.simplefilter("ignore")


def _end_with(parent: int, grace: float = 30.0) -> None:
    """End when the process that started this one has gone, saving first if there is time."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace)
    os._exit(143)


def _leave(place: Path, outcome: Any) -> None:
    """Write an outcome whole, as text when it cannot be pickled."""
    try:
        content = pickle.dumps(outcome)
    except Exception:
        content = pickle.dumps(str(outcome))
    part = place.with_suffix(".part")
    part.write_bytes(content)
    part.replace(place)


if __name__ == "__main__":
    # Threads of a broken process group must not keep a process alive that has failed.
    code = main(Path(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
