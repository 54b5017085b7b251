"""Every class is abstract or final, and no concrete method of ours is overridden."""

import abc
import ast
import dataclasses
import enum
import importlib
import inspect
import pkgutil
import textwrap
from types import ModuleType
from typing import NamedTuple, Protocol, final

import pytest

import kpflow

PER_CLASS = {"__init__", "__post_init__", "__replace__", "__annotate_func__"}
"""What every class may have of its own: how it is made is no behaviour that another class relies on."""

MODULES = ["kpflow", *(info.name for info in pkgutil.walk_packages(kpflow.__path__, "kpflow."))]


def classes_of(module: ModuleType) -> list[type]:
    """Classes written in `module`, those inside other classes and functions excepted."""
    return [kind for _, kind in inspect.getmembers(module, inspect.isclass) if kind.__module__ == module.__name__]


def is_marked_final(kind: type) -> bool:
    """Whether `@final` stands above the class; Python 3.10 leaves no other trace of it."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    assert isinstance(tree, ast.ClassDef)
    return any(ast.unparse(decorator) in ("final", "typing.final") for decorator in tree.decorator_list)


def is_abstract_or_final(kind: type) -> bool:
    exempt = issubclass(kind, (enum.Enum, BaseException)) or getattr(kind, "_is_protocol", False)
    return exempt or inspect.isabstract(kind) or is_marked_final(kind)


def is_concrete(member: object) -> bool:
    behaves = callable(member) or isinstance(member, (property, classmethod, staticmethod))
    return behaves and not getattr(member, "__isabstractmethod__", False) and not is_generated(member)


def is_generated(member: object) -> bool:
    """Whether the dataclass decorator wrote the method, as it does anew for every dataclass."""
    code = getattr(inspect.unwrap(member), "__code__", None) if callable(member) else None
    return code is not None and code.co_filename == "<string>"


def overrides(kind: type) -> list[str]:
    """Concrete methods of kpflow classes that `kind` overrides; methods of torch, enum and others are not ours."""
    ours = [base for base in kind.__mro__[1:] if base.__module__.split(".")[0] == kind.__module__.split(".")[0]]
    return [
        f"{kind.__module__}.{kind.__name__}.{name} overrides {base.__name__}.{name}"
        for base in ours
        for name in vars(kind).keys() & vars(base).keys() - PER_CLASS
        if is_concrete(vars(base)[name])
    ]


@pytest.mark.parametrize("name", MODULES)
def test_module_is_well_built(name):
    for kind in classes_of(importlib.import_module(name)):
        assert is_abstract_or_final(kind), f"{name}.{kind.__name__} is neither abstract nor final"
        assert not overrides(kind), overrides(kind)


def test_it_looks_at_the_classes():
    found = {kind.__name__ for name in MODULES for kind in classes_of(importlib.import_module(name))}
    assert {"Space", "Operator", "Gramian", "Dense", "PartialTrace", "Linearisation"} <= found


class Base(abc.ABC):
    @abc.abstractmethod
    def given(self): ...

    @property
    @abc.abstractmethod
    def size(self): ...

    def made(self):
        return self.given()

    @property
    def double(self):
        return 2 * self.size

    def __repr__(self):
        return "base"


@final
class Good(Base):
    size = 3

    def __init__(self):
        self.name = "good"

    def given(self):
        return self.name


class Open(Base):
    size = 3

    def given(self):
        return "open"


@final
class Bad(Base):
    size = 3

    def given(self):
        return "bad"

    def made(self):
        return "mine"

    @property
    def double(self):
        return 7


@final
@dataclasses.dataclass(frozen=True)
class Printed(Base):
    """A dataclass with a __repr__ of its own, which `repr=False` would have left to the base."""

    size: int

    def given(self):
        return "printed"


@dataclasses.dataclass(frozen=True)
class Record(abc.ABC):
    name: str

    @abc.abstractmethod
    def given(self): ...


@final
@dataclasses.dataclass(frozen=True)
class Entry(Record):
    """Its __eq__, __hash__ and others are written anew over those of Record, by the decorator."""

    def given(self):
        return self.name


@final
class Grandchild(Open):
    def given(self):
        return "grandchild"


class Colour(enum.Enum):
    RED = 1


class Failure(ValueError):
    pass


class Shape(Protocol):
    def area(self): ...


class Pair(NamedTuple):
    left: int


def test_the_rules_see_what_is_wrong():
    assert [
        kind for kind in (Base, Good, Bad, Grandchild, Colour, Failure, Shape) if not is_abstract_or_final(kind)
    ] == []
    assert [kind for kind in (Open, Pair) if is_abstract_or_final(kind)] == []


def test_the_rules_see_overrides():
    def found(kind):
        return sorted(line.split(" overrides ")[1] for line in overrides(kind))

    assert [kind for kind in (Good, Open, Colour, Failure, Pair, Entry) if found(kind)] == []
    assert found(Bad) == ["Base.double", "Base.made"]
    assert found(Printed) == ["Base.__repr__"]
    assert found(Grandchild) == ["Open.given"]
