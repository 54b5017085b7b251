"""Scalar normal forms: closed forms of learning them, derivatives against autograd, surfaces, bifurcation graphs."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from kpflow.dynamics import (
    BifurcationGraph,
    HopfForm,
    Move,
    NeimarkSackerForm,
    PolynomialForm,
    Reachable,
    ScalarForm,
    amplification,
    bifurcation_graph,
    find_fixed_points,
    loss_landscape,
    scalar_form,
    scalar_propagator,
    sensitivity,
    trajectory,
)

FORMS = {
    "saddle-node": scalar_form("saddle-node"),
    "transcritical": scalar_form("transcritical"),
    "pitchfork": scalar_form("pitchfork"),
    "subcritical pitchfork": scalar_form("pitchfork", supercritical=False),
    "flip": scalar_form("flip"),
    "subcritical flip": scalar_form("flip", supercritical=False),
    "neimark-sacker": scalar_form("neimark-sacker", omega=0.7),
    "neimark-sacker with c1": NeimarkSackerForm(1.1, -0.4 + 0.3j, 0.97),
    "hopf": scalar_form("hopf", omega=1.3, dt=0.4),
}


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.fixture(params=FORMS)
def form(request) -> ScalarForm:
    return FORMS[request.param]


MU = tensor(-0.3, -1e-3, 0.0, 1e-9, 0.02, 0.4)


def test_the_derivatives_are_those_of_autograd(form):
    states = 0.4 * torch.randn(6, form.dimension, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for state, mu in zip(states, MU, strict=True):
        slope = torch.func.jacrev(lambda a, mu=mu: form.step(a, mu))(state)
        torch.testing.assert_close(form.jacobian(state, mu), slope, rtol=1e-12, atol=1e-13)
        size = 1e-3
        moved = [form.step(state, mu + k * size) for k in (-2, -1, 1, 2)]
        change = (8 * (moved[2] - moved[1]) - (moved[3] - moved[0])) / (12 * size)
        torch.testing.assert_close(form.forcing(state, mu), change, rtol=1e-9, atol=1e-10)


def test_fixed_points_stay(form):
    for mu in (-0.2, -0.01, 0.0, 0.01, 0.2):
        radii = form.fixed_points(mu)
        state = radii[:, None] * torch.eye(form.dimension, dtype=torch.float64)[0]
        moved = form.step(state, torch.full_like(radii, mu))
        sizes = moved[:, 0] if form.dimension == 1 else moved.norm(dim=1)
        torch.testing.assert_close(sizes, radii, rtol=1e-9, atol=1e-9)


def test_where_the_fixed_points_are():
    assert FORMS["saddle-node"].fixed_points(-0.01).tolist() == pytest.approx([-0.1, 0.1])
    assert len(FORMS["saddle-node"].fixed_points(0.01)) == 0
    assert FORMS["transcritical"].fixed_points(0.3).tolist() == pytest.approx([0, 0.3])
    assert FORMS["pitchfork"].fixed_points(0.01).tolist() == pytest.approx([-0.1, 0, 0.1])
    assert FORMS["pitchfork"].fixed_points(-0.01).tolist() == [0]
    assert FORMS["subcritical pitchfork"].fixed_points(-0.01).tolist() == pytest.approx([-0.1, 0, 0.1])
    assert FORMS["hopf"].fixed_points(0.09).tolist() == pytest.approx([0, 0.3])
    assert float(FORMS["neimark-sacker"].fixed_points(1e-4)[1]) ** 2 == pytest.approx(1e-4 / math.cos(0.7), rel=1e-3)
    stable = FORMS["pitchfork"].jacobian(tensor(0.1), tensor(0.01)[0])
    assert float(stable) == pytest.approx(1 - 2 * 0.01)
    assert PolynomialForm().fixed_points(0.0).tolist() == []  # every α is one


# Sensitivities.


@pytest.mark.parametrize("g", [0.5, 1.0, 1.2])
def test_of_a_linear_map_it_is_t_g_to_the_t_minus_one(g):
    t = torch.arange(1, 31, dtype=torch.float64)
    slope = sensitivity(PolynomialForm(), 0.3, g - 1, 30)
    torch.testing.assert_close(slope, t * g ** (t - 1) * 0.3, rtol=1e-13, atol=0)


def test_its_length_grows_like_t_to_three_halves():
    slope = sensitivity(PolynomialForm(), 1.0, 0.0, 999)  # of T = 1000 times, the first of which is α₀
    assert float(slope.norm()) / (1000**1.5 / math.sqrt(3)) == pytest.approx(0.99925, abs=5e-6)


def test_of_a_saddle_node_it_is_minus_t():
    assert sensitivity(FORMS["saddle-node"], 0.0, 0.0, 50).tolist() == [-float(t) for t in range(1, 51)]


@pytest.mark.parametrize(("name", "sign"), [("transcritical", 1), ("pitchfork", 1), ("flip", -1)])
def test_of_small_states_at_criticality_it_is_t_times_the_state(name, sign):
    t = torch.arange(1, 41, dtype=torch.float64)
    slope = sensitivity(FORMS[name], 1e-9, 0.0, 40)
    torch.testing.assert_close(slope, t * sign**t * 1e-9, rtol=1e-5, atol=0)


def test_in_the_long_run_it_is_the_slope_of_the_stable_branch():
    assert float(sensitivity(FORMS["pitchfork"], 0.05, 0.01, 3000)[-1]) == pytest.approx(5, rel=1e-6)
    assert float(sensitivity(FORMS["saddle-node"], 0.05, -0.01, 3000)[-1]) == pytest.approx(-5, rel=1e-6)


@pytest.mark.parametrize("of", ["mu", "omega"])
def test_it_is_the_difference_of_trajectories(form, of):
    if of == "omega" and form.dimension == 1:
        return
    start, size = tensor(0.1, -0.05), 1e-4

    def moved(k: int) -> Tensor:
        if of == "mu":
            return trajectory(form, start, 0.05 + k * size, 7)
        turned: Any = {**form.__dict__, "omega": form.__dict__["omega"] + k * size}
        return trajectory(type(form)(**turned), start, 0.05, 7)

    change = (8 * (moved(1) - moved(-1)) - (moved(2) - moved(-2))) / (12 * size)
    torch.testing.assert_close(sensitivity(form, start, 0.05, 7, of=of), change, rtol=1e-8, atol=1e-9)


def test_it_is_the_propagator_on_the_forcing(form):
    start, mu, steps = tensor(0.2, -0.1, 0.3), tensor(0.1, 0.0, -0.2), 9
    path = trajectory(form, start, mu, steps)
    phi = scalar_propagator(form, start, mu, steps)
    before = torch.cat([start[:, None].to(path), path[:, :-1]], dim=1)
    real = torch.view_as_real(before) if before.is_complex() else before[..., None]
    push = form.forcing(real, mu[:, None].expand(3, steps))
    phi = phi[..., None, None] if form.dimension == 1 else phi
    slope = torch.einsum("gtscd,gsd->gtc", phi, push)
    slope = torch.view_as_complex(slope.contiguous()) if form.dimension == 2 else slope[..., 0]
    torch.testing.assert_close(slope, sensitivity(form, start, mu, steps), rtol=1e-11, atol=1e-12)


def test_the_propagator_is_the_derivative_by_the_start(form):
    """Φ(T, 1) of the propagator, against autograd of T − 1 steps from α₁."""
    mu = tensor(0.1)[0]
    first = trajectory(form, tensor(0.2), mu, 1)[0]
    state = torch.view_as_real(first)[0] if first.is_complex() else first

    def end(state: Tensor) -> Tensor:
        for _ in range(6):
            state = form.step(state, mu)
        return state

    phi = scalar_propagator(form, tensor(0.2), mu, 7)[0, 6, 0]
    torch.testing.assert_close(phi.reshape(form.dimension, -1), torch.func.jacrev(end)(state), rtol=1e-12, atol=1e-13)


def test_the_map_of_a_hopf_flow_is_its_flow():
    """Two half steps are a step, and a tiny step is Euler's."""
    state, mu = tensor(0.3, -0.2), tensor(0.15)[0]
    whole, half = HopfForm(1.1, 0.6), HopfForm(1.1, 0.3)
    torch.testing.assert_close(whole.step(state, mu), half.step(half.step(state, mu), mu), rtol=1e-13, atol=1e-14)
    z = complex(0.3, -0.2)
    rate = (0.15 + 1.1j) * z - abs(z) ** 2 * z
    moved = (HopfForm(1.1, 1e-6).step(state, mu) - state) / 1e-6
    assert moved.tolist() == pytest.approx([rate.real, rate.imag], abs=1e-5)


