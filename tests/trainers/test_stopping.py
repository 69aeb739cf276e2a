"""Signals end a run between two steps."""

import os
import signal

import pytest

from keras_vmoe.trainers.stopping import StopRequested, StopSignal


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_is_remembered_until_it_is_asked_for(number, code):
    before = signal.getsignal(number)
    with StopSignal() as stop:
        stop.check()
        os.kill(os.getpid(), number)
        with pytest.raises(StopRequested) as caught:
            stop.check()
        # A second signal acts at once.
        assert signal.getsignal(number) == before
    assert caught.value.exit_code == code


def test_the_former_handlers_come_back():
    before = signal.getsignal(signal.SIGINT)
    with StopSignal():
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before
