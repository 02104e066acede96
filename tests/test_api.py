"""The public names of the package: all there, and none hidden by a folder of the same name."""

import importlib
import pkgutil
from types import ModuleType

import pytest

import optin_cli


@pytest.mark.parametrize("name", [name for name in optin_cli.__all__ if name != "__version__"])
def test_a_public_name_is_no_module_whatever_was_imported(name):
    for module in pkgutil.iter_modules(optin_cli.__path__, "optin_cli."):
        if module.name != "optin_cli.__main__":
            importlib.import_module(module.name)
    found = getattr(optin_cli, name)
    assert not isinstance(found, ModuleType)
    assert found.__name__ == name


def test_unknown_names_are_no_attributes():
    with pytest.raises(AttributeError, match="no attribute 'retrain'"):
        optin_cli.retrain  # noqa: B018
