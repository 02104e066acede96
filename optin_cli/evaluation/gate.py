"""The gate on a drop of a metric: what the samples say of it, and how sure they are."""

from dataclasses import dataclass
from statistics import NormalDist

from optin_cli.artifacts.evaluation import drop_words
from optin_cli.options.common import MEASURED

USUAL = 0.95
"""Confidence at which samples are said to tell whether a drop is within a limit, where none was asked for."""
MOST_TIMES = 1000.0
"""No more samples than so many times those at hand are named as enough."""


@dataclass(frozen=True)
class Drop:
    """A measured drop. error: paired standard error over `samples`, None if unknown. relative: it is a share."""

    value: float
    error: float | None
    samples: int
    relative: bool

    @property
    def spread(self) -> float | None:
        """The standard error, at least that of one sample of which the answers differ."""
        return 1 / self.samples if self.error == 0 and self.samples and not self.relative else self.error

    @property
    def words(self) -> str:
        """The drop with its error."""
        shown = drop_words(self.value, relative=self.relative)
        return shown if self.error is None else f"{shown} ± {self.shown_error}"

    @property
    def shown_error(self) -> str:
        """The error as it was measured."""
        return "" if self.error is None else f"{self.error:.1%}" if self.relative else f"{self.error:.4f}"


@dataclass(frozen=True)
class Gate:
    """Lets a model pass whose true drop is at most `most`, with a confidence of 0.5 (as measured) or more."""

    most: float
    confidence: float = MEASURED

    def passes(self, drop: Drop) -> bool:
        """Whether the drop is within the limit at the confidence asked for; as measured where no error is known."""
        return drop.value + self._margin(drop, self.confidence) <= self.most

    def certainty(self, drop: Drop) -> float | None:
        """The confidence at which the drop is within the limit; None where its error is unknown or 0."""
        if not drop.spread:
            return None
        return NormalDist().cdf((self.most - drop.value) / drop.spread)

    def words(self, drop: Drop) -> str | None:
        """What the samples say of the limit and, if they leave it open, how many would not; None without an error."""
        certainty = self.certainty(drop)
        if certainty is None:
            return None
        level = self.confidence if self.confidence > MEASURED else USUAL
        found = (
            f"drop {drop.words} (paired standard error), within {self.limit(drop)} at a confidence of {certainty:.2f}"
        )
        if max(certainty, 1 - certainty) >= level:
            return found
        room = abs(self.most - drop.value)
        times = (self._margin(drop, level) / room) ** 2 if room else MOST_TIMES
        enough = (
            "the drop being at the limit itself"
            if times >= MOST_TIMES
            else f"about {_round(times * drop.samples)} would"
        )
        return f"{found}: {drop.samples:,} samples do not tell at {level:g}, {enough}"

    def limit(self, drop: Drop) -> str:
        """The limit as it is measured."""
        return f"{self.most:.4g} (a share)" if drop.relative else f"{self.most:g}"

    def _margin(self, drop: Drop, confidence: float) -> float:
        return 0.0 if confidence == MEASURED else NormalDist().inv_cdf(confidence) * (drop.spread or 0.0)


def _round(count: float) -> str:
    """A number of samples to two figures."""
    return f"{float(f'{count:.2g}'):,.0f}"
