"""The bifurcation graph: how many attractors, unstable directions and orbits a system has, and the moves between."""

import dataclasses
import enum
from typing import Any, final

from kpflow._checks import check_range

from .points import FixedPoints

__all__ = ["BifurcationGraph", "Move", "Reachable", "bifurcation_graph"]


@final
class Move(enum.Enum):
    """What a bifurcation of a stable fixed point does to (S, U, O); its inverse takes the same away."""

    PITCHFORK = ("pitchfork", (1, 1, 0))
    """One stable point becomes two and a saddle between them."""
    SADDLE_NODE = ("saddle-node", (1, 1, 0))
    """A stable point and a saddle are born."""
    TRANSCRITICAL = ("transcritical", (0, 0, 0))
    """A stable point and a saddle exchange their stability."""
    FLIP = ("flip", (-1, 1, 1))
    """A multiplier passes −1: the point is a saddle, and a 2-cycle is born; flows have none."""
    NEIMARK_SACKER = ("neimark-sacker", (-1, 0, 1))
    """A complex pair leaves the unit circle, and an invariant circle is born; of a flow, Hopf's, and a cycle is."""

    @property
    def counts(self) -> tuple[int, int, int]:
        """What is added to (S, U, O)."""
        return self.value[1]


@final
class Reachable(str, enum.Enum):
    """Whether the counts can be reached from one stable point by the moves and no others."""

    REACHABLE = "reachable: O − 1 ≤ U − S ≤ 2O − 1, as after the moves of stable points"
    OUTSIDE = "outside: O − 1 ≤ U − S ≤ 2O − 1 fails, so that a saddle has bifurcated, or points or orbits are missing"


@final
@dataclasses.dataclass(frozen=True)
class BifurcationGraph:
    """The counts (S, U, O) of a system.

    The moves from (1, 0, 0) give O − 1 ≤ U − S ≤ 2O − 1: with p moves of pitchforks and saddle-nodes, f flips and n
    Neimark–Sacker bifurcations, net, S = 1 + p − f − n, U = p + f and O = f + n, so that f = U − S + 1 − O and
    n = 2O − 1 − U + S, and the two inequalities say that neither is negative. For that a complex pair counts in O, by
    the circle that it left behind, and not in U.

    Args:
        stable: S, fixed points h = f(h) with all |μ| < 1 (of a flow: Re μ < 0).
        unstable: U, real multipliers with |μ| > 1 (of a flow: μ > 0), of all fixed points; of a map −1.2 counts as
            1.2 does.
        orbits: O, cycles and invariant circles, which the fixed points do not tell.
        spirals: Complex pairs with |μ| > 1 (of a flow: Re μ > 0), of all fixed points.

    Raises:
        ValueError: A count is negative.

    Example:
        >>> start = BifurcationGraph(1, 0, 0)
        >>> after = start.moved(Move.PITCHFORK).moved(Move.FLIP)
        >>> after, after.complexity, after.verdict.name
        (BifurcationGraph(stable=1, unstable=2, orbits=1, spirals=0), 4, 'REACHABLE')
        >>> start.to(after)
        {'pitchfork or saddle-node': 1, 'flip': 1, 'neimark-sacker': 0}
    """

    stable: int
    unstable: int
    orbits: int
    spirals: int = 0

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            check_range(name, value, 0, integer=True)

    @property
    def complexity(self) -> int:
        """S + U + O."""
        return self.stable + self.unstable + self.orbits

    @property
    def verdict(self) -> Reachable:
        """Whether O − 1 ≤ U − S ≤ 2O − 1; it fails for the nine points of two pitchforks at once, for one."""
        fits = self.orbits - 1 <= self.unstable - self.stable <= 2 * self.orbits - 1
        return Reachable.REACHABLE if fits else Reachable.OUTSIDE

    def moved(self, move: Move, inverse: bool = False) -> "BifurcationGraph":
        """The counts after a move, or after its inverse.

        Raises:
            ValueError: A count would be negative.
        """
        sign = -1 if inverse else 1
        counts = [
            old + sign * new for old, new in zip((self.stable, self.unstable, self.orbits), move.counts, strict=True)
        ]
        if min(counts) < 0:
            raise ValueError(
                f"`move` {move.name}{' inverted' if inverse else ''} is not possible from {self}: it would leave "
                f"(S, U, O) = {tuple(counts)}. A move needs what it takes away."
            )
        pairs = self.spirals + sign * (move is Move.NEIMARK_SACKER)
        return BifurcationGraph(*counts, spirals=max(0, pairs))

    def to(self, other: "BifurcationGraph") -> dict[str, int]:
        """The net moves from here to `other`, negative for inverses: the only ones with these counts.

        The sum of their sizes is the least number of bifurcations between, of a student and its teacher for example.
        """
        stable, unstable, orbits = (
            other.stable - self.stable,
            other.unstable - self.unstable,
            other.orbits - self.orbits,
        )
        flips = unstable - stable - orbits
        return {"pitchfork or saddle-node": stable + orbits, "flip": flips, "neimark-sacker": orbits - flips}


def bifurcation_graph(points: Any, orbits: int = 0) -> BifurcationGraph:
    """Count the fixed points of a network, or of its teacher.

    Args:
        points: Of `find_fixed_points`; whether all were found is said by its `index_verdict`.
        orbits: O, cycles and invariant circles that are known from elsewhere.

    Raises:
        TypeError: `points` are no fixed points.
        ValueError: `orbits` is negative, or a point is marginal, |μ| = 1 (of a flow: Re μ = 0) within its `marginal`.

    Example:
        >>> import torch
        >>> from kpflow.dynamics import find_fixed_points
        >>> seeds = torch.randn(20, 1, generator=torch.Generator().manual_seed(0))
        >>> bifurcation_graph(find_fixed_points(lambda h, x: torch.tanh(2 * h), torch.zeros(1), seeds))
        BifurcationGraph(stable=2, unstable=1, orbits=0, spirals=0)
    """
    if not isinstance(points, FixedPoints):
        raise TypeError(f"`points` must be the FixedPoints of find_fixed_points; got {type(points).__name__}.")
    kinds = points.kinds
    if "marginal" in kinds:
        raise ValueError(
            f"`points` must be stable or not; {kinds.count('marginal')} of {len(kinds)} are marginal, "
            f"{'|Re μ|' if points.flow else '| |μ| − 1 |'} < {points.marginal:g}: the network is at a bifurcation. "
            "Search with a smaller `marginal`, or move on."
        )
    outside = points.multipliers.real > 0 if points.flow else points.multipliers.abs() > 1
    real = points.multipliers.imag == 0
    return BifurcationGraph(
        kinds.count("stable"), int((outside & real).sum()), orbits, int((outside & ~real).sum()) // 2
    )
