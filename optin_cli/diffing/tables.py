"""Tables of the values in which two records differ.

A section maps row names (a group, an option, a tensor) to rows and holds only rows that differ; a row maps columns
to values.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import JsonValue

from optin_cli.artifacts.base import Artifact, Source
from optin_cli.artifacts.scores import Scores

T = TypeVar("T", bound=Artifact | Scores)
Row = dict[str, JsonValue]
Section = dict[str, Row]
HEAD = ("optin_version", "options", "inputs", "schema_", "took")


@dataclass(frozen=True)
class Side:
    """One side of a comparison: kind, name and hash, path, and content (None for a checkpoint)."""

    kind: str
    source: Source
    path: Path
    content: Artifact | Scores | None


@dataclass(frozen=True)
class Difference:
    """Everything in which two artifacts differ.

    summary: a few facts about both. sections: by title, the rows that differ. timings: values that differ between any
    two runs and therefore do not count as differences.
    """

    kind: str
    a: Source
    b: Source
    summary: Row
    sections: Mapping[str, Section]
    timings: Section = field(default_factory=dict)

    @property
    def same(self) -> bool:
        """Whether nothing but timings differs."""
        return not any(self.sections.values())

    def as_json(self) -> dict[str, Any]:
        """The whole comparison as JSON values."""
        return {
            "kind": self.kind,
            "a": self.a.model_dump(),
            "b": self.b.model_dump(),
            "same": self.same,
            "summary": self.summary,
            "sections": self.sections,
            "timings": self.timings,
        }


def contents(kind: type[T], a: Side, b: Side) -> tuple[T, T]:
    """The contents of two sides, which `diff` opened as of that kind."""
    if not (isinstance(a.content, kind) and isinstance(b.content, kind)):
        raise TypeError(f"{a.kind} and {b.kind} are not both {kind.__name__}")
    return a.content, b.content


def difference(
    a: Side, b: Side, summary: Row, sections: Mapping[str, Section], timings: Section | None = None
) -> Difference:
    """Build a Difference, leaving out empty sections."""
    return Difference(a.kind, a.source, b.source, summary, {t: s for t, s in sections.items() if s}, timings or {})


def flatten(value: Mapping[str, Any], whole: tuple[str, ...] = ()) -> dict[str, JsonValue]:
    """Join nested keys by dots; lists, and values of the keys in `whole`, stay as they are."""
    found: dict[str, JsonValue] = {}
    for key, inner in value.items():
        if isinstance(inner, Mapping) and inner and key not in whole:
            found |= {f"{key}.{deeper}": leaf for deeper, leaf in flatten(inner, whole).items()}
        else:
            found[str(key)] = inner
    return found


def diff_values(a: Mapping[str, JsonValue], b: Mapping[str, JsonValue]) -> Section:
    """Rows for the keys whose values differ, with difference and ratio for numbers; a missing key is None."""
    rows: Section = {}
    for key in dict.fromkeys([*a, *b]):
        mine, theirs = a.get(key), b.get(key)
        if json.dumps(mine, sort_keys=True) == json.dumps(theirs, sort_keys=True):
            continue
        row: Row = {"a": mine, "b": theirs}
        if is_number(mine) and is_number(theirs):
            row |= {"b - a": theirs - mine, "b / a": theirs / mine if mine else None}  # type: ignore[operator]
        rows[key] = row
    return rows


def is_number(value: object) -> bool:
    """Whether a value is an int or a float, but not a bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def diff_heads(a: Artifact, b: Artifact) -> dict[str, Section]:
    """Compare options, inputs and versions."""
    sources = ({role: _shown(source) for role, source in side.inputs.items()} for side in (a, b))
    return {
        "options": diff_values(flatten(a.options), flatten(b.options)),
        "inputs": diff_values(*sources),
        "versions": diff_values({"optin": a.optin_version}, {"optin": b.optin_version}),
    }


def _shown(source: Source) -> str:
    return f"{source.name} (sha256 {source.sha256[:12]})"


def diff_bodies(a: Artifact, b: Artifact, *less: str) -> Section:
    """Compare the fields of two artifacts without their heads and without the fields named in `less`."""
    raws = (artifact.model_dump(mode="json", by_alias=True, exclude={*HEAD, *less}) for artifact in (a, b))
    return diff_values(*map(flatten, raws))
