"""How far a sweep and a shrink are: one share of the whole, which never falls from step to step."""

from dataclasses import dataclass, field

from optin_cli.options.evaluation import EvalOptions
from optin_cli.options.scoring import ScoreOptions
from optin_cli.options.shrink import ShrinkOptions
from optin_cli.options.sweep import SweepOptions
from optin_cli.progress import Silent, Steps
from optin_cli.sweeping.shrink import shrink
from optin_cli.sweeping.sweep import sweep

SCORING = ScoreOptions(samples=16, batch_size=8, probes=1)
EVALUATION = EvalOptions(batch_size=8, latency_runs=0)


@dataclass
class Shares(Silent):
    """Keeps what is reported."""

    seen: list[tuple[float, str]] = field(default_factory=list)

    def update(self, done, total, what):
        """Keep it."""
        self.seen.append((done / total, what))


def assert_rising(found):
    """From the beginning to the end, with a label on every step."""
    shares = [share for share, _ in found.seen]
    assert shares == sorted(shares) and 0 <= shares[0] < 0.1 and 0.8 < shares[-1] <= 1


def test_steps_are_shares_of_the_whole():
    found = Shares()
    steps = Steps(found, 4)
    with steps.begin(1, "one: "):
        steps.update(1, 2, "half")
    with steps.begin(3, "two: "):
        inner = Steps(steps, 2)
        with inner.begin(1, "inner: "):
            inner.update(1, 1, "all")
    with steps.begin(1, "more: "):
        steps.update(1, 1, "than was said")
    assert found.seen == [(0.125, "one: half"), (0.625, "two: inner: all"), (1.0, "more: than was said")]


def test_a_sweep_says_how_far_the_whole_is(made, tmp_path):
    found = Shares()
    options = SweepOptions(scoring=SCORING, evaluation=EVALUATION, max_drop=1.0, evaluations=2)
    sweep(made.bert, "sst2", made.train, tmp_path / "out", options, data=made.train, progress=found)
    assert_rising(found)
    labels = {what.partition(": ")[0] for _, what in found.seen}
    assert "original" in labels and "optin" in labels and any(name.startswith("optin at 0") for name in labels)


def test_a_shrink_says_how_far_the_whole_is(made, tmp_path):
    found = Shares()
    options = ShrinkOptions(keep_flops=0.7, scoring=SCORING, evaluation=EVALUATION)
    shrink(made.bert, made.train, tmp_path / "out", options, task="sst2", data=made.train, progress=found)
    assert_rising(found)
    assert {what.partition(": ")[0] for _, what in found.seen} >= {"score", "prune", "eval"}
