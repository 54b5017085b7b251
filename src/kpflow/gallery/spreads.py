"""Errors of Monte Carlo checks over seeds, measured once and kept with the package: tolerances are set from them."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

__all__ = ["SEEDS", "Errors", "read", "write"]

SEEDS = range(6)
"""With which errors are measured."""

Errors = Mapping[str, tuple[float, ...]]
"""Of each Monte Carlo check, by what it says: one error for each seed."""

FILE = Path(__file__).with_name("spreads.json")
"""Entry → form → check → errors, by `kpflow gallery --spread`."""


def read(name: str, *, short: bool) -> Errors:
    """What was measured of an entry; nothing if it has no Monte Carlo checks.

    Example:
        >>> len(read("approach", short=True)["across v"])
        6
    """
    forms = json.loads(FILE.read_text("utf-8")).get(name, {})
    return {what: tuple(errors) for what, errors in forms.get(_form(short), {}).items()}


def write(name: str, errors: Errors, *, short: bool) -> None:
    """Keep what was measured of an entry, to four digits, a line for each check."""
    table = json.loads(FILE.read_text("utf-8"))
    rounded = {what: [float(f"{error:.4g}") for error in found] for what, found in errors.items()}
    table[name] = table.get(name, {}) | {_form(short): rounded}
    table = {key: forms for key, forms in sorted(table.items()) if any(forms.values())}
    text = json.dumps(table, indent=1, ensure_ascii=False)
    FILE.write_text(re.sub(r"\[\s+([^]]*?)\s+]", lambda found: f"[{' '.join(found[1].split())}]", text) + "\n", "utf-8")


def _form(short: bool) -> str:
    return "short" if short else "full"
