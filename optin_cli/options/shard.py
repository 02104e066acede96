"""Which share of a run one of several runs does."""

from __future__ import annotations

import re
from dataclasses import dataclass

from optin_cli.errors import UsageError

WRITTEN = re.compile(r"([1-9]\d{0,3})/([1-9]\d{0,3})", re.ASCII)


@dataclass(frozen=True)
class Shard:
    """Number `number` of `count`, counted from 1."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read "2/8" (UsageError if it is something else)."""
        found = WRITTEN.fullmatch(text)
        if found is None or int(found[1]) > int(found[2]):
            raise UsageError(f"--shard is {text!r}; expected I/N with I from 1 to N, such as 2/8.")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def of(self, parts: int) -> range:
        """Which of so many parts it has: consecutive ones, none where there are too few."""
        return range((self.number - 1) * parts // self.count, self.number * parts // self.count)
