"""Copy an archive of torch.export, keeping only what cannot run code.

Loading one evaluates text: sizes go through sympy, guards and names into Python source that is executed, operators are
looked up by their dotted names, and pickles are read. So each part is checked here and written anew, and torch reads
the copy alone: another reader may take another of two members of one name.
"""

import ast
import io
import json
import pickle
import re
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from optin_cli.errors import headline
from optin_cli.exporting.registry import ExportError
from optin_cli.files import parse_json

MEMBER = re.compile(
    r"""[^/]+/(data/(weights/(weight_\d+|\w+_config\.json)|constants/(tensor_\d+|\w+_config\.json)|sample_inputs/\w+\.pt)
    |models/\w+\.json|archive_format|archive_version|byteorder|\.data/\w+)""",
    re.VERBOSE,
)
"""Members of an archive that holds a graph, raw tensors and example inputs: no pickled objects, no compiled code."""
WORD = re.compile(r"[A-Za-z_]\w*", re.ASCII)
SYMBOL = re.compile(r"[suz]f?\d+", re.ASCII)
"""A size that is not known before inputs come."""
PLAIN = re.compile(r"[\w.:+-]*", re.ASCII)
"""Text that is neither an expression nor a path."""
OPERATOR = re.compile(
    r"""_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|neg|pos|eq|ne|lt|le|gt|ge|and_|or_|not_)
    |math\.(ceil|floor|trunc)|torch\.sym_(int|float|not|max|min|ite|sum)
    |torch\.ops\.aten\.(?P<name>\w+)\.(?P<overload>\w+)""",
    re.VERBOSE | re.ASCII,
)
"""Arithmetic of sizes, and torch's own operators."""
TAKE_TEXT = frozenset(
    {
        *("_assert_async", "_assert_scalar", "_convolution_mode", "conv1d", "conv2d", "conv3d", "div"),
        *("einsum", "gelu", "index_reduce", "meshgrid", "pad", "scatter_reduce", "searchsorted"),
    }
)
"""Operators whose text arguments name a mode; those of others may name a file."""
FUNCTIONS = frozenset(
    {
        *("Symbol", "Integer", "Rational", "Float", "Add", "Mul", "Max", "Min", "Mod", "PythonMod"),
        *("FloorDiv", "CeilDiv", "CleanDiv", "CeilToInt", "FloorToInt", "IntTrueDiv", "ToFloat", "Eq", "Ne"),
        *("Lt", "Le", "Gt", "Ge", "Equality", "Unequality", "StrictLessThan", "LessThan"),
        *("StrictGreaterThan", "GreaterThan", "And", "Or", "Not", "Where", "Identity", "Pow"),
    }
)
"""Functions that the expressions of sizes may call."""
POWER, MOST_POWER = "Pow", 8
"""The function of powers, and the largest exponent."""
CONSTANTS = frozenset({"True", "False", "true", "false", "oo", "int_oo"})
METHODS = frozenset({"size", "stride", "storage_offset", "dim"})
"""Methods of an input that a guard may call."""
SYNTAX = (
    *(ast.Expression, ast.Call, ast.keyword, ast.Name, ast.Load, ast.Constant, ast.Subscript, ast.Attribute),
    *(ast.BinOp, ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Div, ast.Mod, ast.UnaryOp, ast.USub, ast.Not),
    *(ast.Compare, ast.Eq, ast.NotEq, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.BoolOp, ast.And, ast.Or),
)
"""Parts of speech of expressions: arithmetic and comparison. Of `**`, results would have no bound."""
MALFORMED = (zipfile.BadZipFile, OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, EOFError)
"""What reading a damaged archive raises."""
MOST_LETTERS = 2000
"""No expression of a size or guard is longer."""
CONTAINERS = frozenset({"builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict", None})
"""What inputs and outputs may lie in."""


def vet(path: Path, copy: Path) -> None:
    """Write to `copy` what an archive holds, checked (ExportError: it is none, or loading it could run code)."""
    try:
        with zipfile.ZipFile(path) as archive, zipfile.ZipFile(copy, "w") as checked:
            _require_plain(archive, path)
            for member in archive.infolist():
                checked.writestr(member.filename, _part(member.filename, archive.read(member), path))
    except MALFORMED as error:
        raise ExportError(f"{path} is not a file of torch.export: {headline(error)}") from error


def _refused(path: Path, found: str) -> ExportError:
    return ExportError(
        f"{path} holds more than a graph and tensors, so it is refused: loading it could run code ({found:.120}).",
        hint="Export the checkpoint that it was made from again, with optin export.",
    )


def _require_plain(archive: zipfile.ZipFile, path: Path) -> None:
    """Refuse members of other names, of the same name twice, or packed, whose size nothing bounds."""
    members = archive.infolist()
    names = [member.filename for member in members]
    if strange := [name for name in names if not MEMBER.fullmatch(name)]:
        raise _refused(path, strange[0])
    if len({name.casefold() for name in names}) < len(names):
        raise _refused(path, "two members of one name")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise _refused(path, "packed members")
    if sum(member.file_size for member in members) > path.stat().st_size:
        raise _refused(path, "members that overlap")


