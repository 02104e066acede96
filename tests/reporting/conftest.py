"""A working directory with the artifacts of one run."""

import shutil

import pytest


@pytest.fixture
def work(here, made):
    """The session's artifacts, in a folder of this test's own."""
    for path in (made.scores, made.mask, made.evaluation):
        shutil.copyfile(path, here / path.name)
    shutil.copytree(made.pruned, here / made.pruned.name)
    return here
