"""The published code's decisions on given measures: rewards, the policy, growth."""

import json
import math
import time

import numpy as np
import pytest

from keras_vmoe import autoscale, models
from tests.support import golden

LOGIC = json.loads((golden.FOLDER / "asvit" / "logic.json").read_text())


def name(case):
    return case["name"]


def series(case, key):
    values = case[key]
    return values and [math.nan if key == "ntk" and x == -1 else x for x in values]


@pytest.mark.parametrize("case", LOGIC["reinforce"], ids=name)
def test_rewards_are_those_of_the_reference(case):
    ntk, exp, constraint = (series(case, key) for key in ("ntk", "exp", "constraint"))
    for i, wanted in enumerate(case["rewards"]):
        found = autoscale.reward(
            ntk and ntk[: i + 1],
            exp and exp[: i + 1],
            constraint and constraint[: i + 1],
            case["constraint_weight"],
            case["buffer_size"],
            compat=True,
        )
        assert found == pytest.approx(wanted, abs=1e-12), i


def test_a_singular_kernel_is_the_worst_and_not_the_best():
    ntk, exp = [10.0, math.nan, 12.0], [1.0, 1.0, 1.0]
    assert autoscale.reward(ntk[:2], exp[:2]) == 0.0
    assert autoscale.reward([10.0, 5.0, math.nan], exp) == pytest.approx(-1, abs=1e-6)
    assert autoscale.reward(ntk[:2], exp[:2], compat=True) == pytest.approx(1, abs=1e-6)
    assert autoscale.reward([math.nan] * 2, [math.inf, 1.0]) == 0.0


def test_policy_follows_the_trace_of_the_reference():
    trace = LOGIC["trace"]
    policy = autoscale.Policy(trace["init_logits"], trace["lr"], trace["ema_momentum"])
    axes = list(trace["search_space"].values())
    space = autoscale.SearchSpace()
    assert [list(axis) for axis in space.axes.values()] == axes
    for step in trace["steps"]:
        genotype = models.Genotype.parse(step["arch"])
        assert space.genotype(step["action"]) == genotype
        assert policy.log_probability(step["action"]) == pytest.approx(step["log_prob"], abs=1e-5)
        assert policy.entropy == pytest.approx(step["entropy"], abs=1e-5)
        baseline, loss = policy.update(step["action"], step["reward"])
        assert baseline == pytest.approx(step["baseline"], abs=1e-12)
        assert loss == pytest.approx(step["loss"], abs=1e-5)
        for found, wanted in zip(policy.logits, step["logits_after"], strict=True):
            assert np.allclose(found, wanted, atol=1e-5, rtol=0)
    derived = space.genotype(policy.most_likely())
    assert derived == models.Genotype.parse(trace["derived"])


@pytest.mark.parametrize("case", LOGIC["grow"], ids=name)
def test_growth_chooses_as_the_reference(case):
    size = autoscale.Size(tuple(case["depth"]), case["hidden"])
    found = autoscale.candidates(size, case["delta_depth"] or (), case["delta_dim"] or ())
    choices = [choice for choice in case["choices"] if sum(choice[0]) - sum(size.depths) < 2]
    assert [[list(s.depths), s.width] for s in found[: len(choices)]] == choices
    if not case.get("metrics_ntk_exp"):
        return
    topology = models.Genotype.parse(case["arch"])
    limit = case["param_lim"] or math.inf
    allowed = [s for s in found if autoscale.count_params(s.of(topology, 4)) <= limit * 1e6]
    assert len(allowed) == case["metrics_used"]
    best = allowed[
        autoscale.best_candidate(*zip(*case["metrics_ntk_exp"], strict=True), compat=True)
    ]
    assert [list(best.depths), best.width] == case["best"]
    params = autoscale.count_params(best.of(topology, 4))
    assert params == pytest.approx(case["params_M"] * 1e6, abs=0.5)


