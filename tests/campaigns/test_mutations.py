"""Some damaged files of every kind; `run.py` tries many."""

import os

import pytest
from campaigns.mutations import COMMANDS, damaged, fault
from campaigns.warm import Outcome
from helpers.running import call, tree

EACH = 6


@pytest.mark.parametrize("name", COMMANDS)
def test_damage_is_taken_or_refused_in_plain_words(made, here, name):
    if not (made.root / name).exists():
        pytest.skip("made by the large campaign alone")
    for number in range(EACH):
        args = damaged(made.root, here / "desk", 0, name, number)
        os.chdir(here / "desk")
        before = tree(here / "desk")
        run = call(*args)
        outcome = Outcome(run.code, run.out, run.err, 0.0, 0)
        case = f"{name}, number {number}: optin {' '.join(args)}\n{run.err}"
        assert outcome.problem is None, case
        assert fault(outcome, before, here / "desk") is None, case
