"""`keras-vmoe repro limoe`: the runs, the verdicts, the pictures; training itself is made up."""

import csv
import json
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_vmoe import analysis, data, models
from keras_vmoe.trainers import cli
from keras_vmoe.trainers.metrics_log import MetricsLog
from keras_vmoe.trainers.repro import limoe, limoe_figure, limoe_routing
from keras_vmoe.trainers.repro.training import configure
from keras_vmoe.trainers.tasks import make_task

KINDS = ("limoe", "entropy", "priority", "classic", "dense", "two_tower")
TINY = (
    "train.steps=4",
    "train.batch_size=8",
    "train.log_every=2",
    *(f"{name}.num_layers=2" for name in ("LIMoE", "TwoTower")),
    *(f"{name}.width=8" for name in ("LIMoE", "TwoTower")),
    *(f"{name}.mlp_dim=16" for name in ("LIMoE", "TwoTower")),
    *(f"{name}.num_heads=2" for name in ("LIMoE", "TwoTower")),
)
LAYERS = ("encoder_block_1_moe", "encoder_block_3_moe")


def routing_row(step, image, text, experts=6.0):
    """A row of training: the first layer does worst."""
    row = {"step": step}
    for layer, more in zip(LAYERS, (0.0, 0.01), strict=True):
        row |= {f"{layer}/image_success_rate": image + more}
        row |= {f"{layer}/text_success_rate": text + more}
        row |= {f"{layer}/text_effective_experts": experts + more}
    return row


@pytest.fixture(scope="module")
def pairs():
    return configure(limoe.trainings(Path(), [0], TINY, ["limoe"])[0]).dataset()


@pytest.fixture(scope="module")
def untrained(pairs, tmp_path_factory):
    """The workdir of a LIMoE that was saved before its first step."""
    task = make_task(configure(limoe.trainings(Path(), [0], TINY, ["limoe"])[0]), pairs)
    folder = tmp_path_factory.mktemp("run")
    models.ImageTextModel(task.make_model(), pairs.tokenizer.model).save(folder / "model.keras")
    return folder


@pytest.fixture(scope="module")
def routed(pairs, untrained):
    return limoe_routing.route(untrained, pairs.eval)


def made_up(routed, text_neither=(0.3, 0.31, 0.32), limoe_score=(0.8, 0.81, 0.82), of_eight=5.0):
    rates = {
        "limoe": [(0.97, 0.96), (0.98, 0.97), (0.975, 0.965)],
        "entropy": [(0.97, 0.96), (0.98, 0.97), (0.975, 0.975)],
        "priority": [(0.97, 0.5), (0.98, 0.5), (0.97, 0.5)],
        "classic": [(0.97, rate) for rate in text_neither],
    }
    history = {
        kind: [[routing_row(2, 0.9, 0.9), routing_row(4, *pair)] for pair in of_kind]
        for kind, of_kind in rates.items()
    }
    scores = {kind: {name: [0.7, 0.71, 0.721] for name in limoe.MEASURES} for kind in KINDS}
    scores["limoe"] = {name: list(limoe_score) for name in limoe.MEASURES}
    asked = {1: 1.5, 2: 6.0, 4: 3.9, 8: of_eight}
    minima = {n: [routing_row(4, 1, 1, used), routing_row(4, 1, 1, used + 0.001)]
              for n, used in asked.items()}  # fmt: skip
    taken = {n: [0.8 * used, 0.8 * used + 0.001] for n, used in asked.items()}
    macs = dict.fromkeys(KINDS, 1_000_000)
    return limoe.Measured((0, 1, 2), 4, macs, scores, history, minima, taken, routed)


def test_the_runs_are_paired_by_seed(tmp_path):
    runs = limoe.trainings(tmp_path, [0, 1], ["LIMoE.width=8", "TwoTower.width=16"])
    assert [run.workdir.name for run in runs] == [f"{k}-{s}" for s in (0, 1) for k in KINDS]
    assert runs[0].bindings == ("LIMoE.width=8", "train.seed=0")
    assert runs[-1].bindings == ("TwoTower.width=16", "train.seed=1")
    assert runs[7].name == "entropy losses, no priority, seed 1"


def test_the_sweep_asks_for_experts_and_trains_nothing_twice(tmp_path):
    runs = limoe.sweep(tmp_path, [0, 1], ["LIMoE.width=8"])
    assert list(runs) == [1, 2, 4, 8]
    assert runs[4] == limoe.trainings(tmp_path, [0, 1], ["LIMoE.width=8"], ["limoe"])
    for minimum in (1, 2, 8):
        of_seed = runs[minimum][1]
        assert of_seed.workdir == tmp_path / f"text_{minimum}-1"
        assert of_seed.bindings[-1] == "train.seed=1"
    config = configure(runs[2][1])
    model = config.model(image_size=32, channels=1, vocabulary_size=49, text_length=13)
    assert model.arguments["soft_minimum_experts"] == {"image": 10, "text": 2}
    assert limoe.num_runs(3) == 3 * 6 + 2 * 3
    assert limoe.num_runs(1) == 6 + 3


