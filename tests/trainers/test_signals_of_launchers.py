"""A launcher passes on what a terminal or a batch system has sent to all processes: that is one request, not two."""

import os
import signal

import pytest

from supernet.processes.interruption import noticing_signals


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_is_the_first_once_more_while_grace_lasts(second):
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as left, noticing_signals(as_keyboard=False, grace=3600.0) as noticed:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), second)
        assert noticed.signal == signal.SIGTERM
    assert left.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before


def test_it_acts_as_usual_after_that():
    reached = []
    with pytest.raises(KeyboardInterrupt), noticing_signals(as_keyboard=False, grace=1e-9):
        os.kill(os.getpid(), signal.SIGTERM)
        reached.append("the rest of the step")
        os.kill(os.getpid(), signal.SIGINT)
        reached.append("never")
    assert reached == ["the rest of the step"]
