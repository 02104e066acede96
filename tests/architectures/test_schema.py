"""Architecture files that are invalid or unreadable are refused with every problem."""

import json

import pytest
from helpers.descriptions import described, put

from optin_cli.architectures.registry import parse_architecture
from optin_cli.errors import ArchitectureError


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda _raw, head, _neuron: put(head, "blok", 1), ["stacks.0.groups.0.blok", "Extra inputs"]),
        (lambda _raw, _head, neuron: put(neuron, "kind", "nerve"), ["stacks.0.groups.1.kind"]),
        (lambda raw, _head, _neuron: put(raw, "stacks_of", "bert"), ["either stacks or stacks_of"]),
        (
            lambda _raw, head, _neuron: put(head["slices"][0], "axis", -1),
            ["slices.0.axis", "greater than or equal to 0"],
        ),
        (lambda _raw, head, _neuron: put(head["slices"][0], "parts", 0), ["slices.0.parts"]),
        (
            lambda raw, head, _neuron: (put(raw, "extra", 1), put(head, "kind", "hed"), head.pop("consumer")),
            ["extra", "groups.0.kind", "groups.0.consumer"],
        ),
    ],
)
def test_invalid_descriptions_are_refused_with_all_problems(tmp_path, change, named):
    with pytest.raises(ArchitectureError) as caught:
        described(tmp_path, change)
    assert all(name in caught.value.message for name in [*named, "mine.json"])


def test_unreadable_descriptions(tmp_path):
    with pytest.raises(ArchitectureError, match="cannot be read"):
        parse_architecture(tmp_path / "none.json")
    path = tmp_path / "mine.json"
    path.write_text("{")
    with pytest.raises(ArchitectureError, match="not a valid architecture"):
        parse_architecture(path)
    path.write_text(json.dumps({"family": "x", "library": "transformers", "model_types": ["x"], "stacks_of": "brt"}))
    with pytest.raises(ArchitectureError, match="not described") as caught:
        parse_architecture(path)
    assert "Did you mean bert" in caught.value.hint