def test_the_kinds_differ_in_what_they_are_named_after(pairs):
    found = {}
    for run in limoe.trainings(Path(), [0], [], KINDS):
        model = make_task(configure(run), pairs).make_model()
        found[run.workdir.name.removesuffix("-0")] = model
    classic = ("importance", "load", "z")
    both = (*classic, "local_text", "global_text", "global_image")
    kinds = {"limoe": (both, True), "entropy": (both, False)}
    kinds |= {"priority": (classic, True), "classic": (classic, False)}
    first = found["limoe"].arguments
    # What the sweep takes for granted.
    minima = {"image": limoe.IMAGE_MINIMUM, "text": limoe.TEXT_MINIMUM}
    assert (first["soft_minimum_experts"], first["num_experts"]) == (minima, 16)
    for kind, (losses, priority) in kinds.items():
        own = found[kind].arguments
        assert (tuple(own["auxiliary_losses"]), own["batch_priority"]) == (losses, priority)
        same = dict.fromkeys(("auxiliary_losses", "batch_priority"))
        assert own | same == first | same
    assert found["dense"].arguments | {"placement": "every_2"} == first
    macs = {kind: analysis.profile(model, training=True).macs for kind, model in found.items()}
    # Slots beyond one a token, and the routers, are all that LIMoE computes beside.
    assert macs["dense"] < macs["limoe"] < 1.03 * macs["dense"]
    assert abs(macs["two_tower"] / macs["dense"] - 1) < 0.01


def test_the_lowest_layer_speaks():
    assert limoe.lowest(routing_row(1, 0.75, 0.5), "image", "success_rate") == 0.75
    assert limoe.lowest(routing_row(1, 0.75, 0.5), "text", "success_rate") == 0.5
    assert limoe.lowest(routing_row(1, 1, 1, 3.5), "text", "effective_experts") == 3.5


def verdicts(found):
    return {claim.text: claim.verdict for claim in limoe.claims(found)}


def test_the_table_says_what_was_found(routed):
    found = made_up(routed)
    judged = verdicts(found)
    assert judged["with neither, the success rate of text collapses (below 50%)"] == "holds"
    kept = "with entropy losses and priority more than 95% of the {} tokens get an expert"
    assert judged[kept.format("text")] == "holds"
    assert judged[kept.format("image")] == "holds"
    more = "with both, more text tokens get an expert than with {}"
    assert judged[more.format("priority alone")] == "holds"
    assert judged[more.format("entropy losses alone")] == "leans no"
    asked = "asked for {} experts, text spreads its {} over as many (relative)"
    # 3.9 of 4 is less than was asked for.
    gates, tokens = ([judged[asked.format(n, of)] for n in (2, 4, 8)] for of in ("gates", "tokens"))
    assert gates == ["holds", "does not hold", "does not hold"]
    assert tokens == ["holds", "does not hold", "does not hold"]
    assert not any("asked for 1 " in claim for claim in judged), "it could not fail"
    more = "asked for 8 experts instead of 2, text spreads its {} over more (relative)"
    assert [judged[more.format(of)] for of in ("gates", "tokens")] == ["does not hold"] * 2
    text = limoe.table(found)
    line = next(line for line in text.splitlines() if line.startswith("neither"))
    assert line.split("  ")[-1].strip() == "31.00 ± 0.58"
    assert "1.000M" in line
    assert "6.00 ± 0.00 experts" in text


def test_more_experts_than_a_few_can_be_found(routed):
    judged = verdicts(made_up(routed, of_eight=7.0))
    more = "asked for 8 experts instead of 2, text spreads its {} over more (relative)"
    assert [judged[more.format(of)] for of in ("gates", "tokens")] == ["holds"] * 2


def test_the_table_owns_up_to_claims_that_fail(routed):
    judged = verdicts(made_up(routed, (0.97, 0.971, 0.97), (0.6, 0.61, 0.62)))
    assert judged["with neither, the success rate of text collapses (below 50%)"] == "does not hold"
    for name in ("zero-shot", "image to text R@1"):
        assert judged[f"{name}: LIMoE beats two dense towers of equal FLOPs"] == "does not hold"


def test_pairs_are_routed_as_they_lie(pairs, routed):
    assert routed.images.shape == (1000, 32, 32, 1)
    assert list(routed.records) == ["encoder_block_1_moe"]
    record = routed.records["encoder_block_1_moe"]
    assert record.expert.shape == (1000, 64 + 13, 1)
    tokens = pairs.tokenizer(next(iter(data.read_captions(pairs.eval)))[:1])
    assert routed.tokens[0].tolist() == tokens[0].numpy().tolist()
    assert routed.piece(int(routed.tokens[0, 0])).startswith("▁")


