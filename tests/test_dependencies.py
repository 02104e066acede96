"""Every import of the package is of a distribution that pyproject.toml declares, and nothing is declared in vain."""

import ast
import importlib.metadata
import re
import sys
from pathlib import Path

import pytest

import optin_cli

tomllib = pytest.importorskip("tomllib")
PACKAGE = Path(optin_cli.__file__).parent
PROJECT = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
IMPORTED_BY_OTHERS = {"sentencepiece"}
"""Extras that tokenizers of transformers import."""
FROM_THE_FOLDER = {"modeling_optin"}
"""Modules that lie in the folders that we write."""
GENERATED = {"gguf": {"gguf"}, "llama_cpp": {"llama-cpp-python"}, "openvino": {"openvino"}, "nncf": {"nncf"}}
KNOWN = GENERATED | {"torchao": {"torchao"}, "lm_eval": {"lm-eval"}, "timm": {"timm"}, "onnx": {"onnx"}}
"""What brings modules that may be missing where the tests run."""


def names_of(requirements):
    return {re.split(r"[<>=!~\[; ]", one, maxsplit=1)[0].lower().replace("_", "-") for one in requirements}


def imported():
    """Top-level modules by the files that import them, those of code in strings aside."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
            for name in names:
                found.setdefault(name.partition(".")[0], set()).add(path.name)
    ours = {"optin_cli", "__future__", *sys.stdlib_module_names, *FROM_THE_FOLDER}
    return {module: files for module, files in found.items() if module not in ours}


BASE = names_of(PROJECT["dependencies"])
EXTRAS = names_of(one for name, extra in PROJECT["optional-dependencies"].items() if name != "test" for one in extra)


def distributions(module, installed=importlib.metadata.packages_distributions()):  # noqa: B008 - slow to find
    return {name.lower().replace("_", "-") for name in installed.get(module, ())} or KNOWN.get(module, {module})


def test_every_import_is_declared():
    lacking = {module: files for module, files in imported().items() if not distributions(module) & (BASE | EXTRAS)}
    assert lacking == {}


def test_nothing_is_declared_in_vain():
    used = set().union(*map(distributions, imported()))
    in_vain = {name for name in BASE if name not in used} - IMPORTED_BY_OTHERS
    assert in_vain == set()


def test_what_a_module_imports_at_its_top_needs_no_extra():
    """Optional packages are imported where they serve, so that the base install alone starts every command."""
    extras, heavy = EXTRAS - BASE, {"datasets"}
    found = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules = {name.partition(".")[0] for name in names} - {"optin_cli", "", *sys.stdlib_module_names}
            found += [(path.name, m) for m in modules if m in heavy or (distributions(m) & extras) - BASE]
    assert found == []
