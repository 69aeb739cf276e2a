"""tpu/worker.sh, which runs on a TPU VM: here with a home, a Python and tools of its own."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.tpu.fake_gcloud import TPU

# Records how it was called; what it installs is a uv that does the same.
_TOOL = """#!/usr/bin/env bash
printf '%s\\n' "$(basename "$0") $*" >>"$RECORD"
if [ "$(basename "$0")" = "$FAILS" ]; then exit 9; fi
if [ "$(basename "$0")" = curl ]; then
  echo 'mkdir -p "$UV_INSTALL_DIR" && cp "$TOOLS/uv" "$UV_INSTALL_DIR/uv"'
fi
if [ "$(basename "$0")" = mountpoint ]; then exit 1; fi
"""
_PYTHON = """#!/usr/bin/env bash
if [ "$1" = -c ]; then echo /wheel/libtpu.so; else echo "python $*"; fi
"""


class Worker:
    """A TPU VM's worker.sh.

    Args:
        folder: an empty folder, for the home and the tools.
    """

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.run_folder = self.home / "keras_vmoe" / "run"
        self.record = folder / "record"
        self.tools = folder / "tools"
        self.tools.mkdir()
        for name in ("curl", "uv", "sudo", "gcsfuse", "mountpoint"):
            self._program(self.tools / name, _TOOL)
        self._program(self.home / "keras_vmoe" / "env" / "bin" / "python", _PYTHON)

    def _program(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def __call__(self, *words: str, fails: str = "") -> subprocess.CompletedProcess:
        environment = {
            **os.environ,
            "HOME": str(self.home),
            "PATH": f"{self.tools}:{os.environ['PATH']}",
            "TOOLS": str(self.tools),
            "RECORD": str(self.record),
            "FAILS": fails,
            "KERAS_VMOE_LAUNCH_SECONDS": "0.5",
        }
        command = ["bash", str(TPU / "worker.sh"), *words]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=60
        )

    def state(self) -> str:
        return self("state").stdout.strip()

    def wait(self, state: str) -> None:
        until = time.monotonic() + 20
        while self.state() != state and time.monotonic() < until:
            time.sleep(0.1)
        assert self.state() == state

    def log(self) -> str:
        return (self.run_folder / "log").read_text()

    def process(self) -> int:
        return int((self.run_folder / "pid").read_text())


@pytest.fixture
def worker(tmp_path):
    worker = Worker(tmp_path)
    yield worker
    if worker.state() == "running":
        os.killpg(worker.process(), signal.SIGKILL)


def test_a_launched_command_outlives_its_launcher_and_is_stopped(worker):
    assert worker.state() == "absent"
    program = 'echo "$PJRT_DEVICE $TF_PLUGGABLE_DEVICE_LIBRARY_PATH $1"; sleep 60'
    launched = worker("launch", "bash", "-c", program, "_", "a  b'c")
    assert launched.returncode == 0, launched.stderr
    assert "running, process" in launched.stdout
    assert worker.state() == "running"
    # A session of its own: the end of the connection does not reach it.
    assert os.getsid(worker.process()) == worker.process()
    again = worker("launch", "true")
    assert again.returncode == 1
    assert "a run is going" in again.stderr
    install = worker("install")
    assert install.returncode == 1
    assert not worker.record.exists()
    stopped = worker("stop")
    assert stopped.returncode == 0, stopped.stderr
    assert worker.state() == "failed 143"
    assert "TPU /wheel/libtpu.so a  b'c" in worker.log()
    assert "ended with exit code 143" in worker.log()


def test_a_command_that_ends_well_is_finished(worker):
    assert worker("launch", "true").returncode == 0
    worker.wait("finished")
    assert worker("stop").returncode == 0


def test_a_mistyped_command_is_told_at_once(worker):
    launched = worker("launch", "kears-vmoe", "train")
    assert launched.returncode == 1
    assert "kears-vmoe: command not found" in launched.stderr
    assert "the command ended at once: failed 127" in launched.stderr
    assert worker.state() == "failed 127"


def test_a_run_that_was_killed_is_interrupted(worker):
    worker("launch", "sleep", "60")
    os.killpg(worker.process(), signal.SIGKILL)
    worker.wait("interrupted")


def test_nothing_runs_before_the_installation(worker):
    (worker.home / "keras_vmoe" / "env" / "bin" / "python").unlink()
    for words in (("check",), ("launch", "true")):
        result = worker(*words)
        assert result.returncode == 1
        assert "nothing is installed; run tpu/install.sh" in result.stderr


def test_check_demands_a_tpu(worker):
    assert worker("check").stdout == f"python {TPU}/self_check.py --require_tpu\n"


def test_install_takes_the_pinned_versions(worker):
    result = worker("install", "my-bucket")
    assert result.returncode == 0, result.stderr
    called = worker.record.read_text().splitlines()
    env = worker.home / "keras_vmoe" / "env"
    assert called[0].startswith("curl -LsSf https://astral.sh/uv/")
    assert called[1] == f"uv venv --quiet --clear --python=3.11 {env}"
    assert called[2] == (
        f"uv pip install --quiet --python={env}/bin/python --no-deps "
        f"--requirement={TPU}/requirements.txt {TPU}/.."
    )
    assert called[3] == "mountpoint -q /gcs/my-bucket"
    assert "sudo mkdir -p /gcs/my-bucket" in called
    assert called[-1] == "gcsfuse --implicit-dirs my-bucket /gcs/my-bucket"


@pytest.mark.parametrize("tool", ["curl", "uv", "sudo", "gcsfuse"])
def test_an_installation_that_fails_says_so(worker, tool):
    result = worker("install", "my-bucket", fails=tool)
    assert result.returncode != 0
    assert worker.record.read_text().splitlines()[-1].startswith(tool)
    assert "installed" not in result.stdout


def test_an_unknown_word_is_refused(worker):
    result = worker("fly")
    assert result.returncode == 1
    assert "unknown command 'fly'; known: install, check, launch, state, stop" in result.stderr
