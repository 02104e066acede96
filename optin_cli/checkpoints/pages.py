"""Blocks of a streamed model that open by themselves when they run, so that any forward pass works as in memory."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

from optin_cli.checkpoints.streaming import REST, Streaming


class Pages:
    """The blocks of a streamed model that are open: the one that ran last, and one that is kept open besides."""

    def __init__(self, streaming: Streaming) -> None:
        self._streaming = streaming
        self._open: dict[str, contextlib.ExitStack] = {}
        self._kept: str | None = None

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

    def opening(self, path: str, compute: Callable[..., Any]) -> Callable[..., Any]:
        """The forward of a block that opens it first."""

        @functools.wraps(compute)  # whoever looks at its signature sees that of the block
        def forward(*args: Any, **kwargs: Any) -> Any:
            self.open(path)
            return compute(*args, **kwargs)

        return forward

    def close_all(self) -> None:
        """Give up those of all blocks."""
        for path in list(self._open):
            self.close(path)


@contextlib.contextmanager
def paging(streaming: Streaming) -> Iterator[Pages]:
    """Let the blocks of a streamed model open when they run; all that lies outside of them is open."""
    pages = Pages(streaming)
    with streaming.opened(REST), contextlib.ExitStack() as stack:
        stack.callback(pages.close_all)
        for path in streaming.blocks:
            block = streaming.model.get_submodule(path)
            stack.callback(_restore, block, block.__dict__.get("forward"))
            block.forward = pages.opening(path, block.forward)
        yield pages


def _restore(block: Any, held: Callable[..., Any] | None) -> None:
    """Give a block the forward that it had of its own, or that of its class."""
    del block.forward
    if held is not None:
        block.forward = held
