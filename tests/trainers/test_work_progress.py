"""The line that shows how far a command is."""

import io

from keras_vmoe.trainers.work_progress import WorkProgress


def test_progress_on_a_terminal_and_in_a_log():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    for stream, first in ((Terminal(), "\r\x1b[2K"), (io.StringIO(), "")):
        now = iter([0.0, *[20.0] * 9])
        bar = WorkProgress(4.0, stream, lambda now=now: next(now))
        bar.begin("one", 1.0)
        assert stream.getvalue().startswith(first + "  0%  one  0:20 so far")
        bar.advance(1.0)
        bar.begin("two", 3.0)
        assert bar.line() == " 25%  two  0:20 so far  ETA 1:00"


def test_progress_goes_to_stderr_and_results_to_stdout(capsys):
    bar = WorkProgress(1.0)
    bar.print("a row")
    assert capsys.readouterr().out == "a row\n"
