"""A checkpoint and a data source in; samples of what its model takes, and batches of them, out."""

from __future__ import annotations

from collections.abc import Callable

Tell = Callable[[float, float, str], None]


Note = Callable[[str], None]


Progress = Callable[[float, float, str], None]
"""What long work tells its caller: done, total (in weighted steps), and what it is doing."""