# Landscapes.


def surface(name: str, sizes: tuple[int, int] = (220, 220)) -> tuple[ScalarForm, Tensor, Tensor]:
    """The grids of the published surfaces: g in [−1, 3] and h₀ in [−2, 2]; of circles [−1, 2] and [0, 2]."""
    circle = name == "neimark-sacker"
    g = torch.linspace(-1, 2 if circle else 3, sizes[0], dtype=torch.float64)[:, None]
    h = torch.linspace(0 if circle else -2, 2, sizes[1], dtype=torch.float64)[None]
    return scalar_form(name), *torch.broadcast_tensors(h, g - 1)


@pytest.mark.parametrize("name", ["pitchfork", "transcritical", "flip", "saddle-node", "neimark-sacker"])
def test_surfaces_of_five_steps(name):
    """Against a loop over the maps as the surfaces write them, with g = 1 + μ, where nothing leaves the range."""
    form, start, mu = surface(name, (41, 37))
    g, h = mu + 1, start
    z, slopes = torch.complex(h, torch.zeros_like(h)), []
    for _ in range(5):
        if name == "neimark-sacker":
            turn = complex(math.cos(math.pi / 4), math.sin(math.pi / 4))
            one, two = g * turn - 2 * z.abs() ** 2, -(z**2)  # δz' = one δz + two δz̄
            slopes.append(
                torch.stack([one.real + two.real, two.imag - one.imag, one.imag + two.imag, one.real - two.real])
            )
            z = g * turn * z - z.abs() ** 2 * z
        else:
            maps = {
                "pitchfork": (g - 3 * h**2, g * h - h**3),
                "transcritical": (g - 2 * h, g * h - h**2),
                "flip": (-g + 3 * h**2, -g * h + h**3),
                "saddle-node": (1 - 2 * h, h - (g - 1) - h**2),
            }
            slope, h = maps[name]
            slopes.append(slope + 0 * g)
    total = torch.zeros_like(g)
    for first in range(5):
        product = None
        for slope in slopes[first:]:
            matrix = (
                slope.reshape(2, 2, *g.shape).permute(2, 3, 0, 1) if len(slope.shape) == 3 else slope[..., None, None]
            )
            product = matrix if product is None else matrix @ product
            total = total + product.square().sum(dim=(-1, -2))
    torch.testing.assert_close(
        amplification(form, start, mu), 0.5 * total.clamp_min(1e-300).log10(), rtol=1e-9, atol=1e-9
    )


