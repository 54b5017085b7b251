"""Small networks with given weights, and the dense NTK of their outputs by the package's own operators."""

from collections.abc import Sequence

from torch import Tensor, nn

from kpflow.flow import Ntk
from kpflow.operators import to_dense
from kpflow.states import linearise

__all__ = ["linear_network", "output_ntk"]


def linear_network(weights: Sequence[Tensor]) -> nn.Sequential:
    """Layers x ↦ W x without biases, in float64, the first of the weights first.

    Example:
        >>> import torch
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
        >>> import torch
        >>> model = linear_network([torch.tensor([[2.0, 1.0]], dtype=torch.float64)])
        >>> output_ntk(model, torch.eye(2, dtype=torch.float64))
        tensor([[1., 0.],
                [0., 1.]], dtype=torch.float64)
    """
    return to_dense(Ntk(linearise(model, inputs), readout="outputs", metric=metric))
