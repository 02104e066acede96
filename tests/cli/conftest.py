"""A working directory for commands."""

import shutil

import pytest
from helpers.desk import Desk


@pytest.fixture
def work(here, made):
    """A working directory with the checkpoint and the data, under their own names."""
    shutil.copytree(made.bert, here / "bert")
    for path in (made.train, made.texts):
        shutil.copyfile(path, here / path.name)
    return here


@pytest.fixture
def desk(here, made):
    return Desk(here, made)
