"""Shipped architecture descriptions: each one is tested, and an unknown model type suggests the nearest."""

import pytest
from helpers.models import (
    DECODERS,
    FAMILIES,
    IMAGES,
    build,
)

from optin_cli.architectures.registry import find_architecture, known_architectures
from optin_cli.errors import ArchitectureError


def test_every_shipped_description_is_tested():
    images = [(library, kind) for library, kind, _ in IMAGES.values()]
    mine = {model_type for model_type, _ in (FAMILIES | DECODERS).values()} | {
        k for name, k in images if name == "transformers"
    }
    assert set(known_architectures()) == mine
    built = {type(build(family)).__name__ for family, (library, _, _) in IMAGES.items() if library == "timm"}
    assert set(known_architectures("timm")) == built


def test_unknown_model_type_suggests_the_nearest():
    with pytest.raises(ArchitectureError, match="'brt'") as caught:
        find_architecture("brt")
    assert "Did you mean bert" in caught.value.hint
    assert "--architecture" in caught.value.hint
