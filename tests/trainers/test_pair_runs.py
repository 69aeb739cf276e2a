"""Runs on image-text pairs: training, resuming, what they leave, and the commands that read it."""

import contextlib
import json
import shutil

import keras
import numpy as np
import pytest

from keras_vmoe import data, models, serving, text
from keras_vmoe.trainers import cli, pair_evaluation, stopping, trained
from keras_vmoe.trainers.metrics_log import MetricsLog
from keras_vmoe.trainers.work_progress import WorkProgress
from tests.trainers.tiny import PICTURE, SHORT, TINY_LIMOE, train

# Captions of single scans: few words, and few images to embed.
PAIRS = ("pairs.name='labelled:digits'", "pairs.templates=('a {}', 'the digit {}')")
TEMPLATES = ("a {}", "{}")
LIMOE = (*TINY_LIMOE, *SHORT, *PAIRS, f"ZeroShot.templates={TEMPLATES}", "FewShot.seeds=1")
GIN = {"gin_file": "runs/limoe/quickstart.gin", "tiny": LIMOE}


def rows(workdir, split=None):
    return [x for x in MetricsLog(workdir / "metrics.jsonl").rows() if split in (None, x["split"])]


@pytest.fixture(scope="session")
def pair_run(tmp_path_factory):
    """The workdir of a tiny LIMoE after 6 steps; not to be written to."""
    workdir = tmp_path_factory.mktemp("pairs") / "run"
    assert train(workdir, PICTURE, **GIN) == 0
    return workdir


def test_rows_hold_what_was_measured(pair_run):
    last = rows(pair_run, "eval")[-1]
    for way in ("image_to_text", "text_to_image"):
        found = [last[f"retrieval/{way}@{k}"] for k in (1, 5, 10)]
        assert found == sorted(found)
        assert 0 <= found[0] <= found[-1] <= 1
    assert 0 <= last["zeroshot/digits"] <= 1
    assert last["fewshot/10shot"] > 0.1  # chance
    layer = rows(pair_run, "train")[-1]
    for name in ("image", "text"):
        assert 0 < layer[f"encoder_block_0_moe/{name}_success_rate"] <= 1
        assert 1 <= layer[f"encoder_block_0_moe/{name}_effective_experts"] <= 4
    assert layer["encoder_block_0_moe/image_tokens"] == 16 * 4
    assert 2 * 16 <= layer["encoder_block_0_moe/text_tokens"] <= 16 * 16


def test_the_routing_of_images_and_the_modalities_of_experts_are_drawn(pair_run):
    for name in ("routing.png", "modalities.png"):
        assert (pair_run / name).read_bytes().startswith(b"\x89PNG")
    lines = (pair_run / "modalities.csv").read_text().splitlines()
    assert len(lines) > 4  # a head, and the experts


def test_a_refused_start_leaves_no_vocabulary_behind(tmp_path, capsys):
    assert train(tmp_path, "ZeroShot.dataset='no_such_set_anywhere'", **GIN) == 1
    assert not (tmp_path / "tokenizer.model").exists()


