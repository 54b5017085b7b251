"""Files of `torch.save`, read without running the code that a pickle may carry."""

import pickle
import pickletools
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

__all__ = ["load"]


def load(path: Path, trust_pickle: bool, *, lazily: bool = False) -> Any:
    """Load a file of `torch.save`: tensors and plain containers only, unless it is trusted.

    Args:
        path: The file.
        trust_pickle: Let the file run its code.
        lazily: Leave tensors on the disk until they are used, where the format allows it.

    Raises:
        ValueError: The file carries code and is not trusted, or is cut off, or is no such file.
    """
    lazily = lazily and zipfile.is_zipfile(path)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=not trust_pickle, mmap=lazily)
    except OSError:
        raise
    except (AttributeError, ImportError) as error:
        raise ValueError(
            f"`{path}` needs a class that cannot be imported here: {error}. Run where its module can be imported, or "
            "save model.state_dict() alone."
        ) from error
    except Exception as error:  # a broken file makes the unpickler raise nearly anything
        raise ValueError(_reason(path, trust_pickle, error)) from error


def _reason(path: Path, trust_pickle: bool, error: Exception) -> str:
    if isinstance(error, pickle.UnpicklingError) and not trust_pickle and _is_whole(path):
        return (
            f"`{path}` must hold tensors alone; got a pickle that carries code, which was not run. If you trust where "
            "it came from, read it with --trust-pickle (trust_pickle=True)."
        )
    return (
        f"`{path}` must be a whole file of torch.save; got one that cannot be read ({type(error).__name__}). It was "
        "probably cut off while it was written or copied: copy it again or delete it."
    )


def _is_whole(path: Path) -> bool:
    """Whether the pickle can be read to its end, which takes no unpickling."""
    if zipfile.is_zipfile(path):
        return True
    try:
        with path.open("rb") as file:
            return sum(1 for _ in pickletools.genops(file)) > 0
    except ValueError:
        return False
