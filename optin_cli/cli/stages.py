"""What a stage says when it ends: what it made, what it took, and what to do next."""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from optin_cli.cli.consoles import console, say
from optin_cli.cli.escapes import escaped
from optin_cli.errors import Exit
from optin_cli.progress import Progress, Relay

if TYPE_CHECKING:
    import torch
    from rich.table import Table

    from optin_cli.artifacts.base import Took

SUMMARY = "GITHUB_STEP_SUMMARY"
"""Variable that names the file whose Markdown GitHub shows on the page of a run."""


class Stage(Relay):
    """Progress of a stage, passed on; it remembers when it began and what data was read."""

    def __init__(self, whole: Progress) -> None:
        self.whole = whole
        self.begun = time.perf_counter()
        self.data: list[str] = []

    def read(self, data: str) -> None:
        """Remember it, and pass it on."""
        self.data.append(data)
        super().read(data)

    def took(self, device: torch.device) -> Took:
        """What it took until now."""
        import torch

        from optin_cli.artifacts.base import Took
        from optin_cli.profiling.devices import describe_device

        return Took(
            data=tuple(dict.fromkeys(self.data)),
            device=describe_device(device),
            threads=torch.get_num_threads(),
            seconds=round(time.perf_counter() - self.begun, 3),
            peak_bytes=_peak_memory(),
            peak_device_bytes=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        )


def _peak_memory() -> int | None:
    """Most bytes of memory that this process has held; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def finish(
    title: str, made: Iterable[str | Table], took: Took | None = None, then: Iterable[Sequence[object]] = ()
) -> None:
    """Say what a stage made and took and which commands may follow, on stderr and in GitHub's summary of the step.

    then: commands as words, after optin; a last word that begins with # is a remark.
    """
    made, talk = [*made], console(error=True)
    for part in made:
        if isinstance(part, str):
            say(part)
        else:
            talk.print(part)
    lines = [] if took is None else took.lines
    for line in lines:
        say(line)
    lead = "next: "
    for words in then:
        say(f"{lead}optin {_line(words)}")
        lead = " " * len(lead)
    summarise(f"### optin {title}", *made, *lines)


def gate(problem: str | None) -> Exit:
    """The exit status of a quality gate; says why it is not met."""
    if problem is None:
        return Exit.DONE
    say(f"gate not met: {problem}")
    summarise(f"**gate not met:** {problem}")
    return Exit.GATE


def _line(words: Sequence[object]) -> str:
    *most, last = map(str, words)
    return shlex.join([*most, last]) if not last.startswith("#") else f"{shlex.join(most)}   {last}"


def summarise(*parts: str | Table) -> None:
    """Add Markdown to GitHub's summary of the step, if this runs in one."""
    path = os.environ.get(SUMMARY)
    if not path:
        return
    blocks = [escaped(_block(part)) for part in parts]
    try:
        with Path(path).open("a", encoding="utf-8", errors="replace") as file:
            file.write("\n\n".join(blocks) + "\n\n")
    except OSError as error:
        say(f"warning: {SUMMARY} names {path}, which cannot be written: {error.strerror}.")


def _block(part: str | Table) -> str:
    if isinstance(part, str):
        return f"```\n{part}\n```" if "\n" in part else part
    return _markdown(part)


def _markdown(table: Table) -> str:
    """A table as Markdown, its title and caption as lines."""
    headings = [str(column.header) for column in table.columns]
    rules = ["---:" if column.justify == "right" else "---" for column in table.columns]
    rows = [headings, rules, *zip(*([str(cell) for cell in column.cells] for column in table.columns), strict=True)]
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    title = [] if table.title is None else [f"**{table.title}**", ""]
    caption = [] if table.caption is None else ["", str(table.caption)]
    return "\n".join([*title, *lines, *caption])