def test_images_that_may_be_left_out_are_no_candidates(tmp_path):
    from PIL import Image

    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(6):
        pixels = rng.integers(0, 255, size=(16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    (folder / "3.png").write_bytes(b"no picture")
    lines = [f"{i}.png\tpicture {word}" for i, word in enumerate("abcdef")]
    (folder / "captions.tsv").write_text("\n".join(lines) + "\n")
    source = data.load_pairs(f"caption_folder:{folder}", max_corrupt=1, verify=False)
    words = text.train_tokenizer(["picture a b c d e f"], 64)
    model = models.LIMoE.from_variant("limoe_ti8", vocabulary_size=words.vocabulary_size)
    splits = source.splits.values()
    found = [pair_evaluation.recalls(model, words, split, batch_size=4) for split in splits]
    assert sum(len(texts) for _, texts in found) == 5


def test_the_tokenizer_is_saved_with_run_and_model(pair_run):
    kept = text.Tokenizer.load(pair_run / "tokenizer.model")
    model = keras.saving.load_model(pair_run / "model.keras")
    assert isinstance(model, models.ImageTextModel)
    assert model.vocabulary == kept.model
    images = data.load("digits").eval.images[:3]
    names = ("zero", "one", "two")
    for name, probability in model.classify(images, names, ["a {}"]):
        assert name in names
        assert 1 / 3 <= probability <= 1
    with pytest.raises(ValueError, match="texts must not be empty"):
        model.encode_text(["one", " "])


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(pair_run, tmp_path, monkeypatch, capsys):
    checks = iter(range(100))

    def check(self):
        if next(checks) == 3:
            raise stopping.StopRequested(2)

    with monkeypatch.context() as patch:
        patch.setattr(stopping.StopSignal, "check", check)
        assert train(tmp_path, **GIN) == 130
    assert train(tmp_path, **GIN) == 0
    assert "resume   from step 3" in capsys.readouterr().out
    for left, right in zip(rows(pair_run), rows(tmp_path), strict=True):
        assert (left["step"], left["split"]) == (right["step"], right["split"])
        assert left["loss"] == pytest.approx(right["loss"], rel=1e-5)


def test_a_checkpoint_is_read_with_its_tokenizer(pair_run, tmp_path):
    copied = shutil.copytree(pair_run, tmp_path / "run")
    (copied / "model.keras").unlink()
    found = trained.load(copied, pairs=True)
    whole = trained.load(pair_run, pairs=True)
    assert found.tokenizer.model == whole.tokenizer.model
    assert (found.image_size, found.channels) == (32, 1)
    tokens = np.asarray(found.tokenizer(["a one", "the digit two"]))
    np.testing.assert_allclose(
        np.asarray(found.model.encode_text(tokens)),
        np.asarray(whole.model.encode_text(tokens)),
        atol=1e-6,
    )


def test_another_vocabulary_than_the_runs_is_refused(pair_run, tmp_path, capsys):
    copied = shutil.copytree(pair_run, tmp_path / "run")
    text.train_tokenizer(["other words"], 40).save(tmp_path / "other.model")
    binding = f"pairs.vocabulary='{tmp_path / 'other.model'}'"
    assert train(copied, binding, **GIN) == 1
    assert "pairs.vocabulary" in capsys.readouterr().err


def test_retrieval(pair_run, tmp_path, capsys):
    words = [f"--workdir={pair_run}", f"--out={tmp_path}"]
    assert cli.main(["retrieval", *words]) == 0
    printed = capsys.readouterr().out
    assert "digits: 360 held-out images" in printed
    assert "captions 720, 0 of them cut, 0 of unknown words alone" in printed
    found = json.loads((tmp_path / "retrieval.json").read_text())
    last = rows(pair_run, "eval")[-1]
    assert found["image_to_text"]["recall_at_5"] == pytest.approx(last["retrieval/image_to_text@5"])


def test_retrieval_among_other_pairs(pair_run, tmp_path, capsys):
    words = [f"--model={pair_run / 'model.keras'}", f"--out={tmp_path}"]
    assert cli.main(["retrieval", *words, "--dataset=labelled:digits,train,test"]) == 0
    assert "labelled:digits" in capsys.readouterr().out


def test_the_first_images_alone_are_candidates(pair_run):
    found, batches = trained.load(pair_run, pairs=True), []
    few = pair_evaluation.Retrieval(batch_size=4, max_images=7)
    measured = few.measure(found.model, found.source, lambda: batches.append(1))
    assert len(batches) == few.passes == 2
    assert measured["retrieval/text_to_image@10"] == 1, "seven are among the nearest ten"


def test_a_measurement_that_ends_early_leaves_a_free_line(pair_run, tmp_path, monkeypatch):
    cleared = []
    monkeypatch.setattr(WorkProgress, "clear", lambda self: cleared.append(self))

    def stopped(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(pair_evaluation, "embed_images", stopped)
    with contextlib.suppress(KeyboardInterrupt):
        cli.main(["retrieval", f"--workdir={pair_run}", f"--out={tmp_path}"])
    assert cleared


def test_zero_shot_measures_what_the_run_measured(pair_run, tmp_path, capsys):
    words = [f"--workdir={pair_run}", f"--out={tmp_path}", "--dataset=digits"]
    assert cli.main(["zeroshot", *words]) == 0
    printed = capsys.readouterr().out
    assert "prompts  2 of a class, ZeroShot.templates of the run" in printed
    assert "10 classes, 20 prompts, 0 of them of unknown words alone" in printed
    content = json.loads((tmp_path / "zeroshot.json").read_text())
    assert content["templates"] == list(TEMPLATES)
    found = content["datasets"]["digits"]
    last = rows(pair_run, "eval")[-1]
    assert found["accuracy"] == pytest.approx(last["zeroshot/digits"])
    assert len(found["class_accuracies"]) == 10


@pytest.mark.parametrize(
    ("words", "printed"),
    [
        (["--workdir={}", "--templates=class_name_only"], "prompts  1 of a class, --templates"),
        (["--model={}/model.keras"], "prompts  8 of a class, clip_best"),
    ],
)
def test_zero_shot_with_other_templates(pair_run, tmp_path, words, printed, capsys):
    words = [word.format(pair_run) for word in words]
    assert cli.main(["zeroshot", *words, f"--out={tmp_path}", "--dataset=digits"]) == 0
    assert printed in capsys.readouterr().out


def test_the_class_names_of_a_run_are_of_its_dataset():
    names = [*"abcdefghij"]
    measured = pair_evaluation.ZeroShot("digits", names)
    assert measured.class_names_of("digits") == names
    assert measured.class_names_of("fashion_mnist") is None
    assert pair_evaluation.ZeroShot(["digits", "cifar10"]).class_names_of("digits") is None


def test_linear_classifier_of_embeddings(pair_run, tmp_path, capsys):
    words = [f"--workdir={pair_run}", f"--out={tmp_path}", "--dataset=digits", "--seeds=1"]
    assert cli.main(["fewshot", *words, "--shots=10"]) == 0
    (row,) = json.loads((tmp_path / "fewshot.json").read_text())["datasets"]["digits"]["rows"]
    assert row["shots"] == 10
    assert row["mean"] > 0.1  # chance


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evaluate"], "is a model of image-text pairs"),
        (["zeroshot"], "--dataset is missing"),
        (["fewshot"], "--dataset is missing"),
        (["zeroshot", "--dataset=digits", "--templates=some of"], "templates"),
        (["retrieval", "--dataset=digits"], "digits"),
    ],
)
def test_commands_say_what_is_wrong(pair_run, tmp_path, words, message, capsys):
    command, *others = words
    assert cli.main([command, f"--workdir={pair_run}", f"--out={tmp_path}", *others]) != 0
    assert message in capsys.readouterr().err


def test_names_must_be_as_many_as_classes(pair_run, tmp_path, capsys):
    (tmp_path / "names.txt").write_text("zero\none\n")
    words = [f"--workdir={pair_run}", "--dataset=digits", f"--out={tmp_path}"]
    assert cli.main(["zeroshot", *words, f"--class_names={tmp_path / 'names.txt'}"]) == 1
    assert "2 names for the 10 classes of digits" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["zeroshot", "retrieval"])