def test_ties_are_broken_towards_the_better_measure():
    ntk, lengths = [8.1, 8.0, 9.0, 9.1], [0.9, 0.3, 0.1, 0.05]
    assert autoscale.best_candidate(ntk, lengths) == 0
    assert autoscale.best_candidate(ntk, lengths, compat=True) == 1
    three = autoscale.best_candidate([3.0, 2.0, 1.0, 100.0], [0.9, 0.5, 0.1, 0.05])
    assert three == 2
    assert autoscale.best_candidate([math.nan, 50.0], [0.1, 0.1]) == 1
    assert autoscale.best_candidate([math.nan] * 2, [math.nan] * 2) == 0


@pytest.mark.parametrize("case", LOGIC["params_macs"], ids=lambda case: case["genotype"])
def test_parameters_are_counted_without_a_network(case):
    text, hidden = case["genotype"], case["hidden"]
    genotype = models.Genotype.parse(text)._replace(width=hidden)
    size = autoscale.Size(tuple(case["depths"]), hidden)
    assert autoscale.count_params(size.of(genotype), case["num_classes"]) == case["params"]


def test_a_search_that_goes_on_from_its_state_is_the_same_to_the_bit():
    def measure(genotype, step):
        rng = np.random.default_rng([step, *map(ord, str(genotype))])
        return autoscale.Measures(*(math.nan if x > 1.5 else x for x in rng.normal(size=2)))

    whole = autoscale.Search(autoscale.SearchSpace(), seed=3)
    for _ in range(30):
        whole.advance(measure)
    state = None
    for _ in range(30):
        search = autoscale.Search(autoscale.SearchSpace(), seed=3)
        if state:
            search.resume(json.loads(state))
        search.advance(measure)
        state = json.dumps(search.state())
    assert state == json.dumps(whole.state())
    assert search.derived == whole.derived
    assert all(sum(counts.values()) == 20 for counts in whole.marginals(20).values())


def test_a_search_finds_what_measures_well():
    space = autoscale.SearchSpace()
    wanted = (4, 2, 2, 2, 0, 0, 0, 4, 4, 4, 4, 1)

    def measure(genotype, step):
        action = search.policy.sample(np.random.default_rng([3, 101, step]))
        good = sum(a == b for a, b in zip(action, wanted, strict=True))
        return autoscale.Measures(float(good), 20.0 - good)

    search = autoscale.Search(space, seed=3)
    for _ in range(400):
        search.advance(measure)
    found = search.policy.most_likely()
    assert sum(a == b for a, b in zip(found, wanted, strict=True)) >= 10
    assert search.policy.entropy < 0.5 * math.log(space.size)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kernels": [[4], [2], [], [2]]}, "each axis of kernels.*one or more"),
        ({"heads": []}, "each axis of heads"),
        ({"splits": [[2], [1]]}, "splits must be 3 lists"),
        ({"heads": [16, 16]}, "name a choice once"),
        ({"heads": [12]}, "multiple of 8"),
        ({"kernels": [[3], [2], [2], [2]]}, "at least its stride"),
        ({"depths": [1]}, "names among kernels"),
        ([1], "must be an object"),
    ],
)
def test_spaces_that_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        autoscale.SearchSpace.from_dict(values)


def test_a_space_comes_back_from_json():
    space = autoscale.SearchSpace(heads=(16,))
    assert autoscale.SearchSpace.from_dict(json.loads(json.dumps(space.to_dict()))) == space
    with pytest.raises(ValueError, match="splits of stage 2"):
        autoscale.SearchSpace(splits=((2,), (3,), (1,))).check(32, 32)


