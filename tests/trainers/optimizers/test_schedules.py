"""The schedules beside their formulas, and what they refuse."""

import keras
import numpy as np
import pytest

from keras_vmoe.trainers import optimizers
from keras_vmoe.trainers.optimizers import schedules

ALL = (optimizers.cosine, optimizers.linear, optimizers.rsqrt, optimizers.constant)


def rates(schedule, steps):
    return [float(schedule(step)) for step in steps]


@pytest.mark.parametrize(
    ("make", "options", "wanted"),
    [
        (optimizers.cosine, {}, [1.0, 0.5, 0.0, 0.0]),
        (optimizers.cosine, {"final": 0.5}, [1.0, 0.75, 0.5, 0.5]),
        (optimizers.linear, {"final_fraction": 0.2}, [1.0, 0.6, 0.2, 0.2]),
        (optimizers.rsqrt, {"timescale": 1}, [1.0, 26**-0.5, 51**-0.5, 61**-0.5]),
        (optimizers.constant, {}, [1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_after_the_warmup(make, options, wanted):
    schedule = make(2.0, 60, warmup_steps=10, **options)
    options = options | ({"final": options["final"] / 2} if "final" in options else {})
    half_peak = make(1.0, 60, warmup_steps=10, **options)
    np.testing.assert_allclose(
        rates(schedule, (10, 35, 60, 70)),
        np.array(rates(half_peak, (10, 35, 60, 70))) * 2,
        rtol=1e-6,
    )
    if "final" not in options:
        np.testing.assert_allclose(rates(half_peak, (10, 35, 60, 70)), wanted, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(rates(schedule, (0, 1, 5)), [0.0, 0.2, 1.0], rtol=1e-6)


@pytest.mark.parametrize("make", ALL)
def test_without_a_warmup_the_first_rate_is_the_peak(make):
    assert rates(make(3.0, 100), (0,)) == [3.0]


@pytest.mark.parametrize("make", ALL)
def test_a_peak_may_be_a_whole_number(make):
    assert rates(make(3, 100), (0, 25)) == rates(make(3.0, 100), (0, 25))


@pytest.mark.parametrize("make", ALL)
def test_a_warmup_is_given_in_steps_or_in_epochs(make):
    by_steps = make(1.0, 100, 10, warmup_steps=20)
    by_epochs = make(1.0, 100, 10, warmup_epochs=2.0)
    assert by_steps.get_config() == by_epochs.get_config()
    with pytest.raises(ValueError, match=r"warmup_steps=20 and warmup_epochs=2.0: give one"):
        make(1.0, 100, 10, warmup_steps=20, warmup_epochs=2.0)
    with pytest.raises(ValueError, match="steps_per_epoch"):
        make(1.0, 100, warmup_epochs=2.0)


@pytest.mark.parametrize("make", ALL)
def test_a_warmup_takes_no_more_than_half_of_a_short_run(make):
    assert make(1.0, 4, warmup_steps=10_000).get_config()["warmup_steps"] == 2
    rate = rates(make(1.0, 1, warmup_steps=10_000), (0,))
    assert rate == [1.0]


def test_a_cooldown_fits_into_a_short_run():
    schedule = optimizers.rsqrt(1.0, 10, warmup_steps=4, timescale=6, cooldown_steps=50)
    np.testing.assert_allclose(rates(schedule, (4, 7, 10)), [1.0, 0.5, 0.0], atol=1e-7)


def test_a_later_run_goes_on_where_an_earlier_one_stood():
    options = {"warmup_steps": 10, "timescale": 20}
    whole = optimizers.rsqrt(1.0, 100, **options, cooldown_steps=30)
    later = optimizers.rsqrt(1.0, 60, **options, cooldown_steps=30, first_step=40)
    np.testing.assert_allclose(
        rates(later, range(62)), rates(whole, range(40, 102)), rtol=1e-6, atol=1e-7
    )
    # By hand: 30 steps after the warm-up, 1 / sqrt(1 + 30 / 20).
    assert rates(later, (0,)) == pytest.approx([2.5**-0.5])


def test_a_later_run_ends_a_warmup_that_an_earlier_one_began():
    later = optimizers.rsqrt(1.0, 20, warmup_steps=10, timescale=5, cooldown_steps=50, first_step=8)
    found = rates(later, (0, 1, 2, 11, 20))
    assert found == pytest.approx([0.8, 0.9, 1.0, 0.5, 0.0], abs=1e-7)
    assert later.get_config()["cooldown_steps"] == 18


@pytest.mark.parametrize("make", ALL)
def test_a_schedule_comes_back_from_its_config(make):
    schedule = make(0.5, 50, warmup_steps=5)
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(schedule))
    assert type(copy) is type(schedule)
    assert rates(copy, range(52)) == rates(schedule, range(52))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"total_steps": 0}, "total_steps=0 must be positive"),
        ({"warmup_steps": -1}, "warmup_steps=-1 must not be negative"),
        ({"warmup_epochs": -1.0, "steps_per_epoch": 2}, "warmup_epochs=-1.0"),
        ({"final": -1e-5}, "final=-1e-05 must not be negative"),
        ({"final": 1e-5, "final_fraction": 0.1}, "final=1e-05 and final_fraction=0.1"),
    ],
)
def test_wrong_numbers_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        optimizers.cosine(**{"peak": 1.0, "total_steps": 10, **options})


def test_rsqrt_refuses_a_timescale_of_nothing():
    with pytest.raises(ValueError, match="timescale=0 must be positive"):
        optimizers.rsqrt(1.0, 10, timescale=0)
    with pytest.raises(ValueError, match="cooldown_steps=-1"):
        optimizers.rsqrt(1.0, 10, cooldown_steps=-1)
    with pytest.raises(ValueError, match="first_step=-1 must not be negative"):
        optimizers.rsqrt(1.0, 10, first_step=-1)


def test_a_run_is_counted_in_updates():
    def asked(**given):
        return given

    given = schedules.of_run(asked, 0.1, total_steps=103, steps_per_epoch=10, accumulation_steps=4)
    assert given == {"peak": 0.1, "total_steps": 25, "steps_per_epoch": 2.5}
    with pytest.raises(ValueError, match=r"accumulation_steps=4 .* 3 steps"):
        schedules.of_run(asked, 0.1, 3, 10, 4)
    with pytest.raises(ValueError, match="learning_rate=0 must be positive"):
        schedules.of_run(asked, 0, 3, 10, 1)
    with pytest.raises(ValueError, match="accumulation_steps=0 must be positive"):
        schedules.of_run(asked, 0.1, 3, 10, 0)
