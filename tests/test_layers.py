"""The import graph: which module may import which, and what importing the package costs."""

import ast
import graphlib
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src/usagekeeper"

# A module imports what stands before it: in the layers above its line, or left of it in its own.
# A package with a base stands where its base does; `usagekeeper` are the public names.
LAYERS = """
    errors values printable
    exchange proxies rates quotas unrolled limits
    routes records sources bearer identity meters decisions ticket usage
    policies engine stats
    counters.base stores.base directory.base journal recorder
    counters.* stores.* directory.* billing.* agents jwks jwt
    models config api dashboard keeper usagekeeper
    discovery websocket asgi wsgi inspection doctor commands cli __main__ testing
    openapi starlette fastapi flask demo
"""
ENTRIES = [(layer, e) for layer, line in enumerate(LAYERS.split("\n")[1:]) for e in line.split()]
PLACES = {entry: (layer, column) for column, (layer, entry) in enumerate(ENTRIES)}
FACADE = "usagekeeper"  # its names are lazy: what it imports is told by what it loads

FRAMEWORKS = {"starlette", "fastapi", "flask", "werkzeug"}
FAMILIES = {"bson": "pymongo", "cryptography": "jwt", "psycopg_pool": "psycopg"}  # two names of one client


def place(module: str) -> tuple[int, int]:
    name = module.removeprefix("usagekeeper.")
    package = name.rpartition(".")[0]
    for entry in (name, f"{name}.base", f"{name}.*", f"{package}.*", package):
        if entry in PLACES:
            return PLACES[entry]
    why = f"{name} stands in no layer yet: add it to LAYERS in tests/{Path(__file__).name}."
    pytest.fail(why, pytrace=False)


def statements(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Imports that run sooner or later, in functions too; those under TYPE_CHECKING never do."""
    children = ast.iter_child_nodes(tree)
    if isinstance(tree, ast.If) and ast.unparse(tree.test).split(".")[-1] == "TYPE_CHECKING":
        children = iter(tree.orelse)
    for node in children:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        yield from statements(node)


def imports(path: Path) -> set[str]:
    """Full names of the modules that the file imports."""
    package = ".".join(path.relative_to(PACKAGE.parent).parts[:-1])
    found = set()
    for node in statements(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        else:
            source = resolve_name("." * node.level + (node.module or ""), package)
            names = {f"{source}.{alias.name}" for alias in node.names}
            found |= {name if name in FILES else source for name in names}
    return found


def ours(module: str) -> set[str]:
    return {name for name in IMPORTS[module] if name.partition(".")[0] == "usagekeeper"}


def foreign(module: str) -> set[str]:
    tops = {name.partition(".")[0] for name in IMPORTS[module]}
    return tops - sys.stdlib_module_names - {"usagekeeper"}


FILES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
IMPORTS = {module: imports(path) for module, path in FILES.items()}
MODULES = [module for module in FILES if module != FACADE]


def test_a_module_imports_only_what_stands_before_it() -> None:
    wrong = [
        f"{module} imports {target}" for module in MODULES for target in ours(module) if place(target) > place(module)
    ]
    assert not wrong, ", ".join(wrong)


def test_no_modules_import_each_other() -> None:
    graphlib.TopologicalSorter({module: ours(module) for module in MODULES}).prepare()


def test_decisions_are_made_with_the_standard_library_and_msgspec_alone() -> None:
    below_clients = [module for module in MODULES if place(module) < PLACES["counters.*"]]
    assert {m: f for m in below_clients if (f := foreign(m) - {"msgspec"})} == {}


def test_a_third_party_stays_where_it_is_spoken_to() -> None:
    for module in MODULES:
        room = module.split(".")[1]
        guests = foreign(module)
        if place(module)[0] == PLACES["counters.*"][0]:
            clients = {FAMILIES.get(guest, guest) for guest in guests - {"msgspec"}}
            assert len(clients) <= 1, f"{module} speaks to {clients}"
        if room not in {"starlette", "fastapi", "flask", "demo"}:
            assert not guests & FRAMEWORKS, f"{module} imports a framework"
        if room not in {"models", "config", "api"}:
            assert "pydantic" not in guests, f"{module} imports pydantic"


def test_importing_the_package_loads_little_and_nothing_third_party() -> None:
    script = (
        "import sys; bare = set(sys.modules); import usagekeeper\n"
        "for name in sys.modules.keys() - bare:"
        " print(name, getattr(sys.modules[name], '__file__', None))"
    )
    command = [sys.executable, "-c", script]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    loaded = dict(line.split(maxsplit=1) for line in lines)
    installed = tuple({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    foreigners = {name for name, file in loaded.items() if file.startswith(installed)}
    assert {name for name in foreigners if name.partition(".")[0] != "usagekeeper"} == set()
    assert len(loaded) < 100
