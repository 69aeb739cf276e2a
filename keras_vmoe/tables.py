"""Tables of text."""

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], num_left: int = 0) -> list[str]:
    """Lines up the cells of a table: two spaces between columns, each as wide as its widest cell.

    Args:
        rows: equally many cells each, the head first.
        num_left: columns that begin at the left; the others end at the right.

    Returns:
        A line per row.

    Example:
        >>> print("\\n".join(aligned([("expert", "share"), ("0", "12.5%")], num_left=1)))
        expert  share
        0       12.5%
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = [str.ljust] * num_left + [str.rjust] * (len(widths) - num_left)
    return [
        "  ".join(side(cell, width) for side, cell, width in zip(sides, row, widths, strict=True))
        for row in rows
    ]
