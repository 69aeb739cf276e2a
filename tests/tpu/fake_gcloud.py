"""A `gcloud` for tests: records its calls, answers from a script, fails on purpose."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent.parent
TPU = ROOT / "tpu"

# One file a call, one argument a line. An answer is the next line of a file named after the call.
_PROGRAM = """#!/usr/bin/env bash
number=$(($(cat "$FAKE_GCLOUD/count") + 1))
echo "$number" >"$FAKE_GCLOUD/count"
printf '%s\\n' "$@" >"$FAKE_GCLOUD/call-$number"
if [ "$number" = "$FAKE_GCLOUD_FAILS_AT" ]; then
  echo "ERROR: (gcloud) fails on purpose" >&2
  exit 7
fi
case "$*" in
  *"queued-resources describe"*) answers=queue ;;
  *"tpu-vm describe"*) answers=node ;;
  *"worker.sh state"*) answers=run ;;
  *) exit 0 ;;
esac
sed -n 1p "$FAKE_GCLOUD/$answers"
# The last answer stays.
[ "$(wc -l <"$FAKE_GCLOUD/$answers")" = 1 ] || sed -i 1d "$FAKE_GCLOUD/$answers"
"""


class Result(NamedTuple):
    """How a script ended, and the calls of gcloud that it made."""

    code: int
    out: str
    err: str
    calls: list[list[str]]


class FakeGcloud:
    """The scripts of `tpu/`, with a `gcloud` on PATH that only records.

    Args:
        folder: an empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tmp = folder / "tmp"
        self._bin = folder / "bin"
        self.tmp.mkdir()
        self._bin.mkdir()
        program = self._bin / "gcloud"
        program.write_text(_PROGRAM)
        program.chmod(0o755)
        self._repository = _small_repository(folder / "repository")
        self.answer()

    def answer(self, queue: str = "ACTIVE", node: str = "READY", run: str = "absent") -> None:
        """Sets what the descriptions say, words in turn; the last word stays."""
        for name, words in (("queue", queue), ("node", node), ("run", run)):
            (self.folder / name).write_text("".join(f"{word}\n" for word in words.split(",")))

    def run(self, script: str, *words: str, fails_at: int = 0) -> Result:
        """Runs `tpu/SCRIPT WORDS...`; the call of the number `fails_at` fails."""
        for call in self.folder.glob("call-*"):
            call.unlink()
        (self.folder / "count").write_text("0\n")
        environment = {
            **os.environ,
            "PATH": f"{self._bin}:{os.environ['PATH']}",
            "TMPDIR": str(self.tmp),
            # The sources under test may lie in no repository, or in one with changes.
            "GIT_DIR": str(self._repository / ".git"),
            "GIT_WORK_TREE": str(self._repository),
            "FAKE_GCLOUD": str(self.folder),
            "FAKE_GCLOUD_FAILS_AT": str(fails_at),
        }
        done = subprocess.run(
            [str(TPU / script), *words],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        count = int((self.folder / "count").read_text())
        calls = [(self.folder / f"call-{i + 1}").read_text().splitlines() for i in range(count)]
        return Result(done.returncode, done.stdout, done.stderr, calls)


def printed_calls(result: Result) -> list[list[str]]:
    """The calls of gcloud among the commands that --dry_run printed."""
    lines = [shlex.split(line) for line in result.out.splitlines() if not line.startswith("#")]
    return [words[1:] for words in lines if words[0] == "gcloud"]


def _small_repository(folder: Path) -> Path:
    """A repository of two of our files, in one commit."""
    for name in ("setup.cfg", "gin/runs/quickstart.gin"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text((ROOT / name).read_text())
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], [*author, "commit", "-qm", "Two files"]):
        subprocess.run(["git", *words], cwd=folder, check=True)
    return folder