def test_the_published_extremes_of_the_pitchfork_are_quantiles():
    """−.673 and 4.044 are the 1 % and 99 % quantiles, over trajectories whose slopes stay within 1000."""
    form, start, mu = surface("pitchfork")
    values = amplification(form, start, mu)
    path = torch.cat([start[..., None], trajectory(form, start, mu, 4, clip=1e50)], dim=-1)
    steepest = form.jacobian(path[..., None], mu[..., None].expand_as(path)).abs().amax(dim=(-1, -2, -3))
    kept = values[steepest <= 1000]
    assert [float(torch.quantile(kept, level)) for level in (0.01, 0.99)] == pytest.approx([-0.673, 4.044], abs=5e-4)
    assert [float(values.min()), float(values.max())] == pytest.approx([-2.032, 83.14], abs=5e-3)


def test_nothing_is_nan_or_infinite_far_outside(form):
    start, mu = torch.linspace(-30, 30, 41, dtype=torch.float64)[None], torch.linspace(-3, 5, 33).double()[:, None]
    for clip in (10.0, 1e7):
        for values in (
            trajectory(form, start, mu, 25, clip=clip),
            sensitivity(form, start, mu, 25, clip=clip),
            scalar_propagator(form, start, mu, 8, clip=clip),
        ):
            assert bool(torch.isfinite(values.abs()).all())
            assert float(values.abs().max()) <= clip * (1 + 1e-9)
        levels = amplification(form, start, mu, 25, clip=clip)
        assert float(levels.abs().max()) <= math.log10(clip) + 1e-12
        losses = loss_landscape(form, start, mu, 1.0, 25, clip=clip)
        assert bool(torch.isfinite(losses).all())
        assert 0 <= float(losses.min()) <= float(losses.max()) <= clip
    assert bool(torch.isfinite(amplification(form, start, mu, 40)).all())