def _part(name: str, content: bytes, path: Path) -> bytes:
    """A member as the copy holds it."""
    if name.endswith(".pt"):
        return _saved_again(content, path)
    if not name.endswith(".json"):
        return content
    raw = parse_json(content)
    if "/models/" in name:
        _check_graph(raw, path)
    elif any(how["use_pickle"] for how in raw["config"].values()):
        raise _refused(path, "a pickled tensor")
    elif strange := [text for key, text in _texts(raw) if not PLAIN.fullmatch(text) or not PLAIN.fullmatch(key)]:
        raise _refused(path, strange[0])
    return json.dumps(raw).encode()


def _saved_again(content: bytes, path: Path) -> bytes:
    try:
        inputs = torch.load(io.BytesIO(content), weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refused(path, "example inputs that are not tensors") from error
    saved = io.BytesIO()
    torch.save(inputs, saved)
    return saved.getvalue()


def _texts(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a document, with the key that it lies under; keys themselves lie under "key"."""
    if isinstance(node, str):
        yield key, node
    elif isinstance(node, Mapping):
        for inner, value in node.items():
            yield "key", inner
            yield from _texts(value, inner)
    elif isinstance(node, list):
        for value in node:
            yield from _texts(value, key)


def _check_graph(raw: Any, path: Path) -> None:
    """Drop what describes where nodes came from, and refuse text that is no name, operator, size or guard."""
    _drop_origins(raw)
    for key, text in _texts(raw):
        if not CHECKS.get(key, PLAIN.fullmatch)(text):
            raise _refused(path, text)


def _drop_origins(node: Any) -> None:
    if isinstance(node, dict):
        if "metadata" in node:
            node["metadata"] = {}
        for value in node.values():
            _drop_origins(value)
    elif isinstance(node, list):
        for value in node:
            _drop_origins(value)


def _is_operator(text: str) -> bool:
    found = OPERATOR.fullmatch(text)
    if found is None or found["name"] is None:
        return found is not None
    operator = getattr(getattr(torch.ops.aten, found["name"], None), found["overload"], None)
    if not isinstance(operator, torch._ops.OpOverload):
        return False
    kinds = [str(argument.type) for argument in operator._schema.arguments]
    return found["name"] in TAKE_TEXT or not any("str" in kind or kind == "t" for kind in kinds)


def _is_container(text: str) -> bool:
    """Whether text says how inputs or outputs lie in tuples, lists and dictionaries of names."""
    _, spec = parse_json(text)
    waiting = [spec]
    while waiting:
        node = waiting.pop()
        context = parse_json(node["context"] or "null")
        names = [] if context is None else context
        if node["type"] not in CONTAINERS or not all(isinstance(name, str) and WORD.fullmatch(name) for name in names):
            return False
        waiting += node["children_spec"]
    return True


def _is_size(text: str) -> bool:
    """Whether text is the expression of a size: numbers, symbols and arithmetic."""
    return _is_expression(text, FUNCTIONS, ())


def _is_guard(text: str) -> bool:
    """Whether text compares sizes of the inputs, L['name'].size()[0]."""
    return _is_expression(text, frozenset({"L", "min", "max"}), METHODS)


def _is_expression(text: str, names: Collection[str], methods: Collection[str]) -> bool:
    if len(text) > MOST_LETTERS or not text.isascii() or not text.isprintable() or "#" in text:
        return False
    try:
        nodes = [*ast.walk(ast.parse(text, mode="eval"))]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return all(_is_allowed(node, names, methods) for node in nodes)


def _is_allowed(node: ast.AST, names: Collection[str], methods: Collection[str]) -> bool:
    match node:
        case ast.Name():
            return node.id in names or node.id in CONSTANTS or SYMBOL.fullmatch(node.id) is not None
        case ast.Attribute():
            return node.attr in methods
        case ast.keyword():
            return node.arg is not None and WORD.fullmatch(node.arg) is not None
        case ast.Call():
            return isinstance(node.func, ast.Attribute) or _is_known_call(node)
        case ast.Constant():
            return _is_constant(node.value)
    return isinstance(node, SYNTAX)


def _is_known_call(node: ast.Call) -> bool:
    """Whether a call is of a name; a power only of what holds none, to a small whole number, so that none explodes."""
    if not isinstance(node.func, ast.Name) or node.func.id != POWER:
        return isinstance(node.func, ast.Name)
    base, exponent = node.args
    small = ast.unparse(exponent) in {f"Integer({number})" for number in range(-MOST_POWER, MOST_POWER + 1)}
    return small and not any(isinstance(inner, ast.Name) and inner.id == POWER for inner in ast.walk(base))


def _is_constant(value: object) -> bool:
    if isinstance(value, str):
        return WORD.fullmatch(value) is not None
    return isinstance(value, (bool, float)) or (isinstance(value, int) and abs(value) < 1 << 63)


CHECKS: dict[str, Callable[[str], object]] = {
    "expr_str": _is_size,
    "guards_code": _is_guard,
    "target": _is_operator,
    "in_spec": _is_container,
    "out_spec": _is_container,
    "name": WORD.fullmatch,
    "as_name": WORD.fullmatch,
    "forward_arg_names": WORD.fullmatch,
    "key": WORD.fullmatch,
    "as_operator": _is_operator,
    "as_string": str.isprintable,
    "as_strings": str.isprintable,
}
"""What text must be, by the key that it lies under; other text must be plain."""
