"""`keras-vmoe repro`: the claims of a paper in miniature."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from keras_vmoe.trainers import command_line, gin_config
from keras_vmoe.trainers.errors import UsageError
from keras_vmoe.trainers.progress import duration
from keras_vmoe.trainers.stopping import StopRequested

PAPERS = ("vmoe", "upcycling", "limoe", "mobile", "asvit", "retokenization")
_SYNOPSIS = "repro PAPER [--out=DIR] [--seeds=N] [--processes=N] [--gin_bindings=NAME=VALUE]..."
_TEXT = """
Trains small models that show whether a paper's claims hold at this size, and prints each claim
with its numbers, standard errors and a verdict. Writes repro.json, repro.txt, repro.png and
repro.csv. An interrupted command goes on when it is given again.

  keras-vmoe repro vmoe        Fashion-MNIST: dense and sparse twins, batch priority, few-shot
  keras-vmoe repro upcycling   Fashion-MNIST: a dense model goes on, as it is or upcycled, or
                               a sparse one begins anew, at equal extra FLOPs; train.epochs is
                               the length of the dense model before that
  keras-vmoe repro limoe       scenes of digits with captions: one sparse tower with and without
                               entropy losses and batch priority, dense rivals, soft minima of
                               experts; also draws repro_modalities, _patches and _tokens
  keras-vmoe repro mobile      100 classes of garments with digits: one router for whole images,
                               taught super-classes, beside dense twins of four sizes; two sizes
                               and the kinds of routing with all seeds, the rest with the first;
                               also draws repro_ablations and writes the super-classes
  keras-vmoe repro asvit       Fashion-MNIST: random topologies of As-ViT and a searched one; how
                               well measures of untrained networks order them by accuracy
  keras-vmoe repro retokenization  Fashion-MNIST: As-ViT with coarse tokens at first, for four
                               shares of the run; accuracy, FLOPs and time saved
"""


def _flags() -> flags.FlagValues:
    values = command_line.new_flags()
    flags.DEFINE_string(
        "out",
        None,
        "The folder of results and runs. Default: workdir/repro-PAPER.",
        flag_values=values,
    )
    flags.DEFINE_integer("seeds", 3, "Seeds of each kind of run.", 1, flag_values=values)
    flags.DEFINE_integer(
        "processes", None, "Runs side by side. Default: one a core.", 1, flag_values=values
    )
    flags.DEFINE_multi_string(
        "gin_bindings", [], "A binding of all runs, such as train.epochs=3.", flag_values=values
    )
    flags.DEFINE_float(
        "extra",
        None,
        "upcycling: FLOPs of what goes on, as a share of the dense model's own. Default: 0.5.",
        0.0,
        flag_values=values,
    )
    return values


def main(argv: Sequence[str]) -> int:
    """Runs `keras-vmoe repro`.

    Args:
        argv: the words after `repro`.

    Returns:
        The exit code.

    Raises:
        UsageError: a wrong command line.
        OSError: data that is not there, or a folder that cannot be written.
        RuntimeError: if a run fails.
    """
    values = _flags()
    words = command_line.parse(values, argv, "repro")
    if values.help:
        print(command_line.help_text(values, _SYNOPSIS, _TEXT), end="")
        return 0
    if len(words) != 1 or words[0] not in PAPERS:
        raise UsageError(f"repro: name one paper of: {', '.join(PAPERS)}; received {words}")
    paper = words[0]
    if values.extra is not None and (paper != "upcycling" or values.extra == 0):
        raise UsageError(f"repro: --extra={values.extra} is a share above 0, of upcycling alone")
    gin_config.load()
    out = Path(values.out or f"workdir/repro-{paper}")
    out.mkdir(parents=True, exist_ok=True)
    processes = values.processes or os.cpu_count() or 1
    try:
        _reproduce(paper, out, range(values.seeds), processes, values.gin_bindings, values.extra)
    except StopRequested as request:
        print(
            f"stopped by {request}; the runs saved their state in {out}; the same command goes on",
            file=sys.stderr,
        )
        return request.exit_code
    return 0


def _reproduce(
    paper: str,
    out: Path,
    seeds: Sequence[int],
    processes: int,
    bindings: Sequence[str],
    extra: float | None,
) -> None:
    if paper == "vmoe":
        from keras_vmoe.trainers.repro import vmoe as claims
        from keras_vmoe.trainers.repro.figures import plot_vmoe as plot
    elif paper == "limoe":
        from keras_vmoe.trainers.repro import limoe as claims
        from keras_vmoe.trainers.repro.limoe_figure import plot_limoe as plot
    elif paper == "mobile":
        from keras_vmoe.trainers.repro import mobile as claims
        from keras_vmoe.trainers.repro.mobile_figure import plot_mobile as plot
    elif paper == "asvit":
        from keras_vmoe.trainers.repro import asvit as claims
        from keras_vmoe.trainers.repro.asvit_figure import plot_asvit as plot
    elif paper == "retokenization":
        from keras_vmoe.trainers.repro import retokenization as claims
        from keras_vmoe.trainers.repro.retokenization_figure import plot_retokenization as plot
    else:
        from keras_vmoe.trainers.repro import upcycling as claims
        from keras_vmoe.trainers.repro.upcycling_figure import plot_upcycling as plot
    # Of upcycling alone.
    options = {} if extra is None else {"extra": extra}
    began = time.monotonic()
    runs = claims.num_runs(len(seeds))
    print(f"{runs} runs, {processes} at a time, in {out}", flush=True)
    found = claims.measure(out, list(seeds), processes, bindings, **options)
    text = claims.table(found)
    (out / "repro.txt").write_text(text + "\n", encoding="utf-8")
    (out / "repro.json").write_text(json.dumps(claims.to_dict(found), indent=2), encoding="utf-8")
    plot(found, out / "repro.png")
    print(
        f"{text}\n\nwrote repro.txt, repro.json, repro.png and repro.csv to {out}, in "
        f"{duration(time.monotonic() - began)}"
    )
