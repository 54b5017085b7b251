"""Small networks with given weights, and their dense kernels and propagators by the package's own operators."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from kpflow.estimate import alignment
from kpflow.flow import ImmediateJacobian, Ntk, OutputJacobian, Propagator
from kpflow.operators import Dense, to_dense
from kpflow.states import Linearisation, linearise

__all__ = [
    "kinship",
    "linear_map",
    "linear_network",
    "linear_ntk",
    "linearise_map",
    "map_jacobian",
    "output_jacobian",
    "output_ntk",
    "scalar_propagator",
    "traced_ntk",
]


def linear_network(weights: Sequence[Tensor]) -> nn.Sequential:
    """Layers x ↦ W x without biases, in float64, the first of the weights first.

    Example:
        >>> linear_network([torch.eye(2, dtype=torch.float64)])(torch.ones(2, dtype=torch.float64))
        tensor([1., 1.], dtype=torch.float64, grad_fn=...)
    """
    layers = nn.Sequential(*(nn.Linear(W.shape[1], W.shape[0], bias=False).double() for W in weights))
    layers.load_state_dict({f"{i}.weight": W for i, W in enumerate(weights)})
    return layers


def output_ntk(model: nn.Module, inputs: Tensor, metric: Tensor | None = None) -> Tensor:
    """J Jᵀ, or J M Jᵀ with a diagonal metric, of the outputs at the inputs.

    Args:
        model: From inputs to outputs.
        inputs: Shape `[N, *]`.
        metric: The diagonal of M, shape `[P]`.

    Returns:
        Shape `[N·out, N·out]`.

    Example:
        >>> model = linear_network([torch.tensor([[2.0, 1.0]], dtype=torch.float64)])
        >>> output_ntk(model, torch.eye(2, dtype=torch.float64))
        tensor([[1., 0.],
                [0., 1.]], dtype=torch.float64)
    """
    return to_dense(Ntk(linearise(model, inputs), readout="outputs", metric=metric))


def output_jacobian(model: nn.Module, inputs: Tensor) -> Tensor:
    """J = ∂y/∂θ of the outputs at the inputs; what the model detaches does not count.

    Returns:
        Shape `[N·out, P]`.

    Example:
        >>> output_jacobian(linear_network([torch.ones(1, 2).double()]), torch.eye(2, dtype=torch.float64))
        tensor([[1., 0.],
                [0., 1.]], dtype=torch.float64)
    """
    lin = linearise(model, inputs)
    assert lin.readout is not None
    return to_dense(OutputJacobian(lin, lin.readout))


def linearise_map(
    function: Callable[[Tensor, Mapping[str, Tensor]], Tensor], inputs: Tensor, parameters: Mapping[str, Tensor]
) -> Linearisation:
    """y = f(x, θ) as a network of one step, whose states `[N, 1, out]` are the outputs: P = I, so that the NTK is K.

    Example:
        >>> weights = {"w": torch.ones(2, dtype=torch.float64)}
        >>> to_dense(Ntk(linearise_map(lambda x, p: x * p["w"], torch.tensor([[3.0, 4.0]]).double(), weights)))
        tensor([[ 9.,  0.],
                [ 0., 16.]], dtype=torch.float64)
    """
    theta = {name: value.detach().clone().requires_grad_() for name, value in parameters.items()}
    start = torch.zeros_like(function(inputs, theta).detach())
    return linearise(lambda _, x, p: function(x, p), inputs[:, None], initial=start, parameters=theta)


def map_jacobian(
    function: Callable[[Tensor, Mapping[str, Tensor]], Tensor], inputs: Tensor, parameters: Mapping[str, Tensor]
) -> Tensor:
    """J = ∂y/∂θ of y = f(x, θ), the immediate Jacobian of a network of one step: faster than to capture a module.

    Args:
        function: From inputs `[N, in]` and parameters to outputs `[N, out]`.
        inputs: Shape `[N, in]`.
        parameters: θ by name.

    Returns:
        Shape `[N·out, P]`.

    Example:
        >>> weights = {"w": torch.ones(2, dtype=torch.float64)}
        >>> map_jacobian(lambda x, p: x * p["w"], torch.tensor([[3.0, 4.0]], dtype=torch.float64), weights)
        tensor([[3., 0.],
                [0., 4.]], dtype=torch.float64)
    """
    lin = linearise_map(function, inputs, parameters)
    return to_dense(ImmediateJacobian(lin).T).mT  # by its rows, which are fewer than θ in most networks


def linear_map(inputs: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
    """… W₂ W₁ x of each input, by weights of shape `[out, in]`.

    Example:
        >>> linear_map(torch.ones(1, 2), {"W": torch.tensor([[3.0, 4.0]])})
        tensor([[7.]])
    """
    for W in parameters.values():
        inputs = inputs @ W.mT
    return inputs


def linear_ntk(weights: Sequence[Tensor], inputs: Tensor, metric: Tensor | None = None) -> Tensor:
    """J Jᵀ, or J M Jᵀ with a diagonal metric, of a linear network by its weights, the first ones first.

    Args:
        weights: Each of shape `[out, in]`.
        inputs: Shape `[N, in]`.
        metric: The diagonal of M, shape `[P]`.

    Returns:
        Shape `[N·out, N·out]`.

    Example:
        >>> linear_ntk([torch.tensor([[2.0, 1.0]], dtype=torch.float64)], torch.eye(2, dtype=torch.float64))
        tensor([[1., 0.],
                [0., 1.]], dtype=torch.float64)
    """
    J = map_jacobian(linear_map, inputs, {f"W{i}": W for i, W in enumerate(weights, 1)})
    return J @ J.mT if metric is None else (J * metric) @ J.mT


def scalar_propagator(factor: float, steps: int) -> Tensor:
    """P of the recurrent equation x ← factor · x with a single unit.

    Returns:
        Shape `[steps, steps]`.

    Example:
        >>> scalar_propagator(0.5, 3)
        tensor([[1.0000, 0.0000, 0.0000],
                [0.5000, 1.0000, 0.0000],
                [0.2500, 0.5000, 1.0000]], dtype=torch.float64)
    """
    cell = nn.RNN(1, 1, bias=False, batch_first=True).double()
    weights = torch.tensor([[1.0], [factor]], dtype=torch.float64)
    cell.load_state_dict({"weight_ih_l0": weights[:1], "weight_hh_l0": weights[1:]})
    return to_dense(Propagator(linearise(cell, torch.zeros(1, steps, 1, dtype=torch.float64))))


def traced_ntk(
    function: Callable[[Tensor, Mapping[str, Tensor]], Tensor], inputs: Tensor, parameters: Mapping[str, Tensor]
) -> Tensor:
    """J Jᵀ of y = f(x, θ), traced over outputs.

    Args:
        function: From inputs `[N, in]` and parameters to outputs `[N, out]`.
        inputs: Shape `[N, in]`.
        parameters: θ by name.

    Returns:
        Shape `[N, N]`.

    Example:
        >>> weights = {"W": torch.ones(2, 3, dtype=torch.float64)}
        >>> traced_ntk(lambda x, p: x @ p["W"].mT, torch.eye(3, dtype=torch.float64), weights)
        tensor([[2., 0., 0.],
                [0., 2., 0.],
                [0., 0., 2.]], dtype=torch.float64)
    """
    J = map_jacobian(function, inputs, parameters).reshape(len(inputs), -1)
    return J @ J.mT


def kinship(
    function: Callable[[Tensor, Mapping[str, Tensor]], Tensor],
    ones: Tensor,
    others: Tensor,
    parameters: Mapping[str, Tensor],
) -> float:
    """Alignment of the NTK, traced over outputs, of two lists of inputs with being at the same place in both.

    Rows and columns are centred first, so that 0 is no kinship and 1 a kernel that sees nothing else.

    Args:
        function: From inputs and parameters to outputs.
        ones: Shape `[n, in]`.
        others: Shape `[n, in]`.
        parameters: θ by name.

    Example:
        >>> inputs, weights = torch.eye(3, dtype=torch.float64), {"W": torch.ones(1, 3, dtype=torch.float64)}
        >>> round(kinship(lambda x, p: x @ p["W"].mT, inputs, 2 * inputs, weights), 12)
        1.0
    """
    count = len(ones)
    kernel = traced_ntk(function, torch.cat([ones, others]), parameters)[:count, count:].double()
    same = torch.eye(count, dtype=torch.float64)
    kernel, same = (part - part.mean(dim=0) - part.mean(dim=1, keepdim=True) + part.mean() for part in (kernel, same))
    return alignment(Dense(kernel), Dense(same)).value