def test_what_has_left_is_at_the_clip():
    path = trajectory(FORMS["pitchfork"], 3.0, 0.0, 30, clip=1e7)
    assert path.abs()[3:].tolist() == [1e7] * 27
    slope = sensitivity(FORMS["pitchfork"], 3.0, 0.0, 30, clip=1e7)
    assert slope.abs()[3:].tolist() == pytest.approx([1e7] * 27)
    inside = sensitivity(FORMS["pitchfork"], 0.5, 0.0, 30)
    assert float(inside.abs().max()) < 10


def test_the_loss_is_zero_at_the_teacher_only():
    mu = torch.linspace(0, 1.5, 31, dtype=torch.float64)
    losses = loss_landscape(FORMS["pitchfork"], 0.1, mu, 1.0, 25)
    assert int(losses.argmin()) == 20
    assert float(losses[20]) == 0
    assert float(losses[10]) > 1e-3


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="`name` must be one of 'saddle-node'"):
        scalar_form("cusp")
    with pytest.raises(ValueError, match="`supercritical` applies to 'pitchfork' and 'flip'"):
        scalar_form("hopf", supercritical=False)
    with pytest.raises(ValueError, match="`omega` applies to 'neimark-sacker' and 'hopf'"):
        scalar_form("flip", omega=1.0)
    with pytest.raises(ValueError, match="`dt` must be a positive number"):
        scalar_form("hopf", dt=0.0)
    form = FORMS["pitchfork"]
    with pytest.raises(ValueError, match="`initial` must be real"):
        trajectory(form, torch.zeros(1, dtype=torch.complex128), 0.0, 3)
    with pytest.raises(ValueError, match="`initial` must be finite"):
        trajectory(form, torch.nan, 0.0, 3)
    with pytest.raises(ValueError, match="`mu` must be finite"):
        trajectory(form, 0.0, math.inf, 3)
    with pytest.raises(ValueError, match=r"`initial` and `mu` must broadcast; got shapes \(2,\) and \(3,\)"):
        trajectory(form, torch.zeros(2), torch.zeros(3), 3)
    with pytest.raises(ValueError, match="`steps` must be a positive whole number"):
        sensitivity(form, 0.0, 0.0, 0)
    with pytest.raises(ValueError, match="`clip` must be a positive number"):
        sensitivity(form, 0.0, 0.0, 3, clip=0.0)
    with pytest.raises(ValueError, match="`of` must be one of 'mu', 'omega'"):
        sensitivity(form, 0.0, 0.0, 3, of="g")
    with pytest.raises(ValueError, match="`of` must be 'mu' for a form of one real number"):
        sensitivity(form, 0.0, 0.0, 3, of="omega")


# Bifurcation graphs.