def test_growth_measures_at_the_small_width_and_takes_the_real_one():
    growth = autoscale.Growth(models.Genotype.parse("8,2,3|4,1,2|4,1,4|4,1,6|32"), widening=4)
    handed = []

    def evaluate(genotypes, step):
        handed.append((step, [str(genotype) for genotype in genotypes]))
        # The third one is the best by both measures.
        return [autoscale.Measures(float(i == 2), 2.0 - (i == 2)) for i in range(len(genotypes))]

    grown = growth.advance(evaluate)
    wanted = []
    for deeper in range(4):
        depths = [1 + (stage == deeper) for stage in range(4)]
        for width in (8, 9, 10):
            genes = zip(("8,2,3", "4,1,2", "4,1,4", "4,1,6"), depths, strict=True)
            wanted.append("|".join(f"{gene},{depth}" for gene, depth in genes) + f"|32,{width}")
    assert handed == [(1, wanted)]
    assert (grown.width, grown.genotype) == (10, wanted[2].removesuffix("10") + "40")
    growth.advance(evaluate)
    step, sizes = handed[1]
    assert (step, sizes[0]) == (2, "8,2,3,3|4,1,2,1|4,1,4,1|4,1,6,1|32,10")


def test_growth_refuses_what_is_empty():
    with pytest.raises(ValueError, match="must hold a step"):
        autoscale.candidates(autoscale.Size((1, 1, 1, 1), 8), (), ())
    with pytest.raises(ValueError, match="one or more candidates"):
        autoscale.best_candidate([], [])
    with pytest.raises(ValueError, match="learning_rate must be positive"):
        autoscale.Policy([[0.0]], learning_rate=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: autoscale.reward([1, 2, 3], [1, 2, 3], window=1), "window must.*window=1"),
        (lambda: autoscale.Search(autoscale.SearchSpace(), window=0), "window must.*window=0"),
        (lambda: autoscale.Search(autoscale.SearchSpace(), width=-5), "width must.*width=-5"),
        (lambda: autoscale.Search(autoscale.SearchSpace(), seed=-1), "seed must.*seed=-1"),
        (lambda: autoscale.Protocol(convention="x"), "convention must be one of.*'x'"),
        (lambda: autoscale.Protocol(image_size=48), "image_size must be a multiple.*=48"),
        (lambda: autoscale.Protocol(image_size=0), "image_size must.*=0"),
    ],
)
def test_values_out_of_range_are_refused_at_once(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def searched():
    search = autoscale.Search(autoscale.SearchSpace())
    search.advance(lambda genotype, step: autoscale.Measures(1.0, 2.0))
    return search


@pytest.mark.parametrize("name", ["logits", "means", "squares"])
def test_a_policy_of_other_axes_is_not_gone_on_from(name):
    search = searched()
    state = json.loads(json.dumps(search.state()))
    state["policy"][name] = state["policy"][name][:3]
    with pytest.raises(ValueError, match=f"{name} for.*Received: {name} for"):
        search.resume(state)
    assert search.derived == searched().derived


def test_actions_of_another_space_are_not_gone_on_from():
    search = searched()
    for action in ([0] * 3, [99] * 12):
        state = json.loads(json.dumps(search.state()))
        state["trace"][0]["action"] = action
        with pytest.raises(ValueError, match="must hold actions.*in step 0"):
            search.resume(state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depths": [1, 1, 1]}, "four stages"),
        ({"depths": [1, 1, 1, 0]}, "depths of step 0"),
        ({"width": None}, "width of step 0"),
        ({"width": 8.5}, "width of step 0"),
    ],
)
def test_a_damaged_growth_is_not_gone_on_from(change, message):
    growth = autoscale.Growth(models.Genotype.parse("8,2,3|4,1,2|4,1,4|4,1,6|32"))
    with pytest.raises(ValueError, match=message):
        growth.resume([growth.trace[0]._asdict() | change])
    assert growth.advance_at_random(np.random.default_rng(0)).step == 1


def test_the_best_of_many_is_found_at_once():
    rng = np.random.default_rng(0)
    numbers, lengths = rng.normal(size=(2, 20_000))
    begun = time.process_time()
    best = autoscale.best_candidate(numbers.tolist(), lengths.tolist())
    # Sorting once for each candidate takes minutes.
    assert time.process_time() - begun < 5
    ranks = [np.argsort(np.argsort(values)) for values in (numbers, -lengths)]
    assert sum(ranks)[best] == sum(ranks).min()
