"""The state of an optimizer beside a checkpoint: written while training, and made an optimizer of a model again."""

from pathlib import Path
from typing import Any

from torch import nn, optim
from torch.optim import Optimizer

from . import files, tensors, tree

__all__ = ["read_optimizer", "save_optimizer"]

KINDS: dict[str, type[Any]] = {kind.__name__: kind for kind in (optim.SGD, optim.Adam, optim.AdamW)}
"""Those that can be made again."""


def save_optimizer(path: Path, optimizer: Optimizer, model: nn.Module, step: int) -> None:
    """Write the state of `optimizer`, its kind, and which of the model's parameters are in each of its groups.

    Raises:
        ValueError: It has parameters that are not of the model.
        OSError: The disk is full or the folder cannot be written; what was there before is intact.

    Example:
        >>> import tempfile, torch
        >>> model = nn.Linear(2, 1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "step-00000003.safetensors"
        ...     save_optimizer(path, optim.SGD(model.parameters(), lr=0.1, momentum=0.9), model, step=3)
        ...     read_optimizer(path, model).param_groups[0]["momentum"]
        0.9
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [[names.get(id(parameter)) for parameter in group["params"]] for group in optimizer.param_groups]
    if any(None in group for group in groups):
        raise ValueError(
            "`optimizer` must have parameters of `model` alone for its state to be kept; got others. Record the module "
            "that has them all, or leave `optimizer_state` out."
        )
    layout, parts = tree.pack({"kind": type(optimizer).__name__, "names": groups, "state": optimizer.state_dict()})
    files.write_json(path.with_suffix(".json"), layout)
    tensors.write_tensors(path, parts, {"step": str(step)})


def read_optimizer(path: Path, model: nn.Module) -> Optimizer | None:
    """The optimizer that was written, of the parameters of `model`; None if there is none, or it is of another kind."""
    if not path.is_file():
        return None
    parts = {name: value.clone() for name, value in tensors.read_tensors(path).items()}
    kept = tree.unpack(files.read_json(path.with_suffix(".json")), parts)
    if kept["kind"] not in KINDS:
        return None
    named = dict(model.named_parameters())
    optimizer = KINDS[kept["kind"]]([{"params": [named[name] for name in group]} for group in kept["names"]], lr=1.0)
    optimizer.load_state_dict(kept["state"])
    return optimizer
