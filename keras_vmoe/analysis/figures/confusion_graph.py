"""The confusion graph, its communities coloured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_vmoe.analysis.figures import canvas
from keras_vmoe.analysis.figures.superclass_inputs import check_superclasses, short
from keras_vmoe.ops.validation import require

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAX_NAMES = 120
# Up to so many super-classes are told apart by colour, and more by colour and marker.
_COLOURS = canvas.EIGHT_COLOURS[:7]


def plot_confusion_graph(
    graph: Any,
    superclasses: Any,
    path: str | Path,
    class_names: Sequence[str],
    superclass_names: Sequence[str],
    edges_per_class: int = 4,
    seed: int = 0,
) -> Figure:
    """Draws classes as nodes, near to those that they are confused with, coloured by super-class.

    Edges inside of a super-class have its colour, those between are grey, and both grow with their
    weight. Names are written where there are up to 120 classes.

    Args:
        graph: `[n, n]` symmetric weights.
        superclasses: `[n]` ints, the super-class of each class.
        path: the picture's file; the edges go beside it as CSV.
        class_names: a name a class.
        superclass_names: a name a super-class.
        edges_per_class: an edge is drawn where it is among so many strongest of one of its ends.
        seed: of the layout; the same graph and seed give the same picture.

    Returns:
        The figure.

    Raises:
        ValueError: shapes that do not fit, or a graph without edges.
        ImportError: without networkx.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "graph.png"
        >>> graph = [[0, 1, 0.2], [1, 0, 0], [0.2, 0, 0]]
        >>> names = ["cat", "dog", "car"]
        >>> figure = plot_confusion_graph(graph, [0, 0, 1], path, names, ["pets", "vehicles"])
        >>> path.with_suffix(".csv").read_text().splitlines()[1]
        '0,cat,pets,1,dog,pets,1'

    Reference: Daxberger et al. 2023, arXiv 2309.04354; Jin et al., "Confusion graph", IJCAI 2017.
    """
    weights, ids = check_superclasses("graph", graph, superclasses, class_names, superclass_names)
    require(
        bool(weights.any() and np.array_equal(weights, weights.T)),
        "graph must be symmetric and have an edge at least",
    )
    edges = _strongest(weights, edges_per_class)
    places = _layout(np.where(edges, weights, 0.0), ids, seed)
    figure = canvas.new_figure(10.5, 7.5)
    axis = figure.subplots()
    _draw_edges(axis, np.where(edges, weights, 0.0), ids, places)
    for number, name in enumerate(superclass_names):
        mine = places[ids == number]
        style = {"s": 90 if len(ids) <= _MAX_NAMES else 26, "zorder": 3, "linewidths": 0.6}
        marker = canvas.MARKERS[number // len(_COLOURS) % len(canvas.MARKERS)]
        label = f"{short(name, 36)} ({len(mine)})"
        axis.scatter(
            *mine.T, color=_colour(number), marker=marker, ec="white", label=label, **style
        )
    if len(ids) <= _MAX_NAMES:
        for place, name in zip(places, class_names, strict=True):
            _write(axis, place, short(name), len(ids))
    axis.set_axis_off()
    axis.set_aspect("equal")
    axis.margins(0.06)
    style = {"fontsize": 7, "frameon": False, "title": "super-class"}
    figure.legend(loc="outside right center", **style)
    axis.set_title(
        f"Which of {len(ids)} classes are confused, in {len(superclass_names)} super-classes",
        fontsize=11,
    )
    rows = list(_rows(weights, edges, ids, class_names, superclass_names))
    canvas.save(figure, path, rows)
    return figure


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]


def _strongest(weights: np.ndarray, count: int) -> np.ndarray:
    """`[n, n]` bool: the edges that are drawn."""
    order = np.argsort(-weights, axis=1, kind="stable")[:, :count]
    kept = np.zeros(weights.shape, bool)
    np.put_along_axis(kept, order, True, axis=1)
    return (kept | kept.T) & (weights > 0)


def _layout(weights: np.ndarray, ids: np.ndarray, seed: int) -> np.ndarray:
    """`[n, 2]` places: each super-class has a disc of its own, nearer to those it shares more
    with, and classes are laid out by springs inside of it."""
    member = np.eye(ids.max() + 1)[ids]
    between = member.T @ weights @ member
    np.fill_diagonal(between, 0.0)
    centres = _springs(between, seed)
    distance = np.hypot(*(centres[:, None] - centres).T) + np.diag(np.full(len(centres), np.inf))
    radii = 0.43 * distance.min(1) if len(centres) > 1 else np.ones(1)
    places = np.zeros((len(ids), 2))
    for number in range(len(centres)):
        mine = np.flatnonzero(ids == number)
        inside = _springs(weights[np.ix_(mine, mine)], seed)
        reach = max(np.hypot(*inside.T).max(), 1e-30)
        places[mine] = centres[number] + radii[number] * inside / reach
    return places


def _springs(weights: np.ndarray, seed: int) -> np.ndarray:
    """`[n, 2]` places of the nodes of one graph, around 0."""
    try:
        import networkx
    except ImportError as error:
        raise ImportError(
            "the graph's layout needs networkx: pip install 'keras_vmoe[train]'."
        ) from error
    if len(weights) == 1:
        return np.zeros((1, 2))
    # What all pairs have spreads the nodes evenly.
    scaled = 1 + 2 * weights / max(weights.max(), 1e-30)
    np.fill_diagonal(scaled, 0.0)
    found = networkx.spring_layout(
        networkx.from_numpy_array(scaled), k=2 / np.sqrt(len(weights)), iterations=200, seed=seed
    )
    return np.array([found[i] for i in range(len(weights))])


def _draw_edges(axis: Axes, weights: np.ndarray, ids: np.ndarray, places: np.ndarray) -> None:
    from matplotlib.collections import LineCollection

    first, second = np.nonzero(np.triu(weights))
    strength = np.sqrt(weights[first, second] / weights.max())
    inside = ids[first] == ids[second]
    colours = [_colour(ids[i]) if own else "#C4C4C4" for i, own in zip(first, inside, strict=True)]
    lines = np.stack([places[first], places[second]], 1)
    widths = 0.3 + 2.6 * strength
    axis.add_collection(LineCollection(lines, colors=colours, linewidths=widths, alpha=0.55))


def _write(axis: Axes, place: np.ndarray, name: str, count: int) -> None:
    from matplotlib.patheffects import withStroke

    axis.annotate(
        name,
        place,
        xytext=(0, 6),
        textcoords="offset points",
        ha="center",
        fontsize=8 if count <= 40 else 5.5,
        zorder=4,
        path_effects=[withStroke(linewidth=2, foreground="white")],
    )


def _rows(
    weights: np.ndarray,
    edges: np.ndarray,
    ids: np.ndarray,
    class_names: Sequence[str],
    superclass_names: Sequence[str],
) -> Iterator[dict[str, Any]]:
    for first, second in zip(*np.nonzero(np.triu(edges)), strict=True):
        yield {
            "class": int(first),
            "class_name": class_names[first],
            "superclass": superclass_names[ids[first]],
            "other": int(second),
            "other_name": class_names[second],
            "other_superclass": superclass_names[ids[second]],
            "weight": weights[first, second],
        }
