"""The progress bar, on a terminal and elsewhere."""

import io

from keras_vmoe.trainers.progress import Progress, duration


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def run(stream, seconds_per_step, steps=10):
    clock = Clock()
    progress = Progress(100, images_per_step=32, stream=stream, clock=clock)
    for step in range(1, steps + 1):
        clock.now += seconds_per_step
        progress.update(step)
        progress.set_metrics({"loss": 0.5, "accuracy": 0.75, "other": 1.0})
    return progress, clock


def test_the_line_tells_speed_and_time_left():
    progress, _ = run(Terminal(), seconds_per_step=1.0)
    line = progress.line()
    for words in ("step 10/100", "loss 0.500", "accuracy 75.0%", "32 images/s", "ETA 1:30"):
        assert words in line


def test_the_first_step_and_pauses_count_in_no_speed():
    clock = Clock()
    progress = Progress(10, images_per_step=8, stream=Terminal(), clock=clock)
    assert progress.images_per_second() is None
    clock.now = 100.0
    progress.update(1)
    assert progress.images_per_second() is None
    clock.now = 103.0
    progress.pause(2.0)
    progress.update(2)
    assert progress.images_per_second() == 8.0


def test_a_terminal_gets_one_line_drawn_over():
    stream = Terminal()
    progress, _ = run(stream, seconds_per_step=1.0)
    assert "\n" not in stream.getvalue()
    progress.close()
    assert stream.getvalue().count("\n") == 1


def test_a_file_gets_a_plain_line_now_and_then():
    stream = io.StringIO()
    progress, _ = run(stream, seconds_per_step=4.0)
    progress.note("held-out accuracy 90%")
    progress.close()
    assert "\r" not in stream.getvalue()
    assert len(stream.getvalue().splitlines()) == 10 * 4 // 16 + 1


def test_durations():
    assert [duration(s) for s in (0, 9.6, 60, 3599, 3600)] == [
        "0:00",
        "0:10",
        "1:00",
        "59:59",
        "1:00:00",
    ]