def graph_of(weight: list[list[float]], orbits: int = 0) -> BifurcationGraph:
    matrix = torch.tensor(weight, dtype=torch.float64)
    seeds = 1.2 * torch.rand(120, len(weight), generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.6
    points = find_fixed_points(lambda h, x: torch.tanh(h @ matrix.mT), torch.zeros(1), 2 * seeds, bounded=True)
    assert points.index_sum == 1
    return bifurcation_graph(points, orbits)


def graph_of_flow(weight: list[list[float]], gain: float, orbits: int = 0) -> BifurcationGraph:
    """Of h' = g (tanh(W h) − h), whose eigenvalues at 0 are those of g (W − 1)."""
    matrix = torch.tensor(weight, dtype=torch.float64)
    seeds = 2 * torch.rand(60, len(weight), generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1
    points = find_fixed_points(
        lambda h, x: gain * (torch.tanh(h @ matrix.mT) - h), torch.zeros(1), seeds, flow=True, bounded=True
    )
    assert points.index_sum == 1
    return bifurcation_graph(points, orbits)


@pytest.mark.parametrize("gain", [0.1, 1.0, 10.0])
def test_graphs_of_flows_do_not_depend_on_their_speed(gain):
    """Stable points with Re μ < −1 have no unstable directions, and slow saddles with 0 < μ < 1 do."""
    assert graph_of_flow([[0.5]], gain) == BifurcationGraph(1, 0, 0)
    assert graph_of_flow([[1.5]], gain) == BifurcationGraph(1, 0, 0).moved(Move.SADDLE_NODE)
    assert graph_of_flow([[-5.0]], gain) == BifurcationGraph(1, 0, 0)
    assert graph_of_flow([[1.5, -2.0], [2.0, 1.5]], gain, orbits=1) == BifurcationGraph(0, 0, 1, spirals=1)


def test_moves_are_five():
    assert len(list(Move)) == 5
    assert Move.SADDLE_NODE is not Move.PITCHFORK
    assert Move.SADDLE_NODE.counts == Move.PITCHFORK.counts == (1, 1, 0)


def test_moves_are_what_bifurcations_of_networks_do():
    start = graph_of([[0.5]])
    assert start == BifurcationGraph(1, 0, 0)
    assert graph_of([[2.0]]) == start.moved(Move.PITCHFORK)
    assert graph_of([[-2.0]], orbits=1) == start.moved(Move.FLIP)
    turn = [[1.5 * math.cos(1.0), -1.5 * math.sin(1.0)], [1.5 * math.sin(1.0), 1.5 * math.cos(1.0)]]
    assert graph_of(turn, orbits=1) == start.moved(Move.NEIMARK_SACKER)
    assert start.moved(Move.TRANSCRITICAL) == start
    assert graph_of([[2.0, 0.0], [0.0, -2.0]], orbits=1).spirals == 0


def test_the_inequality_holds_after_all_moves_and_tells_them():
    moves = {Move.PITCHFORK: "pitchfork or saddle-node", Move.FLIP: "flip", Move.NEIMARK_SACKER: "neimark-sacker"}
    start = BifurcationGraph(1, 0, 0)
    count = 0
    for chain in itertools.product(moves, repeat=6):
        graph, made = start, dict.fromkeys(moves.values(), 0)
        for move in chain:
            if move is not Move.PITCHFORK and not graph.stable:
                continue
            graph = graph.moved(move)
            made[moves[move]] += 1
            assert graph.orbits - 1 <= graph.unstable - graph.stable <= 2 * graph.orbits - 1
            assert graph.verdict is Reachable.REACHABLE
            assert start.to(graph) == made
            assert graph.moved(move, inverse=True).moved(move) == graph
            count += 1
    assert count > 1000
    assert graph.complexity == graph.stable + graph.unstable + graph.orbits


def test_bifurcations_of_saddles_leave_the_inequality():
    """Two units that pass a pitchfork each: nine points, of which four are stable and five have six directions."""
    graph = graph_of([[2.0, 0.0], [0.0, 2.0]])
    assert graph == BifurcationGraph(4, 6, 0)
    assert graph.verdict is Reachable.OUTSIDE


def test_graphs_refuse_what_they_cannot_count():
    with pytest.raises(ValueError, match="`stable` must be a whole number at least 0"):
        BifurcationGraph(-1, 0, 0)
    with pytest.raises(ValueError, match="`move` FLIP is not possible from"):
        BifurcationGraph(0, 0, 0).moved(Move.FLIP)
    with pytest.raises(ValueError, match="`move` PITCHFORK inverted is not possible"):
        BifurcationGraph(1, 0, 0).moved(Move.PITCHFORK, inverse=True)
    with pytest.raises(ValueError, match="`move` SADDLE_NODE inverted is not possible"):
        BifurcationGraph(1, 0, 0).moved(Move.SADDLE_NODE, inverse=True)
    marginal = find_fixed_points(lambda h, x: torch.tanh(h) * 0.9999, torch.zeros(1), torch.tensor([[0.01]]))
    with pytest.raises(ValueError, match=r"`points` must be stable or not; 1 of 1 are marginal, \| \|μ\| − 1 \| <"):
        bifurcation_graph(marginal)
    resting = find_fixed_points(lambda h, x: -1e-4 * h, torch.zeros(1), torch.tensor([[0.01]]).double(), flow=True)
    with pytest.raises(ValueError, match=r"`points` must be stable or not; 1 of 1 are marginal, \|Re μ\| <"):
        bifurcation_graph(resting)
    with pytest.raises(TypeError, match="`points` must be the FixedPoints"):
        bifurcation_graph([[0.0]])
