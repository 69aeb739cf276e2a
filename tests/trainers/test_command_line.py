"""The `keras-vmoe` command line: help, usage errors, exit codes."""

import json
import subprocess
import sys
import types

import keras
import pytest

from keras_vmoe.trainers import cli, command_line, errors

HELP_WITHOUT_TENSORFLOW = """
import sys
sys.argv[0] = "keras-vmoe"  # as the console script finds it
from keras_vmoe.trainers import cli
for argv in ([], ["--help"], ["train", "--help"], ["profile", "--help"]):
    assert cli.main(argv) == 0
assert cli.main(["train", "--gin_file=missing.gin"]) == 1
print("heavy:", sorted({"tensorflow", "keras", "tensorflow_datasets", "orbit"} & set(sys.modules)))
"""


def test_help_imports_no_tensorflow():
    done = subprocess.run(
        [sys.executable, "-c", HELP_WITHOUT_TENSORFLOW], capture_output=True, text=True, check=True
    )
    assert "heavy: []" in done.stdout
    assert "--gin_bindings" in done.stdout
    for name in cli.COMMANDS:
        assert f"\n  {name}" in done.stdout


@pytest.mark.parametrize("backend", ["torch", "tensorflw"])
def test_another_backend_is_refused_before_keras_looks_for_it(capsys, monkeypatch, backend):
    monkeypatch.setenv("KERAS_BACKEND", backend)
    assert cli.main(["train", "--gin_file=runs/quickstart.gin"]) == 1
    message = capsys.readouterr().err
    assert f"KERAS_BACKEND='{backend}', but keras_vmoe runs on 'tensorflow' and 'jax'" in message
    assert cli.main(["train", "--help"]) == 0


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["tran"], ["unknown command 'tran'", "train, profile"]),
        (["train", "--gin_fil=x"], ["gin_fil", "gin_file", "keras-vmoe train --help"]),
        (["train"], ["--gin_file is missing", "runs/quickstart.gin"]),
        (["train", "quickstart.gin"], ["unexpected 'quickstart.gin'"]),
        (
            ["train", "--gin_file=runs/quickstart.gin", "--mesh=expert:2", "--tpu=local"],
            ["leave --tpu out: --mesh alone takes the accelerators of this machine (TPUs"],
        ),
        (["profile"], ["the model is missing"]),
        (["profile", "vmoe_s32", "num_experts"], ["'num_experts' is not NAME=VALUE"]),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(capsys, argv, words):
    assert cli.main(argv) == 2
    message = capsys.readouterr().err
    assert message.startswith("keras-vmoe: error: ")
    assert message.count("\n") == 1
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (
            ["train", "--gin_file=runs/quickstart.gin", "--workdir=gs://pile/a/run"],
            ["--workdir=gs://pile/a/run is", "install.sh --bucket=pile ", "--workdir=/gcs/pile/a/"],
        ),
        (["evaluate", "--workdir=GS://"], ["--workdir=GS:// is", "--workdir=/gcs/BUCKET"]),
        (["evaluate", "--workdir=run", "--out=s3://pile"], ["--out=s3://pile is", "/mnt/pile"]),
        (["fewshot", "--workdir=gs://pile"], ["--workdir=/gcs/pile"]),
        (["figures", "--workdir=run", "--out=gs://pile"], ["--out=/gcs/pile"]),
        (["repro", "no_paper", "--out=gs://pile"], ["--out=/gcs/pile"]),
    ],
)
def test_an_address_is_no_folder(capsys, tmp_path, monkeypatch, argv, words):
    monkeypatch.chdir(tmp_path)
    assert cli.main(argv) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    for word in words:
        assert word in message
    assert not list(tmp_path.iterdir())


def test_a_missing_gin_file_is_named_with_the_shipped_ones(capsys):
    assert cli.main(["train", "--gin_file=runs/quickstat.gin"]) == 1
    message = capsys.readouterr().err
    assert "--gin_file=runs/quickstat.gin" in message
    assert "runs/quickstart.gin" in message


