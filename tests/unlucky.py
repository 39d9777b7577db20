"""What a process of its own runs in tests: it must be importable there."""

import os
import signal


def killed_over_fcn(cell, threads):
    """Return the cell as it is; die over one whose head is fcn, as the kernel kills who takes all memory."""
    if cell.head == "fcn":
        os.kill(os.getpid(), signal.SIGKILL)
    return cell
