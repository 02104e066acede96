"""When Python looks for garbage: hardly ever while libraries are imported, which leave little and take a fifth longer.

What they made is then left out of later searches, as it stays until the end.
"""

import gc

USUAL = gc.get_threshold()
RARELY = (100_000, 50, 100)
"""Thresholds of its three generations."""


def search_rarely() -> None:
    """Until `search_usually`, which commands reach that hold large tensors."""
    gc.set_threshold(*RARELY)


def search_usually() -> None:
    """From now on, if it was not usual before."""
    if gc.get_threshold() == RARELY:
        gc.collect()
        gc.freeze()
        gc.set_threshold(*USUAL)