def test_debug_shows_the_traceback(capsys):
    assert cli.main(["train", "--gin_file=missing.gin", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_ctrl_c_outside_of_a_run_is_exit_code_130(monkeypatch, capsys):
    def interrupted(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr("keras_vmoe.trainers.profile.main", interrupted)
    assert cli.main(["profile"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_error_lines_lose_graph_nodes_and_gin_calls():
    tensorflow_like = types.SimpleNamespace(
        message="{{node Decode}} Corrupt JPEG data [Op:Next] name: "
    )
    assert "Corrupt JPEG data" in errors.one_line(tensorflow_like)
    assert "{{" not in errors.one_line(tensorflow_like)
    gin_like = ValueError("bad width\n  In call to configurable 'VMoE' (<function make>)")
    assert errors.one_line(gin_like) == "bad width"
    assert errors.one_line(KeyError("name")) == "KeyError: 'name'"
    assert errors.one_line(ValueError()) == "ValueError"
    keras_like = ValueError(
        "Exception encountered when calling Patches.call().\n\n\x1b[1mimages must be larger\x1b[0m"
        "\n\nArguments received by Patches.call():\n  • images=[1]"
    )
    assert errors.one_line(keras_like) == "images must be larger"
    assert errors.one_line(ValueError("it lacks:\n a\n b\n c\n d")) == "it lacks: a; b; c; …"


def test_every_line_of_a_list_is_told(capsys):
    assert errors.report(errors.ListError("it lacks:\n a\n b\n c\n d")) == 1
    assert capsys.readouterr().err == "keras-vmoe: error: it lacks:\n  a\n  b\n  c\n  d\n"


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("a=3", 3),
        ("a=1.5", 1.5),
        ("a=every_2", "every_2"),
        ("a=(5, 7)", (5, 7)),
        ("a=None", None),
        ("a=", ""),
        ("a=x=y", "x=y"),
    ],
)
def test_overrides_are_literals_or_strings(word, value):
    assert command_line.parse_override("profile", word) == ("a", value)


def test_profile_prints_a_table_or_json(capsys):
    words = ["profile", "vmoe_s32", "num_classes=10", "placement=(7,)"]
    assert cli.main(words) == 0
    table = capsys.readouterr().out
    assert "encoder_block_7" in table
    assert cli.main([*words, "--json"]) == 0
    counts = json.loads(capsys.readouterr().out)
    assert f"{counts['params']:,}" in table
    assert cli.main([*words, "--depth=0"]) == 0
    assert "encoder_block_7" not in capsys.readouterr().out


def test_profile_counts_capacity_as_asked(capsys):
    def macs(*options):
        assert cli.main(["profile", "vmoe_s32", *options, "--json", "--depth=0"]) == 0
        counts = json.loads(capsys.readouterr().out)
        assert "layers" not in counts
        return counts["macs"]

    override = "eval_capacity_factor=4.0"
    assert macs() == macs(override, "--training") < macs("--whole_slots") < macs(override)


def test_profile_counts_a_pair_or_one_modality(capsys):
    words = ["profile", "limoe_s32", "num_experts=8", "--depth=0"]
    assert cli.main(words) == 0
    assert "FLOPs per pair" in capsys.readouterr().out
    assert cli.main([*words, "--modality=text"]) == 0
    assert "FLOPs per text" in capsys.readouterr().out


def test_profile_reads_saved_models(capsys, tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    model.save(tmp_path / "model.keras")
    assert cli.main(["profile", str(tmp_path / "model.keras"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["params"] == 10
    assert cli.main(["profile", "missing.keras"]) == 1
    assert "there is no file 'missing.keras'" in capsys.readouterr().err


def test_profile_names_what_it_does_not_know(capsys):
    assert cli.main(["profile", "vmoe_b17"]) == 1
    assert "vmoe_b17" in capsys.readouterr().err
    assert cli.main(["profile", "vmoe_b16", "num_exprts=3"]) == 1
    assert "num_exprts" in capsys.readouterr().err


def test_profile_counts_what_coarse_phases_save(capsys):
    words = ["profile", "asvit_s", "--retokenization=((10, 16, 5), (20, 8, 2))", "--epochs=40"]
    assert cli.main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["retokenization"]
    macs = [phase["macs"] for phase in found["phases"]]
    # A quarter of the epochs in each coarse phase, half with the model's own tokens.
    share = (0.25 * macs[0] + 0.25 * macs[1] + 0.5 * macs[2]) / macs[2]
    assert found["saved"] == pytest.approx(1 - share)
    assert cli.main(words) == 0
    assert f"saves {1 - share:.1%} of the training's FLOPs" in capsys.readouterr().out
    for setting, code, message in (
        ("16", 2, "must hold (until_epoch"),
        ("((10, 6, 2),)", 2, "--retokenization=((10, 6, 2),) must have strides"),
        ("((10, 2, 1),)", 2, "must have strides that are multiples"),
        ("((10, 8, 2), (20, 16, 5))", 2, "finer from each phase"),
        ("((50, 16, 5),)", 1, "epochs=40"),
    ):
        assert (
            cli.main(["profile", "asvit_s", f"--retokenization={setting}", "--epochs=40"]) == code
        )
        assert message in capsys.readouterr().err