def test_a_classifier_embeds_no_texts(command, finished_run, capsys):
    words = [command, f"--workdir={finished_run}", "--dataset=digits"]
    assert cli.main(words) == 1
    assert "is a model of images alone" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("train.label_smoothing=0.1", "train.label_smoothing=0.1 is of classification"),
        ("train.loss='sigmoid'", "such as LIMoE.loss"),
        ("train.mix=@Mixup()", "is of classification"),
        ("train.model=@VMoE", "take @LIMoE or @TwoTower"),
        ("LIMoE.auxiliary_losses=('entropy',)", "auxiliary_losses must be of"),
        ("LIMoE.soft_minimum_experts={'text': 9}", "between 1 and num_experts=4"),
        ("FewShot.dataset=None", "has captions in place of classes"),
        ("Retrieval.max_images=0", "Retrieval.max_images=0 must be a positive whole number"),
        ("pairs.vocabulary='nowhere.model'", "there is no such vocabulary"),
        ("pairs.text_length=1", "length=1"),
        ("ZeroShot.dataset=()", "ZeroShot.dataset is not given"),
        ("Retrieval.every=0", "Retrieval.every=0 must be a positive whole number"),
    ],
)
def test_wrong_parameters(binding, message, tmp_path, capsys):
    assert train(tmp_path / "run", binding, **GIN) == 1
    assert message in capsys.readouterr().err


def test_measurements_of_pairs_need_pairs(tmp_path, capsys):
    assert train(tmp_path, "train.retrieval=@Retrieval()") == 1
    assert "train.retrieval is of runs on image-text pairs" in capsys.readouterr().err


def test_export_and_what_predict_says_of_it(pair_run, tmp_path, capsys):
    path = tmp_path / "served"
    assert cli.main(["export", str(pair_run), str(path), "--batch_size=dynamic"]) == 0
    printed = capsys.readouterr().out
    assert "input    images [any, any, any, 1] float32, 0 to 255\n" in printed
    assert "input    texts [any] string\n" in printed
    assert "loading  needs import tensorflow_text\n" in printed
    model = keras.saving.load_model(pair_run / "model.keras")
    exported = serving.load_pairs(path)
    texts = ["a one", "the digit two"]
    np.testing.assert_allclose(exported.encode_text(texts), model.encode_text(texts), atol=1e-5)
    (tmp_path / "a.png").write_bytes(b"")
    for place in (path, pair_run, pair_run / "model.keras"):
        assert cli.main(["predict", str(place), str(tmp_path / "a.png")]) == 1
        error = capsys.readouterr().err
        assert "keras-vmoe zeroshot" in error
        assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.onnx"], "path must be a folder: a model of image-text pairs has two encoders"),
        (["served", "--capacity_factor=2"], "--capacity_factor=2 is of models of images alone"),
        (["served", "--capacity_factor=2"], "from_variant.eval_capacity_factor of a preset"),
    ],
)
def test_exports_that_are_refused(pair_run, tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["export", str(pair_run / "model.keras"), *words]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
