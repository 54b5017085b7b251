"""Files that are written whole or not at all."""

import json
import os
from pathlib import Path
from typing import Any

__all__ = ["read_json", "write_bytes", "write_json"]


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` such that at any moment `path` is what it was before, or all of `data`.

    The data go to a hidden file beside it, are flushed to the disk, and the file is renamed over `path`.

    Raises:
        OSError: The disk is full or the folder cannot be written; what was there before is untouched.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_bytes(Path(folder) / "a" / "numbers.bin", b"123")
        ...     (Path(folder) / "a" / "numbers.bin").read_bytes()
        b'123'
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _flush_folder(path.parent)
    except OSError as error:
        _remove(temporary)
        raise OSError(
            error.errno,
            f"`{path}` ({len(data) / 1e6:.1f} MB) could not be written: {error.strerror}. Everything written before "
            "is intact: make room or choose another folder, and start again to go on from there.",
        ) from error


def write_json(path: Path, content: Any) -> None:
    """Write `content` as JSON to `path`, whole or not at all."""
    write_bytes(path, (json.dumps(content, indent=1) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read the JSON file `path`.

    Raises:
        ValueError: The file holds no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"`{path}` must hold JSON; got {error}. Delete it or restore it from a copy.") from error


def _flush_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut, where the system lets a folder be opened."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return  # the folder cannot be written: the error that follows says so
