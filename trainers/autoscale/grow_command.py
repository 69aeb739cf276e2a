"""The command line of `keras-vmoe autoscale grow`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from keras_vmoe.tables import aligned
from keras_vmoe.trainers import command_line, model_flags
from keras_vmoe.trainers.autoscale import options, state
from keras_vmoe.trainers.errors import UsageError
from keras_vmoe.trainers.stopping import StopRequested, StopSignal
from keras_vmoe.trainers.work_progress import WorkProgress

if TYPE_CHECKING:
    from keras_vmoe.autoscale import Grown, Growth

_TEXT = """
Grows a topology to a family of models. In each step every candidate, one more block in one stage
and all stages 5 to 20 percent wider (rounded), is measured at a quarter of its width, and the one
is taken whose ranks by L^E and by the condition number of the NTK sum to least. Every size on the
way is a model of the family.

Writes grow.json, from which the same command goes on after a stop of any kind, and grow.png with
its data as CSV: depth and parameters against width, beside growths that choose at random.

  keras-vmoe autoscale grow --topology="8,2,3|4,1,2|4,1,4|4,1,6|32" --out=workdir/grow
  keras-vmoe autoscale grow --topology=workdir/search/search.json --until=30
"""
_RANDOM_GROWTHS = 5


def _flags() -> flags.FlagValues:
    values = options.new_flags()
    flags.DEFINE_string(
        "topology",
        None,
        "K,S,E|K,S,E|K,S,E|K,S,E|H, or the search.json of a search.",
        flag_values=values,
    )
    for name, default, text in (
        ("width", 8, "Measured width of the first stage, at the start. Default: 8."),
        ("widening", 4, "Real width over the measured one. Default: 4."),
    ):
        flags.DEFINE_integer(name, default, text, lower_bound=1, flag_values=values)
    for name, default, text in (
        ("until", 80.0, "Millions of parameters to grow to. Default: 80."),
        ("limit", 110.0, "Millions of parameters that none may exceed. Default: 110."),
    ):
        flags.DEFINE_float(name, default, text, lower_bound=0.0, flag_values=values)
    return values


def run(argv: Sequence[str]) -> int:
    """Runs `keras-vmoe autoscale grow`.

    Args:
        argv: the words after `grow`.

    Returns:
        The exit code.

    Raises:
        UsageError: a wrong command line.
        ValueError: a topology, an image size or a state that cannot be used.
        OSError: images that are not there, or results that cannot be written.
    """
    values = _flags()
    words = command_line.parse(values, argv, "autoscale grow")
    if values.help:
        print(
            command_line.help_text(values, "autoscale grow --topology=T [options]", _TEXT), end=""
        )
        return 0
    if words or values.topology is None:
        received = f"unexpected {words[0]!r}" if words else "--topology is missing"
        raise UsageError(f"autoscale grow: {received}; see keras-vmoe autoscale grow --help")
    options.check(values, "autoscale grow")
    growth, protocol = _new_growth(values), options.protocol(values)
    images = options.images(values, protocol)
    out = model_flags.make_folder(Path(values.out or "workdir/grow"))
    settings = options.settings(values, protocol, images) | {
        "topology": str(growth.topology),
        **{name: values[name].value for name in ("width", "widening", "limit")},
    }
    found = state.read(out / "grow.json", settings)
    if found:
        state.resume(growth.resume, found["trace"], out / "grow.json")
    try:
        _advance(growth, values, protocol, images, settings, out)
    except StopRequested as request:
        print(f"stopped by {request}; the same command goes on", file=sys.stderr)
        return request.exit_code
    _finish(growth, values, out)
    return 0


def _new_growth(values: flags.FlagValues) -> Growth:
    from keras_vmoe.autoscale import Growth, Size, network
    from keras_vmoe.models import Genotype

    topology = Genotype.parse(_topology(values.topology))
    network.check(topology, values.image_size)
    return Growth(
        topology,
        widening=values.widening,
        limit=values.limit * 1e6,
        size=Size((1, 1, 1, 1), values.width),
        compat=values.compat,
    )


def _topology(text: str) -> str:
    if not text.endswith(".json"):
        return text
    import json

    try:
        return json.loads(Path(text).expanduser().read_text(encoding="utf-8"))["derived"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"--topology={text} is no search.json: {error!r}") from error


def _advance(
    growth: Growth,
    values: flags.FlagValues,
    protocol: Any,
    images: Any,
    settings: dict[str, Any],
    out: Path,
) -> None:
    """Grows, and writes the state after each step."""
    until = values.until * 1e6
    print("\n".join(map(_line, growth.trace)), flush=True)
    if growth.trace[-1].params >= until:
        return
    from keras_vmoe.trainers.autoscale.workers import Workers

    # The time of a step grows with the parameters, so all steps take about as the last one.
    progress = WorkProgress(total_work=until)
    processes = options.processes(values)
    with StopSignal() as stop, Workers(protocol, images, processes, stop) as workers:
        grown: Grown | None = growth.trace[-1]
        while grown is not None and grown.params < until:
            stop.check()
            before, label = grown.params, f"step {len(growth.trace)}"

            def show(share: float, label: str = label) -> None:
                progress.begin(f"{label}, {share:.0%} of its sizes measured", work=0.0)

            show(0.0)
            grown = growth.advance(lambda sizes, step: workers.measure(sizes, step, show))
            content = {"settings": settings, "trace": [one._asdict() for one in growth.trace]}
            state.write(out / "grow.json", content)
            if grown is not None:
                progress.begin(label, work=grown.params - before)
                progress.print(_line(grown))
    progress.clear()
    if grown is None:
        print(f"note     all next sizes have more than {values.limit:g}M parameters: it ends here")


def _line(grown: Grown) -> str:
    return f"step {grown.step:<3}  {grown.params / 1e6:6.1f}M  {grown.genotype}"


def _finish(growth: Growth, values: flags.FlagValues, out: Path) -> None:
    from keras_vmoe.trainers.autoscale import figures

    figures.plot_growth(growth.trace, _at_random(growth, values), out / "grow.png")
    rows = [("step", "millions of parameters", "depths", "width", "L^E", "NTK")]
    for one in growth.trace:
        # The start was not measured.
        measures = (f"{one.length:.4g}", f"{one.condition_number:.4g}") if one.step else ("-", "-")
        depths = ",".join(map(str, one.depths))
        width = str(one.width * growth.widening)
        rows.append((str(one.step), f"{one.params / 1e6:.2f}", depths, width, *measures))
    print("\n".join(aligned(rows)))
    print(f"result   {growth.trace[-1].genotype}, {growth.trace[-1].params:,} parameters")
    print(f"wrote    grow.json and grow.png to {out}", flush=True)


def _at_random(growth: Growth, values: flags.FlagValues) -> list[list[Grown]]:
    """Growths of the same topology to the same size, which measure nothing."""
    import numpy as np

    from keras_vmoe.autoscale import Growth, Size

    found = []
    for number in range(_RANDOM_GROWTHS):
        rng = np.random.default_rng([values.seed, number])
        other = Growth(
            growth.topology,
            growth.widening,
            growth.limit,
            Size(growth.trace[0].depths, growth.trace[0].width),
        )
        while other.trace[-1].params < growth.trace[-1].params:
            if other.advance_at_random(rng) is None:
                break
        found.append(other.trace)
    return found
