import io
import logging
import sys

import pytest

from pixvox import progress as module
from pixvox.progress import progress, progress_bars


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def clock(monkeypatch):
    """Let ten seconds pass with every look at the clock."""
    times = iter(range(0, 10_000, 10))
    monkeypatch.setattr(module.time, "perf_counter", lambda: float(next(times)))


@pytest.mark.usefixtures("clock")
def test_elsewhere_a_line_is_logged_now_and_then_with_the_time_that_is_left(monkeypatch, caplog):
    pipe = io.StringIO()
    monkeypatch.setattr(sys, "stderr", pipe)
    caplog.set_level(logging.INFO, "pixvox")
    assert list(progress(range(6), 6, "converting", interval=30)) == [*range(6)]
    assert caplog.messages == ["converting: 2 of 6, 0:40 left", "converting: 5 of 6, 0:10 left"]
    assert pipe.getvalue() == ""


@pytest.mark.usefixtures("clock")
def test_several_things_have_their_own_time(monkeypatch, caplog):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    caplog.set_level(logging.INFO, "pixvox")
    with progress_bars(interval=15) as tell:
        for what in ("converting", "coarser levels"):
            for done in (1, 2, 3):
                tell(what, done, 4)
    assert caplog.messages == [
        "converting: 2 of 4, 0:20 left",
        "coarser levels: 1 of 4",
        "coarser levels: 3 of 4, 0:10 left",
    ]


def test_on_a_terminal_there_are_bars_which_are_gone_at_the_end(monkeypatch, caplog):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    caplog.set_level(logging.INFO, "pixvox")
    assert list(progress(iter("abc"), 3, "spelling", interval=0)) == ["a", "b", "c"]
    assert "spelling" in terminal.getvalue() and "100%" in terminal.getvalue()
    assert terminal.getvalue().rstrip().endswith("\x1b[2K") and not caplog.messages
