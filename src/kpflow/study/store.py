"""Store: the results of a study on disk, one training step at a time, whole after a kill at any moment."""

import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import numpy as np
import xarray as xr

from . import files

__all__ = ["Store", "key_of"]

WRITING = ".writing-"  # marks what is not whole: a folder of this name is never read


def key_of(settings: Mapping[str, Any], weights: str) -> str:
    """The key of one analysis: a hash of its settings and of the fingerprint of the weights that were analysed.

    Example:
        >>> key_of({"probes": 8}, "ab") == key_of({"probes": 8}, "ab"), key_of({"probes": 9}, "ab") == key_of({}, "ab")
        (True, False)
    """
    text = json.dumps([dict(settings), weights], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@final
class Store:
    """A folder of xarray Datasets in zarr, one for each training step and key, read back as one Dataset.

    A step is written under a temporary name, flushed, and renamed, which the file system does at once or not at all; it
    is never changed afterwards. So what is there under its own name is whole, whenever the process was killed. A step
    that is analysed with other settings or other weights has another key, and lies beside the old one; `select` says
    which keys are read, so results of different kinds are never mixed.

    Args:
        path: The folder; made when the first step is written.

    Example:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> store = Store(Path(folder.name) / "analysis")
        >>> for step in (10, 0):
        ...     store.append(xr.Dataset({"loss": ("step", [1.0 / (1 + step)])}, {"step": [step]}), key="a")
        >>> store.steps(), store.read().loss.values.round(2).tolist()
        ([0, 10], [1.0, 0.09])
        >>> folder.cleanup()
    """

    def __init__(self, path: str | Path) -> None:
        """Nothing is read or written yet."""
        self.path = Path(path)

    def has(self, step: int, key: str) -> bool:
        """Whether the step is there, whole, under this key."""
        return self._group(step, key).is_dir()

    def append(self, dataset: xr.Dataset, key: str) -> None:
        """Write the Dataset of one step (dimension `step` of length 1), at once or not at all.

        Raises:
            ValueError: The Dataset has no dimension `step` of length 1.
            OSError: The disk is full; the steps before are intact.
        """
        if "step" not in dataset.coords or dataset.sizes.get("step") != 1:
            raise ValueError(
                f"`dataset` must have a coordinate `step` of length 1; got the dimensions {dict(dataset.sizes)}. "
                "Append one step at a time."
            )
        step = int(dataset["step"].item())
        if not self.has(step, key):
            self._publish(dataset, self._group(step, key))

    def advance(self, dataset: xr.Dataset, key: str) -> None:
        """Append the newest step of a run: what is read from now on are it, and of what was read before, earlier steps.

        Raises:
            ValueError, OSError: As `append`.
        """
        self.append(dataset, key)
        newest = int(dataset["step"].item())
        self.select({step: one for step, one in self._selected() if step < newest} | {newest: key})

    def select(self, keys: Mapping[int, str]) -> None:
        """Say which key of each step is read from now on; other steps and keys stay on the disk."""
        files.write_json(self.path / "selection.json", {str(step): key for step, key in sorted(keys.items())})

    def steps(self) -> list[int]:
        """The steps that are there, whole and selected, in order."""
        return [step for step, _ in self._selected()]

    def read(self) -> xr.Dataset:
        """All selected steps as one Dataset in memory, sorted by step.

        Raises:
            FileNotFoundError: The store has no step.
            ValueError: Two analyses of one step and no selection, or steps that cannot be read or joined.
        """
        selected = self._selected()
        if not selected:
            raise FileNotFoundError(
                f"`{self.path}` holds no analysed step. Analyse its checkpoints first: "
                "`kpflow analyze FOLDER --model ... --task ...`, or study.analyse_folder."
            )
        datasets = [self._read(step, key) for step, key in selected]
        try:
            return _decode(xr.concat(datasets, dim="step", **EXACTLY))
        except ValueError as error:
            raise ValueError(
                f"The steps {self.steps()} of `{self.path}` cannot be joined: {error}. Analyse them again on the same "
                "trials."
            ) from error

    def consolidate(self) -> Path:
        """Write what `read` gives as one zarr group, `record.zarr`, for other tools; returns its path.

        The group is for others to open, e.g. by `xarray.open_zarr`; this class reads the steps themselves.
        """
        target = self.path / "record.zarr"
        self._publish(self.read(), target)
        return target

    def clean(self) -> None:
        """Remove what killed runs left half-written; call it when no other run writes to the store."""
        for leftover in [*self.path.glob(f"{WRITING}*"), *self.path.glob(f"steps/{WRITING}*")]:
            shutil.rmtree(leftover)

    def _group(self, step: int, key: str) -> Path:
        return self.path / "steps" / f"{step:08d}-{key}"

    def _selected(self) -> list[tuple[int, str]]:
        present = [tuple(group.name.split("-", 1)) for group in self.path.glob("steps/[0-9]*-*") if group.is_dir()]
        there = sorted((int(step), key) for step, key in present)
        selection = self.path / "selection.json"
        if selection.is_file():
            keys = files.read_json(selection)
            return [(step, key) for step, key in there if keys.get(str(step)) == key]
        for (first, _), (second, _) in itertools.pairwise(there):
            if first == second:
                raise ValueError(
                    f"`{self.path}` must be told which analysis of step {first} to read; got several. Call select()."
                )
        return there

    def _publish(self, dataset: xr.Dataset, target: Path) -> None:
        """Write a group under a temporary name, flush it, and rename it to `target`."""
        temporary = target.with_name(f"{WRITING}{os.getpid()}-{target.name}")
        outdated = target.with_name(f"{WRITING}{os.getpid()}-outdated-{target.name}")
        try:
            _remove(temporary)
            temporary.parent.mkdir(parents=True, exist_ok=True)
            _encode(dataset).to_zarr(temporary, mode="w", consolidated=False)
            _flush(temporary)
            if target.exists():  # only `record.zarr`, which is made again from the steps
                os.replace(target, outdated)
            os.replace(temporary, target)
            _remove(outdated)
        except OSError as error:
            _remove(temporary)
            raise OSError(
                error.errno,
                f"`{target}` could not be written: {error.strerror}. The steps before are intact: make room and start "
                "again to go on from there.",
            ) from error

    def _read(self, step: int, key: str) -> xr.Dataset:
        group = self._group(step, key)
        try:
            with xr.open_zarr(group, consolidated=False, chunks=None) as dataset:
                return dataset.load()
        except Exception as error:  # zarr and numcodecs raise many kinds
            raise ValueError(
                f"`{group}` must be a whole zarr group; got one that cannot be read ({type(error).__name__}: {error}). "
                "Delete it and run the analysis again."
            ) from error


EXACTLY: dict[str, Any] = {
    "join": "exact",
    "data_vars": "minimal",
    "coords": "minimal",
    "compat": "equals",
    "combine_attrs": "override",
}
"""How steps are joined: coordinates must agree, and only what has the dimension `step` is concatenated."""


def _encode(dataset: xr.Dataset) -> xr.Dataset:
    """Texts as objects: zarr has no specification for numpy's texts of fixed length."""
    texts = {name: value.astype(object) for name, value in dataset.variables.items() if value.dtype.kind == "U"}
    return dataset.assign({name: value for name, value in texts.items() if name not in dataset.coords}).assign_coords(
        {name: value for name, value in texts.items() if name in dataset.coords}
    )


def _decode(dataset: xr.Dataset) -> xr.Dataset:
    texts = {name: value for name, value in dataset.coords.items() if value.dtype.kind in "OT"}
    return dataset.assign_coords(
        {name: (value.dims, np.array(value.values.tolist(), dtype=str)) for name, value in texts.items()}
    )


def _flush(folder: Path) -> None:
    """Ask the system to put every file below `folder` on the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
