"""Options of trimming a vocabulary."""

from dataclasses import dataclass
from pathlib import Path

from optin_cli.options.common import SEED
from optin_cli.options.declare import DATA, Checked, option, shared


@dataclass(frozen=True)
class TrimOptions(Checked):
    """Which tokens stay beside special ones, those of the texts, and ASCII.

    keep_tokens: a file of texts, one a line, whose tokens stay. keep_script: scripts, as Unicode names them, of which
    all tokens stay. samples: most texts of the data to read, None for all. trials: random texts of the kept words or
    letters that must tokenize as before.
    """

    keep_tokens: Path | None = option(
        None, "--keep-tokens", "File of words or texts, one a line, whose tokens stay too.", metavar="FILE"
    )
    keep_script: tuple[str, ...] = option(
        (),
        "--keep-script",
        "Script of which all tokens stay: latin, greek, …; repeatable.",
        metavar="NAME",
        repeated=True,
    )
    samples: int | None = option(None, "--samples", "Most texts to read.", low=1, panel=DATA, unset="all")
    trials: int = option(10_000, "--trials", "Random texts that must tokenize as before.", low=1)
    seed: int = shared(0, SEED)