def test_taken_experts_by_hand():
    # Text: 3 tokens at expert 0 and 1 at expert 2; images at expert 1 alone; one is dropped.
    expert = np.array([[[1], [1], [0], [0]], [[1], [1], [0], [2]]])
    kept = np.array([[[True], [False], [True], [True]], [[True]] * 4])
    record = analysis.RoutingRecord(
        layer="moe",
        router="top_k",
        expert=expert,
        weight=np.ones((2, 4, 1)),
        kept=kept,
        slot=np.zeros((2, 4, 1), int),
        gates=np.full((2, 4, 3), 1 / 3),
        modality=np.array([[0, 0, 1, 1]] * 2),
        modalities=("image", "text"),
    )
    found = limoe_routing.Routed(np.zeros(0), np.zeros(0), {"moe": record}, str)
    assert found.taken_experts("text") == pytest.approx((4 / 3) ** 0.75 * 4**0.25)
    assert found.taken_experts("image") == 1.0


def test_the_pictures_have_their_data_beside_them(routed, tmp_path):
    limoe_figure.plot_limoe(made_up(routed), tmp_path / "repro.png")
    names = ["repro", "repro_modalities", "repro_patches", "repro_tokens"]
    assert sorted(path.name for path in tmp_path.glob("*.png")) == [f"{n}.png" for n in names]
    with open(tmp_path / "repro.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 4 * 2 + 6 * 3 + 2 * 4
    classic = [row for row in rows if row["panel"] == "text success" and row["series"] == "neither"]
    assert [row["x"] for row in classic] == ["2", "4"]
    assert float(classic[-1]["value"]) == pytest.approx(0.31)
    assert [row["x"] for row in rows[-4:]] == ["1", "2", "4", "8"]
    assert float(rows[-6]["value"]) == pytest.approx(3.9005)
    assert float(rows[-2]["value"]) == pytest.approx(0.8 * 3.9 + 0.0005)


def test_it_reads_judges_and_writes(untrained, tmp_path, capsys, monkeypatch):
    trained = []

    def pretend(runs, processes):
        """Leaves what runs leave."""
        for run in runs:
            trained.append(run.workdir.name)
            run.workdir.mkdir()
            log = MetricsLog(run.workdir / "metrics.jsonl")
            log.append({"split": "train", "loss": 1.0, **routing_row(2, 0.8, 0.7)})
            log.append({"split": "train", "loss": 1.0, **routing_row(4, 0.9, 0.8)})
            log.append({"split": "eval", "step": 4, **dict.fromkeys(limoe.MEASURES, 0.5)})
            (run.workdir / "model.keras").write_bytes((untrained / "model.keras").read_bytes())

    monkeypatch.setattr(limoe, "train_all", pretend)
    words = [f"--gin_bindings={binding}" for binding in TINY]
    assert cli.main(["repro", "limoe", f"--out={tmp_path}", "--seeds=1", *words]) == 0
    assert trained == [f"{k}-0" for k in KINDS] + ["text_1-0", "text_2-0", "text_8-0"]
    found = json.loads((tmp_path / "repro.json").read_text())
    assert (found["steps"], found["seeds"]) == (4, [0])
    assert found["success_rates"]["limoe"] == {"image": [0.9], "text": [0.8]}
    assert found["soft_minimum_experts"] == {str(n): [6.0] for n in (1, 2, 4, 8)}
    assert set(found["history"]["limoe"][0][0]) == set(routing_row(2, 0, 0))
    assert sum(map(sum, found["tokens_of_experts"]["encoder_block_1_moe"])) > 1000 * (64 + 2)
    assert len(found["claims"]) == 6 + 3 * 3 + 2 * 4
    printed = capsys.readouterr().out
    assert "9 runs" in printed
    assert (tmp_path / "repro.txt").read_text().strip() in printed


@pytest.mark.slow
def test_a_run_measures_what_is_judged(tmp_path):
    run = limoe.trainings(tmp_path, [0], TINY, ["limoe"])[0]
    assert cli.main(run.command()[3:]) == 0
    found = limoe._routing(run)
    assert [row["step"] for row in found] == [2, 4]
    for modality in limoe.MODALITIES:
        assert 0 < limoe.lowest(found[-1], modality, "success_rate") <= 1
    assert 1 <= limoe.lowest(found[-1], "text", "effective_experts") <= 16.001
    assert all(0 <= value[0] <= 1 for value in limoe._scores([run]).values())
    assert isinstance(keras.models.load_model(run.workdir / "model.keras"), models.ImageTextModel)
