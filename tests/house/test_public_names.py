"""Every module says what is public, every annotation means something, every example runs."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import pkgutil
import typing
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType, ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
GENERATED = "guard.rpc.pb"
NEEDS_AN_EXTRA = frozenset({"torch", "ray"})


def module_names() -> list[str]:
    names = [
        module.name
        for package in ("guard", "calibration")
        for module in pkgutil.walk_packages([str(ROOT / package)], f"{package}.")
        if not module.name.startswith(GENERATED)
    ]
    return ["guard", "calibration", *names]


def load(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name in NEEDS_AN_EXTRA:
            pytest.skip(f"{name} needs {error.name}")
        raise


def public_definitions(module: ModuleType) -> set[str]:
    """Return the public functions and classes that the module itself defines."""
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
    }


def isort_key(name: str) -> tuple[int, str]:
    """CONSTANTS, then Classes, then functions; each by name, as ruff sorts them."""
    kind = 0 if name.isupper() and len(name) > 1 else 1 if name[0].isupper() else 2
    return kind, name


@pytest.mark.parametrize("name", module_names())
def test_what_a_module_defines_in_public_is_in_its_all_and_the_other_way_round(name: str) -> None:
    module = load(name)
    exported = list(getattr(module, "__all__", []))
    assert exported == sorted(set(exported), key=isort_key)
    assert [missing for missing in exported if not hasattr(module, missing)] == []
    assert public_definitions(module) - set(exported) == set()


def test_a_public_name_left_out_of_all_would_be_found() -> None:
    module = ModuleType("pretend")
    exec("def seen(): ...\ndef _hidden(): ...\nclass Seen: ...\nfrom pathlib import Path", vars(module))
    assert public_definitions(module) == {"seen", "Seen"}


def functions(module: ModuleType) -> Iterator[tuple[str, FunctionType]]:
    """Yield every function and method that the module defines, private ones too."""
    for name, value in vars(module).items():
        if getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(value):
            yield name, value
        elif inspect.isclass(value):
            for member, method in vars(value).items():
                plain = getattr(method, "__func__", getattr(method, "fget", method))
                if inspect.isfunction(plain):
                    yield f"{name}.{member}", plain


def unresolved(module: ModuleType) -> list[str]:
    broken = []
    for name, function in functions(module):
        try:
            typing.get_type_hints(function)
        except (NameError, TypeError, SyntaxError) as error:
            broken.append(f"{module.__name__}.{name}: {error}")
    return broken


@pytest.mark.parametrize("name", module_names())
def test_every_annotation_resolves(name: str) -> None:
    """One that does not is checked by nobody: not by beartype, which then lets everything pass.

    Formatters that strip quotes make ``n * row``, a product, of the shape ``"n *row"``.
    """
    assert unresolved(load(name)) == []


def test_an_annotation_that_lost_its_quotes_would_be_found() -> None:
    module = ModuleType("pretend")
    source = "from __future__ import annotations\ndef blend(images: list[n * row]) -> None: ..."
    exec(compile(source, "pretend", "exec", dont_inherit=True), vars(module))
    assert unresolved(module) == ["pretend.blend: name 'n' is not defined"]


def examples(name: str) -> list[tuple[str, int, str]]:
    """Return (name, line, docstring) of every docstring with an example, read from the source.

    doctest's own finder passes over functions that a type checker has wrapped.
    """
    path = ROOT.joinpath(*name.split("."))
    source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = []
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        docstring = ast.get_docstring(node) if isinstance(node, documented) else None
        if docstring and ">>>" in docstring:
            found.append((getattr(node, "name", name), getattr(node, "lineno", 1), docstring))
    return found


WITH_EXAMPLES = [name for name in module_names() if examples(name)]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_the_examples_in_the_docstrings_run_and_give_what_they_say(name: str) -> None:
    module = load(name)
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    for where, line, docstring in examples(name):
        names = {**vars(module), "np": np}
        test = doctest.DocTestParser().get_doctest(docstring, names, where, name, line)
        output: list[str] = []
        runner.run(test, out=output.append)
        assert output == []
    assert runner.summarize(verbose=False).attempted > 0


def test_the_core_has_examples() -> None:
    assert {"guard.detection.entropy", "guard.detection.plan"} <= set(WITH_EXAMPLES)
