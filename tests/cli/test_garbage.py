"""Searches for garbage are rare while libraries are imported, and as Python has them afterwards."""

import gc

from optin_cli.cli import garbage


def test_searches_are_rare_until_they_are_usual_again():
    gc.unfreeze()  # what commands of other tests froze
    garbage.search_usually()
    assert gc.get_threshold() == garbage.USUAL and gc.get_freeze_count() == 0
    garbage.search_rarely()
    try:
        assert gc.get_threshold() == garbage.RARELY != garbage.USUAL
        garbage.search_usually()
        assert gc.get_threshold() == garbage.USUAL and gc.get_freeze_count() > 0
    finally:
        gc.set_threshold(*garbage.USUAL)
        gc.unfreeze()
