"""The public names: all of them resolve, each loads no more than it needs, and each says what it is."""

import ast
import importlib
import inspect
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import usagekeeper

PACKAGE = Path(usagekeeper.__file__).parent


def loaded_by(statement: str) -> set[str]:
    """The modules that a fresh interpreter has loaded after *statement*."""
    script = f"import sys; bare = set(sys.modules); {statement}\nprint(*(set(sys.modules) - bare))"
    return set(
        subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    )


@pytest.mark.parametrize("name", usagekeeper.__all__)
def test_a_public_name_resolves(name: str) -> None:
    value, home = getattr(usagekeeper, name), f"usagekeeper.{usagekeeper._HOME_OF[name]}"
    assert value is getattr(importlib.import_module(home), name)
    assert name.isupper() or value.__module__.startswith("usagekeeper.")


def test_the_public_names_are_those_that_resolve() -> None:
    resolved = [name for names in usagekeeper._HOMES.values() for name in names]
    assert sorted(usagekeeper.__all__) == sorted(resolved)


def test_a_type_checker_sees_the_same_names() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    (checking,) = [node for node in tree.body if isinstance(node, ast.If)]
    imported = {
        (str(node.module).removeprefix("usagekeeper."), alias.name)
        for node in checking.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert imported == {(home, name) for home, names in usagekeeper._HOMES.items() for name in names}


def test_everything_public_can_be_imported_at_once() -> None:
    names: dict[str, Any] = {}
    exec("from usagekeeper import *", names)
    assert set(usagekeeper.__all__) <= set(names)


def test_the_names_are_listed_before_they_are_loaded() -> None:
    assert set(usagekeeper.__all__) <= set(dir(usagekeeper))


def test_a_name_is_loaded_once() -> None:
    assert usagekeeper.Policy is usagekeeper.Policy
    assert vars(usagekeeper)["Policy"] is usagekeeper.Policy


@pytest.mark.parametrize("name", ["Quota", "ApiKey", "policy", "__nothing__"])
def test_an_unknown_name_is_an_attribute_error(name: str) -> None:
    with pytest.raises(AttributeError, match=f"module 'usagekeeper' has no attribute '{name}'"):
        getattr(usagekeeper, name)


def test_the_middleware_is_told_where_it_is_imported_from() -> None:
    with pytest.raises(ImportError, match=r"from usagekeeper\.asgi \(FastAPI, Starlette\), usagekeeper\.flask or"):
        exec("from usagekeeper import UsageMiddleware")


def test_importing_the_package_loads_none_of_its_modules() -> None:
    assert {name for name in loaded_by("import usagekeeper") if name.startswith("usagekeeper")} == {"usagekeeper"}


def test_an_error_loads_nothing_but_errors() -> None:
    loaded = loaded_by("from usagekeeper import ConfigurationError")
    assert {name for name in loaded if name.startswith("usagekeeper")} == {"usagekeeper", "usagekeeper.errors"}


def test_all_names_but_the_keeper_load_no_framework_no_settings_and_no_backend() -> None:
    names = ", ".join({*usagekeeper.__all__} - {"UsageKeeper"})
    loaded = {module.partition(".")[0] for module in loaded_by(f"from usagekeeper import {names}")}
    assert not loaded & {"pydantic", "sqlite3", "asyncio", "flask", "fastapi", "starlette", "werkzeug"}


@pytest.mark.parametrize("module", ["asgi", "wsgi"])
def test_a_driver_loads_no_framework(module: str) -> None:
    loaded = loaded_by(f"import usagekeeper.{module}")
    assert not {one for one in loaded if one.partition(".")[0] in {"flask", "fastapi", "starlette", "werkzeug"}}


def test_the_package_tells_the_version_that_it_is_built_as() -> None:
    built = tomllib.loads((PACKAGE.parent.parent / "pyproject.toml").read_text())
    assert "version" in built["project"]["dynamic"]
    assert built["tool"]["hatch"]["version"]["path"] == "src/usagekeeper/__init__.py"
    assert usagekeeper.__version__


def test_the_package_is_typed() -> None:
    assert (PACKAGE / "py.typed").exists()


# -- what they say of themselves --------------------------------------------------------------------------------------

MODULES = sorted(
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if path.name != "__main__.py"
)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_opens_with_a_sentence(name: str) -> None:
    opening = (importlib.import_module(name).__doc__ or "").partition("\n\n")[0]
    assert opening.rstrip().endswith((".", "?", ":"))


def public(module: ModuleType) -> list[tuple[str, Any]]:
    """Public classes, functions and methods of *module*, by qualified name."""
    found: list[tuple[str, Any]] = []
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(value):
            found.append((name, value))
        if inspect.isclass(value):
            found.append((name, value))
            found += [(f"{name}.{at}", one) for at, one in vars(value).items() if described(at, one)]
    return found


def described(name: str, member: object) -> bool:
    return not name.startswith("_") and (inspect.isfunction(member) or isinstance(member, property))


@pytest.mark.parametrize("name", [name for name in MODULES if ".testing" not in name])
def test_every_public_name_has_a_docstring(name: str) -> None:
    silent = [at for at, value in public(importlib.import_module(name)) if not inspect.getdoc(value)]
    assert silent == []


@pytest.mark.parametrize(("module", "extra"), [("fastapi", "fastapi"), ("flask", "flask")])
def test_a_framework_that_is_not_installed_is_named_with_its_extra(module: str, extra: str) -> None:
    script = f"import sys; sys.modules['{module}'] = None\nimport usagekeeper.{module}"
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert f'pip install "usagekeeper[{extra}]"' in ended.stderr
