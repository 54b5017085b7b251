"""Kronecker cores: K as a sum over weight sites of Gram matrices times identities."""

from kpflow.states import Linearisation

from .core import Core
from .gate_cores import GateCore
from .merged import merged_sites
from .site_cores import JointCore, SiteCore

__all__ = ["cores"]


def cores(linearisation: Linearisation) -> dict[str, Core]:
    """The Kronecker cores of K by weight site: K is the sum of their kernels.

    The universal Kronecker-core theorem (arXiv 2605.08746): what a weight matrix can change at once is the Gram matrix
    of what it sees, times an identity: M Mᵀ ⊗ I. In a recurrent network it stands between the slopes of its gate,
    D (M Mᵀ ⊗ I) Dᵀ; for a rate network the slopes are constant and K has the eigenvalues α² σ_i(M)², each
    `multiplicity` times. In a graph (multilayer perceptrons, convolutional networks, transformers) the states are what
    the weights make, so D = I.

    Args:
        linearisation: The linearised state equation.

    Returns:
        Cores by name. Recurrent: the site (its first parameter), and the gate where it has several,
        `weight_hh_l0.reset`. Graph: the state, for a weight with its biases; the first parameter, for those that act in
        several ways or are computed from others.

    Raises:
        ValueError: The weight sites of a recurrent network are not known, because its step is known by automatic
            differentiation only.

    Example:
        >>> import torch, kpflow as kp
        >>> model = kp.states.cells.RateRNN(2, 4)
        >>> lin = kp.linearise(model, torch.ones(1, 3, 2))
        >>> core = cores(lin)["weight_hh"]
        >>> core.factor.shape, core.multiplicity
        (torch.Size([3, 6]), 4)
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2))
        >>> lin = kp.linearise(model, torch.ones(4, 3))
        >>> {name: (tuple(core.factor.shape), core.multiplicity) for name, core in cores(lin).items()}
        {'0': ((4, 4), 5), '2': ((4, 6), 2)}
    """
    if linearisation.linear_sites() is not None:
        merged = merged_sites(linearisation)
        alone = {name: SiteCore(site, linearisation.space) for name, site in merged.alone.items()}
        return {**alone, **{name: JointCore(linearisation, names) for name, names in merged.joint.items()}}
    found = {
        name if len(site.gates) == 1 else f"{name}.{gate}": GateCore(site, index, linearisation.space)
        for name, site in linearisation.sites().items()
        for index, gate in enumerate(site.gates)
    }
    if not found:
        raise ValueError(
            "`linearisation` has no known weight sites, since its step is known by automatic differentiation only. "
            "Use a named cell (nn.RNN, nn.GRU, nn.LSTM, kpflow.states.cells), or ParameterKernel for K itself."
        )
    return {**found}
