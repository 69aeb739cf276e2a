"""What is read from the compiler's results."""

import pytest

from keras_vmoe.distribution import compiled
from keras_vmoe.distribution.compiled import Collective, StepCost, find_collectives

PROGRAM = """
HloModule jit_step
  %all-to-all.1 = bf16[1,8,4,108,512]{4,2,3,0,1:T(4,128)(2,1)S(1)} all-to-all(%copy.499), i=8
  %copy.498 = bf16[8,1,4,108,512]{4,3,2,0,1:T(8,128)(2,1)S(1)} copy(%all-to-all), metadata={}
  %all-reduce.87 = (s32[128]{0:T(1024)S(1)}, /*index=1*/f32[8,2]{0:T(1024)}) all-reduce(%a, %b)
  %get-tuple-element.161 = s32[128]{0:T(1024)S(1)} get-tuple-element(%all-reduce.87), index=1
  ROOT %all-gather-start.2 = (f32[4,16]{1,0}, f32[32,16]{1,0}, u32[]) all-gather-start(%c)
  %all-gather-done.2 = f32[32,16]{1,0} all-gather-done(%all-gather-start.2)
  %all-reduce-start.4 = (f32[1024]{0}, f32[]) all-reduce-start(%a, %b)
  %reduce-scatter.3 = pred[5]{0} reduce-scatter(%d)
"""


def cost(scale=1.0, fits=True):
    collectives = (Collective("all-to-all", (("s8", (round(100 * scale),)),)),)
    return StepCost(
        *(round(n * scale) for n in (1000, 2000, 3000)), 40 * scale, 50 * scale, collectives, fits
    )


def test_exchanges_are_found_with_their_sizes():
    found = [(c.kind, c.bytes) for c in find_collectives(PROGRAM)]
    assert found == [
        ("all-to-all", 8 * 4 * 108 * 512 * 2),
        ("all-reduce", 128 * 4 + 16 * 4),
        ("all-gather", 32 * 16 * 4),
        ("all-reduce", 1025 * 4),
        ("reduce-scatter", 5),
    ]


def test_exchanges_of_a_kind_are_added_up():
    step = cost()._replace(collectives=tuple(find_collectives(PROGRAM * 2)))
    assert step.exchanged() == {
        "all-to-all": (2, 2 * 8 * 4 * 108 * 512 * 2),
        "all-gather": (2, 2 * 2048),
        "all-reduce": (4, 2 * (576 + 4100)),
        "reduce-scatter": (2, 10),
    }


def test_gathered_kernels_are_told_from_other_gathers():
    step = cost()._replace(collectives=tuple(find_collectives(PROGRAM)))
    assert not step.gathered([(8, 16), (16, 32)])
    assert len(step.gathered([(32, 16)])) == 1
    stacked = Collective("all-gather", (("bf16", (8, 32, 16)),))
    assert step._replace(collectives=(stacked,)).gathered([(32, 16)]) == [stacked]


def test_memory_is_the_sum_of_its_parts():
    assert cost().hbm == 6000


def test_larger_models_are_linear_in_their_blocks():
    # 3 for all, 5 a dense block, 11 a sparse one, times what `cost` counts.
    def of(dense, sparse):
        return cost(3 + 5 * dense + 11 * sparse)

    small = [((1, 1, 1), of(1, 1)), ((1, 2, 2), of(2, 2)), ((1, 3, 1), of(3, 1))]
    found, wanted = compiled.scaled(small, (1, 27, 5)), of(27, 5)
    assert found[:3] == wanted[:3]
    assert found.flops == pytest.approx(wanted.flops)
    assert found.bytes_accessed == pytest.approx(wanted.bytes_accessed)
    assert found.exchanged() == wanted.exchanged()
    assert found.fits


def test_a_larger_model_takes_no_less_than_a_smaller_one():
    """Where memory is short, the compiler saves more of it on larger models."""
    short = cost(2)._replace(other=2500)
    found = compiled.scaled([((1, 2), cost()), ((1, 4), short)], (1, 40))
    assert found.other == 3000


def test_a_small_model_that_does_not_fit_is_seen_in_the_larger():
    small = [((1, 2), cost()), ((1, 4), cost(2, fits=False))]
    assert not compiled.scaled(small, (1, 8)).fits


@pytest.mark.parametrize(
    ("message", "wanted"),
    [
        ("the total memory required for HLO temporaries (54.5G) exceeds available", 54.5 * 2**30),
        ("Ran out of memory in memory space hbm. Used 20.00G of 15.75G hbm.", 20 * 2**30 - 100),
        ("Used 512.0M of 256.0M HBM", 512 * 2**20 - 100),
        ("something else", None),
    ],
)
def test_what_was_wanted_is_read_from_the_message(message, wanted):
    assert compiled._wanted(message, 100) == wanted
