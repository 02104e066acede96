"""Which package may import which: the floors of the house, ground floor first, and no import that leads back up."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import optin_cli

PACKAGE = Path(optin_cli.__file__).parent
FLOORS = (
    {"errors", "progress", "version"},
    {"architectures", "files", "options", "processes", "tasks"},
    {"artifacts"},
    {"data"},
    {"model", "searching"},
    {"checkpoints"},
    {"refit"},
    {"diffing", "exporting", "profiling", "pruning", "reporting", "scoring", "trimming"},
    {"evaluation", "recipes"},
    {"sweeping", "cli", "__init__", "__main__"},
)
FLOOR_OF = {name: number for number, floor in enumerate(FLOORS) for name in floor}
ABOVE_ITS_PEERS = {"cli": {"sweeping"}, "__init__": {"sweeping"}, "__main__": {"cli"}}
"""On the top floor, what may import a neighbour."""


def module_of(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


MODULES = {module_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports_of(name):
    """Modules of the package that a module imports, at its top, inside functions or for type checkers."""
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "optin_cli":
            base = node.module.removeprefix("optin_cli").removeprefix(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}".removeprefix(".")
                found = inner if inner in MODULES else base
                yield found if found in MODULES else f"{found}.__init__".removeprefix(".")


def test_every_module_stands_on_a_floor():
    assert {name.partition(".")[0] for name in MODULES} <= FLOOR_OF.keys()


def test_imports_lead_down():
    back = []
    for name in MODULES:
        here = name.partition(".")[0]
        for other in imports_of(name):
            there = other.partition(".")[0]
            allowed = there == here or FLOOR_OF[there] < FLOOR_OF[here] or there in ABOVE_ITS_PEERS.get(here, ())
            back += [] if allowed else [f"{name} imports {other}"]
    assert back == []


def test_no_module_imports_itself_by_way_of_others():
    TopologicalSorter({name: set(imports_of(name)) for name in MODULES}).prepare()


def test_root_holds_what_every_stage_uses_and_folders():
    files = {path.name for path in PACKAGE.glob("*.py")}
    assert files == {"__init__.py", "__main__.py", "errors.py", "files.py", "progress.py", "version.py"}


def test_packages_import_nothing_by_themselves():
    for name, path in MODULES.items():
        if name.endswith(".__init__"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            assert [type(node).__name__ for node in tree.body] == ["Expr"], name


def test_public_names_are_not_those_of_packages():
    """Importing a subpackage sets it as an attribute of the package, in place of a function of that name."""
    assert not [name for name in optin_cli._API if (PACKAGE / name).exists() or (PACKAGE / f"{name}.py").exists()]


def test_public_names_are_what_the_table_says():
    for name, module in optin_cli._API.items():
        found = getattr(optin_cli, name)
        assert callable(found) and (found.__name__, found.__module__) == (name, f"optin_cli.{module}")
