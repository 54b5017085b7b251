"""How many vectors go through an operator at once."""

from collections.abc import Iterator

__all__ = ["MAX_BLOCK_ENTRIES", "block_length", "ranges"]

MAX_BLOCK_ENTRIES = 2**22
"""Entries of the largest block of vectors made here (32 MiB in float64); chosen by experience: far above what hides the
cost of a call, far below the memory of a laptop. A block holds one vector at least, however large that is."""


def block_length(entries: int) -> int:
    """Number of vectors of `entries` entries that make one block.

    Example:
        >>> block_length(1000), block_length(10**9)
        (4194, 1)
    """
    return max(1, MAX_BLOCK_ENTRIES // max(1, entries))


def ranges(total: int, length: int) -> Iterator[slice]:
    """Slices of `length` (the last one shorter) that cover `total`.

    Example:
        >>> list(ranges(5, 2))
        [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    for start in range(0, total, length):
        yield slice(start, min(start + length, total))
