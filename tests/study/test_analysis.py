"""Analysis: what is recorded equals what the dense matrices say, and the model stays as it is."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn

from kpflow.flow import Ntk, ParameterKernel, Propagator, response
from kpflow.operators import to_dense
from kpflow.states import linearise
from kpflow.study import Settings, analyse
from kpflow.study.measures import STAGES, effective_dimension
from kpflow.tasks import MemoryPro

TASK = MemoryPro(context=0, stimulus=2, memory=3, response=2, grace=0.0)
EXACT = Settings(rtol=1e-3, budget=4000, starts=0)


class Net(nn.Module):
    def __init__(self, core=nn.GRU):
        super().__init__()
        self.rnn = core(3, 4, batch_first=True)
        self.readout = nn.Linear(4, 3)

    def forward(self, x):
        return self.readout(self.rnn(x)[0])


def make(core=nn.GRU):
    torch.manual_seed(0)
    model = Net(core).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    return model, TASK.sample(5, mode="grid", noise=False, dtype=torch.float64)


def run(model, trials, settings=EXACT, **more):
    return analyse(
        model,
        trials,
        loss=lambda y: TASK.loss(y, trials),
        score=lambda y: TASK.score(y, trials)["accuracy"],
        core="rnn",
        settings=settings,
        **more,
    ).isel(step=0)


@pytest.fixture(scope="module", params=[nn.GRU, nn.RNN, nn.LSTM], ids=lambda core: core.__name__)
def case(request):
    model, trials = make(request.param)
    return model, trials, run(model, trials), linearise(model, trials.inputs, core="rnn")


def dense(operator):
    size = operator.in_space.size
    return to_dense(operator).reshape(-1, size)


def test_the_numbers_of_the_operators(case):
    _, _, record, lin = case
    kernels = {"ntk": dense(Ntk(lin)), "kernel": dense(ParameterKernel(lin))}
    P = dense(Propagator(lin))
    kernels["propagator"] = P @ P.mT
    for name, matrix in kernels.items():
        values = torch.linalg.eigvalsh(matrix).flip(0)
        truth = {"trace": values.sum(), "effective_rank": values.sum().square() / values.square().sum()}
        for quantity, value in truth.items():
            got, error = float(record[f"{name}_{quantity}"]), float(record[f"{name}_{quantity}_error"])
            assert abs(got - float(value)) <= 4 * error + 1e-9 * float(value), (name, quantity)
            assert error <= 0.02 * got
        spectrum = record[f"{name}_spectrum"].values
        expected = values[:10].sqrt() if name == "propagator" else values[:10]
        formed = len(matrix) <= 200  # larger ones are found by Krylov, to residuals of 10 % and so values of 1 %
        np.testing.assert_allclose(spectrum[:10], expected, rtol=1e-6 if formed else 1e-2)
        assert np.isnan(spectrum[10:]).all()
        bounds = record[f"{name}_spectrum_error"].values[:10]
        whole = values.clamp(min=0).sqrt() if name == "propagator" else values
        distance = np.abs(spectrum[:10, None] - whole.numpy()[None]).min(1)
        assert (distance <= bounds + 1e-9 * spectrum[0]).all()


def test_the_leading_modes_are_eigenvectors(case):
    _, trials, record, lin = case
    vectors = torch.linalg.eigh(dense(Ntk(lin))).eigenvectors
    B, T, H = lin.states.shape
    for k in range(2):
        u, s, v = torch.linalg.svd(vectors[:, -1 - k].reshape(B * T, H), full_matrices=False)
        over_time, over_units = record.ntk_mode_time.values[k].reshape(-1), record.ntk_mode_unit.values[k]
        product = torch.from_numpy(np.outer(over_time, over_units)).double()
        pair = torch.outer(u[:, 0], v[0])
        assert float((product * pair).sum().abs()) > 1 - 1e-4
        assert over_time[np.abs(over_time).argmax()] > 0
        np.testing.assert_allclose(float(record.ntk_mode_separability[k]), float(s[0] ** 2 / (s**2).sum()), rtol=1e-4)
    assert trials.num_trials == record.sizes["trial"]


def test_the_collapse_pipeline(case):
    _, trials, record, lin = case
    r = response(lin, lambda y: TASK.loss(y, trials))
    stages = (trials.inputs, lin.states, r.error, r.adjoint, r.immediate, r.change, trials.targets)
    assert tuple(record["stage"].values) == STAGES
    for got, stage in zip(record.effective_dimension.values, stages, strict=True):
        Z = stage.reshape(-1, stage.shape[-1])
        C = Z.mT @ Z
        np.testing.assert_allclose(got, float(C.trace() ** 2 / (C @ C).trace()), rtol=1e-9)


def test_the_core_and_the_states(case):
    model, trials, record, lin = case
    B, T, H = lin.states.shape
    hidden = model.rnn.hidden_size
    previous = torch.cat([torch.zeros(B, 1, hidden, dtype=torch.float64), lin.states[:, :-1, :hidden]], 1)
    ones = torch.ones(B, T, 1, dtype=torch.float64)
    M = torch.cat([previous, ones, trials.inputs, ones], -1).reshape(B * T, -1)
    eigenvalues = torch.linalg.eigvalsh(M @ M.mT).flip(0)[:20]
    count = min(M.shape[1], 20)
    np.testing.assert_allclose(record.core_spectrum.values[:count], eigenvalues[:count], atol=1e-9)
    Z = lin.states.reshape(-1, H)
    covariance = torch.from_numpy(np.cov(Z.numpy().T, bias=True))
    np.testing.assert_allclose(record.state_spectrum.values[:H], torch.linalg.eigvalsh(covariance).flip(0), atol=1e-12)
    U, V = (torch.linalg.svd(A, full_matrices=False)[0] for A in (M, Z))
    for m in (1, 3):
        overlap = (U[:, :m].mT @ V[:, :m]).square().sum() / m
        np.testing.assert_allclose(record.core_state_overlap.values[m - 1], float(overlap), rtol=1e-6)


def test_trajectories_are_principal_components(case):
    _, _, record, lin = case
    Z = lin.states.reshape(-1, lin.states.shape[-1])
    path = record.trajectory.values.reshape(-1, 3)
    variances = torch.linalg.eigvalsh(torch.from_numpy(np.cov(Z.numpy().T, bias=True))).flip(0)
    np.testing.assert_allclose(path.var(0), variances[:3], rtol=1e-5)
    np.testing.assert_allclose(record.trajectory_variance, variances[:3] / variances.sum(), rtol=1e-9)
    assert abs(np.corrcoef(path.T)[0, 1]) < 1e-5


def test_steps_of_padding_are_in_no_spectrum_and_no_component():
    model, trials = make()
    short = dataclasses.replace(trials, length=torch.tensor([7, 4, 5, 7, 3]), epochs={})
    record = run(model, short, Settings(starts=0))
    lin = linearise(model, short.inputs, core="rnn", lengths=short.length)
    Z, seen = lin.states[short.valid], torch.cat([site.features[short.valid] for site in lin.sites().values()], dim=1)
    variances = torch.linalg.eigvalsh(torch.from_numpy(np.cov(Z.numpy().T, bias=True))).flip(0)
    path = torch.from_numpy(record.trajectory.values)
    assert torch.equal(path.isnan(), ~short.valid[..., None].expand_as(path))
    np.testing.assert_allclose(path[short.valid].mean(0), np.zeros(3), atol=1e-6)
    np.testing.assert_allclose(path[short.valid].numpy().var(0), variances[:3], rtol=1e-5)
    np.testing.assert_allclose(record.trajectory_variance, variances[:3] / variances.sum(), rtol=1e-9)
    np.testing.assert_allclose(record.state_spectrum.values[:4], variances, rtol=1e-9)
    np.testing.assert_allclose(record.core_spectrum[:3], torch.linalg.svdvals(seen)[:3].square(), rtol=1e-9)
    U, V = (torch.linalg.svd(A, full_matrices=False)[0] for A in (seen, Z))
    np.testing.assert_allclose(record.core_state_overlap[0], float((U[:, 0] @ V[:, 0]).square()), rtol=1e-9)


def test_the_predicted_change_of_the_loss_happens(case):
    model, trials, record, lin = case
    small = run(model, trials, Settings(learning_rate=1e-6, modes=4, starts=0))
    np.testing.assert_allclose(small.actual_loss_change, small.predicted_loss_change, rtol=1e-3)
    assert float(small.predicted_loss_change) < 0
    loss = TASK.loss(model(trials.inputs), trials)
    np.testing.assert_allclose(float(record.loss), float(loss.detach()), rtol=1e-12)
    assert lin.states.requires_grad is False


def test_labels_and_attributes(case):
    model, trials, record, _ = case
    assert record.attrs["condition"] == "angle"
    np.testing.assert_allclose(record["angle"], trials.conditions["angle"])
    assert record["time"].values.tolist() == [0.02 * t for t in range(7)]
    assert set(json.loads(record.attrs["settings"])) >= {"rtol", "budget", "seed", "core", "trials", "probes", "dtype"}
    assert record.attrs["model"].startswith(f"{type(model.rnn).__name__}(3, 4")
    assert record.attrs["model"].endswith("inside Net")
    assert {"kpflow_version", "torch_version", "seed", "created", "title"} <= set(record.attrs)


def test_the_same_seed_gives_the_same_numbers_and_the_model_stays():
    model, trials = make()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    state = torch.get_rng_state()
    settings = Settings(modes=4, budget=12, starts=0)
    first, second = run(model, trials, settings), run(model, trials, settings)
    assert torch.equal(state, torch.get_rng_state())
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert first.drop_attrs().identical(second.drop_attrs())


def test_effective_dimension_of_nothing_is_nan():
    assert np.isnan(effective_dimension(torch.zeros(4, 2)))


def test_bad_settings():
    with pytest.raises(ValueError, match=r"`budget` must be a positive whole number; got 0"):
        Settings(budget=0)
    with pytest.raises(ValueError, match=r"`exponents` must be a positive whole number; got 0"):
        Settings(exponents=0)
    with pytest.raises(ValueError, match=r"`path_seconds` must be a positive"):
        Settings(path_seconds=0.0)
    with pytest.raises(ValueError, match=r"`starts` must be"):
        Settings(starts=-1)
    with pytest.raises(ValueError, match=r"`leading` ≤ `modes` ≤ `width` must hold; got 4, 3, 20"):
        Settings(modes=3)


def test_a_loss_that_does_not_fit():
    model, trials = make()
    with pytest.raises(ValueError, match=r"`loss` must give a scalar"):
        analyse(model, trials, loss=lambda y: y.square(), core="rnn")


def test_effective_ranks_along_axes_lie_within_the_bounds_of_the_structure(case):
    _, _, record, lin = case
    ntk = dense(Ntk(lin)).reshape(*lin.space.shape, *lin.space.shape)
    partial = {
        "trial": torch.einsum("ithjth->ij", ntk),
        "time": torch.einsum("itiu->tu", ntk.diagonal(dim1=2, dim2=5).sum(-1)),
        "unit": torch.einsum("itaitb->ab", ntk),
    }
    for axis, matrix in partial.items():
        truth = matrix.trace().square() / matrix.square().sum()
        found = record.ntk_effective_rank_along.sel(axis=axis)
        error = record.ntk_effective_rank_along_error.sel(axis=axis)
        assert abs(float(found) - float(truth)) <= max(5 * float(error), 1e-6 * float(truth))
    assert int(record.ntk_rank) == int(torch.linalg.matrix_rank(dense(ParameterKernel(lin)), hermitian=True))
    low, whole, high = (float(record[f"ntk_effective_rank{end}"]) for end in ("_low", "", "_high"))
    assert 1 <= low < whole < high <= float(record.ntk_rank)
    norm = float(torch.linalg.matrix_norm(dense(Ntk(lin)), ord=2))
    assert float(record.ntk_norm_low) < norm < float(record.ntk_norm_high)


def test_dimensions_along_an_axis_are_those_of_its_second_moment(case):
    _, _, record, lin = case
    states = lin.states.double()
    for axis, moment in (("trial", "ith,jth->ij"), ("time", "ith,iuh->tu"), ("unit", "ita,itb->ab")):
        matrix = torch.einsum(moment, states, states)
        truth = float(matrix.trace().square() / matrix.square().sum())
        found = record.effective_dimension_along.sel(axis=axis, stage="states")
        assert float(found) == pytest.approx(truth, rel=1e-9)
    assert record.effective_dimension.equals(record.effective_dimension_along.sel(axis="unit", drop=True))
