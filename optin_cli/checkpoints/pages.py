"""Blocks of a streamed model that open by themselves when they run, so that any forward pass works as in memory."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any, Self

from optin_cli.checkpoints.streaming import REST, Streaming


class Pages(contextlib.ExitStack):
    """While it lasts, all outside the blocks is open, and each block from when it runs until another one does.

    One block can be kept open besides.
    """

    def __init__(self, streaming: Streaming) -> None:
        super().__init__()
        self._streaming = streaming
        self._open: dict[str, contextlib.ExitStack] = {}
        self._kept: str | None = None

    def __enter__(self) -> Self:
        self.enter_context(self._streaming.opened(REST))
        self.callback(self._close_all)
        for path in self._streaming.blocks:
            block = self._streaming.model.get_submodule(path)
            held = block.__dict__.get("forward")
            self.callback(_restore, block, held)
            block.forward = self._opening(path, block.forward)
        return self

    def open(self, path: str) -> None:
        """Open a block, and close others than the one that is kept open."""
        if path in self._open:
            return
        for other in [other for other in self._open if other != self._kept]:
            self.close(other)
        self._open[path] = contextlib.ExitStack()
        self._open[path].enter_context(self._streaming.opened(path))

    def keep(self, path: str) -> None:
        """Open a block that stays open until another one is kept; changes to it last until it closes."""
        self.open(path)
        self._kept = path

    def close(self, path: str) -> None:
        """Give up the weights of a block in memory."""
        self._open.pop(path, contextlib.ExitStack()).close()

    def _close_all(self) -> None:
        for path in list(self._open):
            self.close(path)

    def _opening(self, path: str, compute: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(compute)  # whoever looks at its signature sees that of the block
        def forward(*args: Any, **kwargs: Any) -> Any:
            self.open(path)
            return compute(*args, **kwargs)

        return forward


def _restore(block: Any, held: Callable[..., Any] | None) -> None:
    """Give a block the forward that it had of its own, or that of its class."""
    del block.forward
    if held is not None:
        block.forward = held
