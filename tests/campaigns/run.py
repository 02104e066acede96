"""The large campaign: thousands of damaged files, hundreds of interruptions.

    python tests/campaigns/run.py --mutations 10000 --kills 500 --seed 1

Prints a line a fault (what to run, and what is wrong), one of progress every hundred tries, and ends with
`N mutations, M kills, K faults`; the exit status is 1 if there are any. The suite runs a few of both
(`test_mutations.py`, `test_kills.py`). Tries are numbered: the same seed and number is the same try, and
`--first-mutation` and `--first-kill` go on where an earlier run ended. Damaged files of faults are kept in --work.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]
os.environ |= {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
    "PYTHONPATH": os.pathsep.join(filter(None, (str(TESTS.parent), os.environ.get("PYTHONPATH")))),
}

from campaigns import kills, mutations, reload_socket, warm  # noqa: E402
from helpers import pipeline  # noqa: E402
from helpers.running import tree  # noqa: E402


def arguments(given):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutations", type=int, default=1000)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first-mutation", type=int, default=0)
    parser.add_argument("--first-kill", type=int, default=0)
    parser.add_argument("--only", default="", help="comma-separated names of files to damage, or of stages to stop")
    parser.add_argument("--made", type=Path, help="folder with the artifacts of the pipeline, to be made if left out")
    parser.add_argument("--work", type=Path, help="folder for what is tried; a temporary one if left out")
    return parser.parse_args(given)


def make(parent, made, root, *, more):
    """Copy or make the artifacts; more: also those that only damaged files need."""
    run = lambda *args: parent.learn(*args, cwd=root)  # noqa: E731
    if made is None:
        root.mkdir(parents=True)
        pipeline.make(root, run)
    else:
        shutil.copytree(made, root)
    if more:
        mutations.make_more(root, run)


class Tally:
    """Prints faults and progress, and counts."""

    def __init__(self):
        self.faults, self.begin = 0, time.monotonic()

    def fault(self, what, why):
        self.faults += 1
        print(f"FAULT {what}: {why}", flush=True)

    def progress(self, what, done, whole):
        if done % 100 == 0:
            print(f"{what}: {done} of {whole}, {time.monotonic() - self.begin:.0f} s", flush=True)


def damage(parent, options, root, tally):
    """Try damaged files; how many."""
    names = [name for name in mutations.COMMANDS if not options.only or name in options.only.split(",")]
    for number in range(options.first_mutation, options.first_mutation + options.mutations) if names else ():
        name = names[number % len(names)]
        args = mutations.damaged(root, options.work / "desk", options.seed, name, number)
        before = tree(options.work / "desk")
        outcome = parent.run(*args, cwd=options.work / "desk")
        why = outcome.problem or mutations.fault(outcome, before, options.work / "desk")
        if why is not None:
            tally.fault(f"seed {options.seed}, mutation {number} of {name}, optin {' '.join(args)}", why)
            kept = options.work / "kept" / f"{number}-{name.replace('/', '-')}"
            kept.parent.mkdir(exist_ok=True)
            kept.write_bytes(before[name])
        tally.progress("mutations", number + 1 - options.first_mutation, options.mutations)
    return options.mutations if names else 0


def stop(parent, options, root, tally):
    """Try interruptions; how many."""
    wanted = [name for name in kills.STAGES if not options.only or name in options.only.split(",")]
    numbers = [
        n for n in range(options.first_kill, options.first_kill + options.kills) if kills.picked(0, n)[0] in wanted
    ]
    benches = {}
    for done, number in enumerate(numbers, 1):
        name, draw = kills.picked(options.seed, number)
        if name not in benches:
            benches[name] = kills.prepare(parent, root, options.work / "stages" / name, name)
        how, outcome, tidy = kills.disturb(
            parent, benches[name], options.work / "case", draw, number // len(kills.STAGES)
        )
        for why in kills.faults(parent, benches[name], options.work / "case", outcome, tidy=tidy):
            tally.fault(f"seed {options.seed}, kill {number} of {name}, {how}", why)
        tally.progress("kills", done, len(numbers))
    return len(numbers)


def main(given=None):
    options, tally = arguments(given), Tally()
    with tempfile.TemporaryDirectory(prefix="optin-campaign-") as scratch:
        options.work = (options.work or Path(scratch) / "work").resolve()
        options.work.mkdir(parents=True, exist_ok=True)
        with reload_socket.serving(Path(scratch) / "socket"):
            parent = warm.Warm(Path(scratch) / "socket", Path(scratch) / "tmp")
            root = options.work / "made"
            shutil.rmtree(root, ignore_errors=True)
            make(parent, options.made, root, more=options.mutations > 0)
            tried = damage(parent, options, root, tally), stop(parent, options, root, tally)
    print(f"{tried[0]} mutations, {tried[1]} kills, {tally.faults} faults")
    return 1 if tally.faults else 0


if __name__ == "__main__":
    sys.exit(main())
