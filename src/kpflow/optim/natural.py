"""NaturalGradient: gradient descent with the leading curvature levelled, or inverted, through a low-rank factor."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from kpflow._checks import check_finite, check_generator, check_one_of, check_positive, check_range
from kpflow.operators import Operator

from .curvature import Curvature, Jacobian, Leading, OfGraph, OfOperator, joined, split

__all__ = ["NaturalGradient"]

FORMS = ("flat", "damped")
EXTRA = 1
"""Vectors of the subspace beyond the rank: they give the level of what is left. More gain nothing (measured)."""
FIRST = 3
"""Products with the subspace when it is found for the first time; later ones start from the last and take one."""
REFUSED, GROW, SHRINK = 4.0, 2.0, 0.5
"""Factors of the damping after a step that gained nothing and is taken back, that gained less than a quarter, or more
than three quarters, of what the quadratic model predicts (Levenberg–Marquardt)."""
LARGEST = 1e12
"""The most that the damping may become, so that it comes back after a plateau on which no step gains anything."""

Shard = tuple[Tensor, Tensor]


@final
class NaturalGradient(torch.optim.Optimizer):
    """Natural-gradient descent through the leading eigenpairs of F = Jᵀ H J, with J = ∂y/∂θ and H = ∂²L/∂y².

    The y are what the closure gives as outputs: the model's outputs or, for the state-space NTK of arXiv 2605.12763,
    its hidden states. For squared errors H is a multiple of the identity and F has the spectrum of that multiple of the
    NTK J Jᵀ; for cross-entropy it is the Fisher information. Near a bifurcation one eigenvalue grows without bound, and
    plain descent must take steps as small as that one asks for. With eigenpairs (s_i², v_i), i ≤ k, and the gradient g,
    a step is θ ← θ − lr · d with

    - "flat": d = g − Σ (1 − s²_{k+1} / s_i²) v_i ⟨v_i, g⟩, which levels the top curvatures to the next one. A step
      never grows, so that the factor may be used for several steps;
    - "damped": d = Σ v_i ⟨v_i, g⟩ / (s_i² + λ) + (g − Σ v_i ⟨v_i, g⟩) / (s²_{k+1} + λ), close to (F + λ)⁻¹ g.

    The eigenpairs come from k + 1 products with J and Jᵀ in one block, every `refresh` steps, from the last ones on. By
    default they go through the graph of the closure; the operators of a recurrent network are several times faster:
    `step(closure, jacobian=lambda: kp.Ntk(kp.linearise(model, inputs)).jacobian)`. After a step the gradient is in
    `p.grad`, as after `backward`.

    Args:
        params: The model, its parameters, or groups of them with options of their own (`lr`, `momentum`).
        lr: Step size.
        rank: k.
        form: "flat" or "damped".
        damping: λ of the damped form, in units of F; "gain" to adapt it from 1e-3 on by the gain ratio, and to take
            back steps after which the loss is larger, at one more call of the closure a step.
        refresh: Steps between two computations of the eigenpairs.
        momentum: Heavy ball on d.
        generator: Random generator of the first subspace; a fresh one by default.

    Raises:
        ValueError: An option is out of its range or none of a group, or nothing is trainable; "gain" with "flat".
        TypeError: The closure of `step` gives something else than a pair of a loss and outputs, or several.

    Example:
        >>> model = torch.nn.RNN(1, 8, batch_first=True)
        >>> inputs, targets = torch.ones(4, 10, 1), torch.zeros(4, 10, 8)
        >>> optimiser = NaturalGradient(model, lr=0.5, rank=3)
        >>> def closure():
        ...     states, _ = model(inputs)
        ...     return (states - targets).square().mean(), states
        >>> losses = [float(optimiser.step(closure)) for _ in range(20)]
        >>> losses[-1] < 0.2 * losses[0]
        True
    """

    closure_gives_outputs = True
    """What a trainer may ask of an optimiser: whether its closure must give outputs beside the loss."""

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        rank: int = 3,
        form: str = "flat",
        damping: float | str = 1e-3,
        refresh: int = 5,
        momentum: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        check_positive("lr", lr)
        check_positive("rank", rank, integer=True)
        check_one_of("form", form, FORMS)
        check_positive("refresh", refresh, integer=True)
        check_range("momentum", momentum, 0, 1)
        self._adapts = damping == "gain"
        if self._adapts and form != "damped":
            raise ValueError(f'`damping="gain"` needs `form="damped"`; got {form!r}, which has no damping.')
        if not self._adapts:
            check_positive("damping", damping)
        given = params.named_parameters() if isinstance(params, nn.Module) else params
        torch.optim.Optimizer.__init__(self, given, {"lr": lr, "momentum": momentum})
        trained = self._trained()
        if not trained:
            raise ValueError("`params` must hold a trainable parameter; unfreeze some with requires_grad_(True).")
        self._rank = min(rank, sum(p.numel() for p in trained))
        self._form = form
        self._refresh = refresh
        self._damping = 1e-3 if isinstance(damping, str) else float(damping)
        self._generator = check_generator("generator", generator, trained[0].device)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters to be trained, with options of their own; new eigenpairs are due then.

        Raises:
            ValueError: An option is out of its range, or belongs to the optimiser as a whole.
        """
        unknown = sorted(set(param_group) - {"params", "param_names", *self.defaults})
        if unknown:
            raise ValueError(f"A group may have options of its own for {list(self.defaults)}; got {unknown}.")
        check_positive("lr", param_group.get("lr", self.defaults["lr"]))
        check_range("momentum", param_group.get("momentum", self.defaults["momentum"]), 0, 1)
        torch.optim.Optimizer.add_param_group(self, param_group)

    @property
    def damping(self) -> float:
        """λ as it is now."""
        own = self.state[self._trained()[0]]
        return float(own["damping"]) if "damping" in own else self._damping

    def step(  # type: ignore[override]
        self, closure: Callable[[], Any] | None = None, jacobian: Callable[[], Any] | None = None
    ) -> Tensor:
        """One step.

        Args:
            closure: Gives a pair (loss, outputs) with their graph, and does not call `backward`; or an iterable of such
                pairs, one for each shard of the trials, whose losses add up.
            jacobian: Gives J = ∂y/∂θ of those outputs as an operator, or a list of them for shards; called where new
                eigenpairs are due. The optimiser must have been made with the model, or with its named parameters.

        Returns:
            The loss before the step.

        Raises:
            TypeError: `closure` or `jacobian` gives something else.
            ValueError: The loss or its gradient is not finite, or `jacobian` is given and the names of the parameters
                are not known, or do not fit.
        """
        if closure is None:
            raise TypeError("`closure` must be a function that gives (loss, outputs); got None. Call step(closure).")
        trained = self._trained()
        due = self._is_due(trained)
        self.zero_grad()
        with torch.enable_grad():
            shards = _shards(closure())
            loss = torch.stack([loss for loss, _ in shards]).sum()
            gradient = self._gradient(loss, trained, keep=due)
        leading = self._renewed(shards, trained, jacobian) if due else self._kept(trained)
        self.state[trained[0]]["step"] = int(self.state[trained[0]].get("step", 0)) + 1
        steps = self._steps(trained, self._direction(leading, gradient, self.damping))
        before = [p.detach().clone() for p in trained] if self._adapts else []
        with torch.no_grad():
            for p, step in zip(trained, steps, strict=True):
                p.sub_(step)
            if self._adapts:
                gained = float(loss) - sum(float(after) for after, _ in _shards(closure()))
                self._adapt(before, gained, self._predicted(leading, gradient, steps))
        return loss.detach()

    def _trained(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"] if p.requires_grad]

    def _is_due(self, trained: Sequence[Tensor]) -> bool:
        """Whether this step computes new eigenpairs: after some steps, and for other parameters than before."""
        first = self.state[trained[0]]
        return not self._is_known(trained) or int(first["step"]) % self._refresh == 0

    def _is_known(self, trained: Sequence[Tensor]) -> bool:
        """Whether there are eigenpairs of just these parameters."""
        return self.state[trained[0]].get("size") == sum(p.numel() for p in trained)

    def _gradient(self, loss: Tensor, trained: Sequence[Tensor], keep: bool) -> Tensor:
        """∂L/∂θ, also kept as the parameters' `grad`; the graph is kept for new eigenpairs only."""
        if not bool(torch.isfinite(loss)):
            got = float(loss.detach())
            raise ValueError(f"The loss must be finite; got {got}. Take a smaller `lr`, or more damping.")
        found = torch.autograd.grad(loss, trained, retain_graph=keep, materialize_grads=True)
        for index, part in enumerate(found):
            where = f"gradient of parameter {index}, of shape {tuple(part.shape)}"
            check_finite(where, part, remedy="Take a smaller `lr`, or more damping.")
        for p, part in zip(trained, found, strict=True):
            p.grad = part
        return joined([g.unsqueeze(0) for g in found])[0]

    def _kept(self, trained: Sequence[Tensor]) -> Leading:
        """The eigenpairs of an earlier step."""
        return Leading(self.state[trained[0]]["values"], joined([self.state[p]["vectors"] for p in trained]))

    def _renewed(
        self, shards: Sequence[Shard], trained: Sequence[Tensor], jacobian: Callable[[], Any] | None
    ) -> Leading:
        """New eigenpairs; they are kept with the parameters, so that they are saved."""
        leading = self._found(shards, trained, jacobian)
        for p, part in zip(trained, split(leading.vectors, trained), strict=True):
            self.state[p]["vectors"] = part.clone()
        first = self.state[trained[0]]
        first["values"], first["size"] = leading.values, leading.vectors.shape[1]
        return leading

    def _found(self, shards: Sequence[Shard], trained: Sequence[Tensor], jacobian: Callable[[], Any] | None) -> Leading:
        total = sum(p.numel() for p in trained)
        size = min(self._rank + EXTRA, total)
        known = self._is_known(trained)
        start = joined([self.state[p]["vectors"] for p in trained]) if known else trained[0].new_empty(0, total)
        more = torch.randn(
            size - len(start), total, dtype=start.dtype, device=start.device, generator=self._generator
        )  # directions that were lost come back as random ones
        jacobians = self._jacobians(shards, trained, jacobian)
        return Curvature(shards, jacobians, trained).leading(torch.cat([start, more]), 1 if known else FIRST)

    def _jacobians(
        self, shards: Sequence[Shard], trained: Sequence[Tensor], jacobian: Callable[[], Any] | None
    ) -> list[Jacobian]:
        if jacobian is None:
            return [OfGraph(outputs, trained) for _, outputs in shards]
        given = jacobian()
        operators = [given] if isinstance(given, Operator) else list(given) if isinstance(given, Iterable) else []
        if len(operators) != len(shards) or not all(isinstance(operator, Operator) for operator in operators):
            raise TypeError(
                f"`jacobian` must give an operator for each shard of the closure, {len(shards)}; got {given!r}. Return "
                "kp.Ntk(lin).jacobian, or a list of such."
            )
        names = [name for group in self.param_groups for name in group.get("param_names", ())]
        if not names:
            raise ValueError(
                "`jacobian` needs the names of the parameters: make the optimiser with the model, "
                "NaturalGradient(model), or with its named_parameters()."
            )
        parameters = [p for group in self.param_groups for p in group["params"]]
        named = {name: p for name, p in zip(names, parameters, strict=True) if p.requires_grad}
        return [OfOperator(o, outputs, named) for o, (_, outputs) in zip(operators, shards, strict=True)]

    def _direction(self, leading: Leading, gradient: Tensor, damping: float) -> Tensor:
        top = leading.vectors[: self._rank]
        within = top @ gradient
        values, level = leading.values[: self._rank], self._level(leading)
        if self._form == "flat":
            return gradient - top.mT @ ((1 - level / values.clamp_min(level)) * within)
        rest = gradient - top.mT @ within
        return top.mT @ (within / (values + damping)) + rest / (level + damping)

    def _level(self, leading: Leading) -> Tensor:
        """s²_{k+1}, or 0 where F has no more."""
        return leading.values[self._rank] if len(leading.values) > self._rank else leading.values.new_zeros(())

    def _steps(self, trained: Sequence[Tensor], direction: Tensor) -> list[Tensor]:
        """lr · d of every parameter, after momentum."""
        parts, steps = iter(split(direction.unsqueeze(0), trained)), []
        for group in self.param_groups:
            for p in group["params"]:
                if not p.requires_grad:
                    continue
                own, part = self.state[p], next(parts)[0]
                if group["momentum"]:
                    part = own["momentum"] = group["momentum"] * own.get("momentum", torch.zeros_like(part)) + part
                steps.append(group["lr"] * part)
        return steps

    def _predicted(self, leading: Leading, gradient: Tensor, steps: Sequence[Tensor]) -> float:
        """⟨g, δ⟩ − ½ δᵀ F δ, what θ ← θ − δ gains by the quadratic model of F."""
        moved = joined([step.unsqueeze(0) for step in steps])[0]
        top = leading.vectors[: self._rank]
        within = top @ moved
        curved = (leading.values[: self._rank] * within.square()).sum()
        curved += self._level(leading) * (moved - top.mT @ within).square().sum()
        return float(gradient @ moved - 0.5 * curved)

    def _adapt(self, before: Sequence[Tensor], gained: float, predicted: float) -> None:
        """Levenberg–Marquardt: compare what was gained with what the quadratic model of F predicts."""
        trained = self._trained()
        if not gained > 0:  # NaN is no gain
            for p, old in zip(trained, before, strict=True):
                p.copy_(old)
                self.state[p].pop("momentum", None)
            factor = REFUSED
        else:
            ratio = gained / predicted if predicted > 0 else 0.0
            factor = GROW if ratio < 0.25 else SHRINK if ratio > 0.75 else 1.0
        self.state[trained[0]]["damping"] = min(self.damping * factor, LARGEST)


def _shards(given: Any) -> list[Shard]:
    """Pairs of a loss and outputs."""
    single = isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], Tensor)
    shards = [given] if single else list(given) if isinstance(given, Iterable) and not isinstance(given, Tensor) else []
    for shard in shards:
        pair = isinstance(shard, tuple) and len(shard) == 2 and all(isinstance(part, Tensor) for part in shard)
        if not pair or shard[0].numel() != 1:
            shards = []
            break
    if not shards:
        raise TypeError(
            f"`closure` must give a pair (loss, outputs) of tensors, the loss a single number, or an iterable of such "
            f"pairs; got {type(given).__name__}. Return the model's outputs, or its states, beside the loss."
        )
    return [(loss.reshape(()), outputs) for loss, outputs in shards]
