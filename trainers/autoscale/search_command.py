"""The command line of `keras-vmoe autoscale search`."""

from __future__ import annotations

import json
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
    from keras_vmoe.autoscale import Search

_TEXT = """
Searches the topology of an As-ViT: kernels, splits, MLP ratios and heads, with one block in each
stage. A policy samples a topology, its L^E and the condition number of its NTK are measured over
some draws of weights, and it is rewarded for what is better than the topology before. The result is
the likeliest choice of each gene.

Writes search.json, from which the same command goes on after a stop of any kind and with which
more --steps go further; search_trace.png and search_marginals.png, with their data as CSV. The same
seed gives the same search, however often stopped and with any number of processes.

  keras-vmoe autoscale search --out=workdir/search
  keras-vmoe autoscale search --data=fashion_mnist --image_size=64 --steps=100
  keras-vmoe autoscale search --space=space.json  a search space of your own, such as
                                        {"kernels": [[4, 8], [2], [2], [2]], "heads": [16, 32]};
                                        genes that it leaves out are searched as in the paper
"""


def _flags() -> flags.FlagValues:
    values = options.new_flags()
    flags.DEFINE_string("space", None, "A JSON file of choices. See above.", flag_values=values)
    for name, default, least, text in (
        ("steps", 500, 1, "Topologies to measure. Default: 500."),
        ("width", 32, 1, "Of the first stage (C). Default: 32."),
        ("window", 20, 2, "Topologies that rewards are scaled by. Default: 20."),
        ("last", 100, 1, "Last samples that the marginals count. Default: 100."),
    ):
        flags.DEFINE_integer(name, default, text, lower_bound=least, flag_values=values)
    flags.DEFINE_float(
        "learning_rate", 0.08, "Of the policy. Default: 0.08.", 0.0, flag_values=values
    )
    return values


def run(argv: Sequence[str]) -> int:
    """Runs `keras-vmoe autoscale search`.

    Args:
        argv: the words after `search`.

    Returns:
        The exit code.

    Raises:
        UsageError: a wrong command line.
        ValueError: a search space, an image size or a state that cannot be used.
        OSError: images that are not there, or results that cannot be written.
    """
    values = _flags()
    words = command_line.parse(values, argv, "autoscale search")
    if values.help:
        print(command_line.help_text(values, "autoscale search [options]", _TEXT), end="")
        return 0
    if words:
        raise UsageError(
            f"autoscale search: unexpected {words[0]!r}; see keras-vmoe autoscale search --help"
        )
    options.check(values, "autoscale search")
    search, protocol = _new_search(values), options.protocol(values)
    search.space.check(values.image_size, values.width)
    images = options.images(values, protocol)
    out = model_flags.make_folder(Path(values.out or "workdir/search"))
    settings = options.settings(values, protocol, images) | {
        "space": search.space.to_dict(),
        **{name: values[name].value for name in ("width", "window", "learning_rate")},
    }
    found = state.read(out / "search.json", settings)
    if found:
        state.resume(search.resume, found, out / "search.json")
    print(
        f"space    {search.space.size:,} topologies, entropy {search.policy.entropy:.2f} nats\n"
        f"images   {values.ntk_batch} of {settings['data']}, {values.image_size} px\n"
        f"steps    {len(search.trace)} of {values.steps} done, in {out}",
        flush=True,
    )
    try:
        _advance(search, values, protocol, images, settings, out)
    except StopRequested as request:
        print(f"stopped by {request}; the same command goes on", file=sys.stderr)
        return request.exit_code
    _finish(search, values.last, out)
    return 0


def _new_search(values: flags.FlagValues) -> Search:
    from keras_vmoe.autoscale import Search, SearchSpace

    space = SearchSpace()
    if values.space is not None:
        try:
            content = json.loads(Path(values.space).expanduser().read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"--space={values.space} is not JSON: {error}") from error
        try:
            space = SearchSpace.from_dict(content)
        except ValueError as error:
            raise ValueError(f"--space={values.space}: {error}") from error
    return Search(
        space,
        width=values.width,
        seed=values.seed,
        learning_rate=values.learning_rate,
        window=values.window,
        compat=values.compat,
    )


def _advance(
    search: Search,
    values: flags.FlagValues,
    protocol: Any,
    images: Any,
    settings: dict[str, Any],
    out: Path,
) -> None:
    """Takes the steps that are left, and writes the state after each."""
    left = values.steps - len(search.trace)
    if left <= 0:
        return
    from keras_vmoe.trainers.autoscale.workers import Workers

    progress = WorkProgress(total_work=float(left))
    processes = options.processes(values, values.repeats)
    with StopSignal() as stop, Workers(protocol, images, processes, stop) as workers:
        for _ in range(left):
            stop.check()
            progress.begin(_words(search), work=1.0)
            search.advance(lambda genotype, step: workers.measure([genotype], step)[0])
            state.write(out / "search.json", _content(search, values.last, settings))
    progress.clear()


def _words(search: Search) -> str:
    if not search.trace:
        return "step 0"
    from keras_vmoe.autoscale import best_candidate

    last, trace = search.trace[-1], search.trace
    best = best_candidate([s.condition_number for s in trace], [s.length for s in trace])
    return (
        f"step {last.step + 1}  reward {last.reward:+.2f}  entropy {last.entropy:.2f}  "
        f"best {trace[best].genotype} (L^E {trace[best].length:.3g}, "
        f"NTK {trace[best].condition_number:.3g})"
    )


def _content(search: Search, last: int, settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "settings": settings,
        "derived": str(search.derived),
        "marginals": search.marginals(last),
        **search.state(),
    }


def _finish(search: Search, last: int, out: Path) -> None:
    from keras_vmoe.trainers.autoscale import figures

    figures.plot_trace(search.trace, out / "search_trace.png")
    figures.plot_marginals(search.marginals(last), out / "search_marginals.png")
    rows = [("gene", "chosen", f"last {min(last, len(search.trace))} samples")]
    chosen = search.policy.most_likely()
    marginals = search.marginals(last).items()
    for (name, counts), action in zip(marginals, chosen, strict=True):
        words = ", ".join(f"{choice}: {count}" for choice, count in counts.items())
        rows.append((name, str(list(counts)[action]), words))
    print("\n".join(aligned(rows, num_left=1)))
    print(f"result   {search.derived}, entropy {search.policy.entropy:.2f} nats")
    print(f"wrote    search.json, search_trace.png and search_marginals.png to {out}", flush=True)
