"""Stages that are stopped at random instants and before random touches of the disk, and what must hold afterwards.

Every output is the old one or the new one, whole; inputs are as they were; and going on ends in the bytes of a run that
nothing disturbed. Files that no one step of the file system can publish together (a result and the card of another
folder, an exported file and its record) may be mixed by kill -9 between two renames, each of them whole.
"""

import json
import os
import random
import shutil
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path

from helpers.running import QUICK, tree

TASK = ("--task", "sst2", "--data", "train.jsonl")
SWEEP = ("sweep", "bert", "--calib", "texts.jsonl", *TASK, "--samples", "16", "--latency-runs", "0")
SECONDS = ("prepare_seconds", "prune_seconds")
"""What a sweep measures, so that no two are equal there."""
GAPS = (None, 0.0005, 0.005, 0.05, 0.3)
"""Seconds between a signal and the next, if there is one."""
WAYS = ("instant", "step", "signal")
TOUCHES = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "os.link", "os.truncate"}


@dataclass(frozen=True)
class Stage:
    """A command, and what it needs.

    old: the command that made the output before, if there was one. out: its outputs. more: how to go on. state: what it
    may leave when it is stopped. pair: its outputs lie apart, so that kill -9 may mix them.
    """

    args: tuple[str, ...]
    needs: tuple[str, ...]
    out: tuple[str, ...]
    old: tuple[str, ...] = ()
    more: tuple[str, ...] = ()
    state: tuple[str, ...] = ()
    pair: bool = False


SCORE = ("score", "bert", "--calib", "texts.jsonl", *QUICK, "-o", "o.safetensors")
SEARCH = ("search", "bert.scores.safetensors", "-o", "o.json", "--keep-flops")
SEARCHES = ("search", "bert.scores.safetensors", "-o", "o", "--keep-flops")
EVAL = ("eval", "bert-pruned", "--latency-runs", "0", "-o", "o.json", "--card")
STAGES = {
    "score": Stage(
        (*SCORE, "--force"),
        ("bert", "texts.jsonl"),
        ("o.safetensors",),
        old=(*SCORE, "--seed", "1"),
        more=("--resume",),
        state=("o.safetensors.partial",),
    ),
    "search": Stage((*SEARCH, "0.6", "--force"), ("bert.scores.safetensors",), ("o.json",), old=(*SEARCH, "0.8")),
    "searches": Stage(
        ("search", "bert.scores.safetensors", "-o", "o", "--keep-flops", "0.6,0.8"),
        ("bert.scores.safetensors",),
        ("o",),
    ),
    "prune": Stage(
        ("prune", "bert", "--mask", "bert.mask.json", "--calib", "texts.jsonl", "-o", "o", "--force"),
        ("bert", "bert.mask.json", "texts.jsonl"),
        ("o",),
        old=("prune", "bert", "--mask", "bert.mask.json", "--no-refit", "-o", "o"),
    ),
    "eval": Stage(
        (*EVAL, *TASK, "--force"),
        ("bert-pruned", "train.jsonl"),
        ("o.json", "bert-pruned/README.md"),
        old=EVAL,
        pair=True,
    ),
    "export": Stage(
        ("export", "bert-pruned", "--to", "onnx", "--force"),
        ("bert-pruned",),
        ("bert-pruned/model.onnx", "bert-pruned/model.onnx.optin.json"),
        old=("export", "bert-pruned", "--to", "onnx", "--opset", "18"),
        pair=True,
    ),
    "report": Stage(
        ("report", "bert-pruned", "-o", "o.html", "--force"),
        ("bert-pruned", "bert.mask.json", "bert.scores.safetensors"),
        ("o.html",),
        old=("report", "bert-pruned", "--mask", "bert.mask.json", "-o", "o.html"),
    ),
    "sweep": Stage(
        (*SWEEP, "--keep-flops", "0.7,0.5", "-o", "o"),
        ("bert", "train.jsonl", "texts.jsonl"),
        ("o/sweep.json", "o/sweep.svg"),
        more=("--resume",),
        state=("o",),
    ),
}


@dataclass
class Bench:
    """A stage that has run undisturbed. base: folder with inputs and old output; old, new: outputs; steps: touches."""

    name: str
    stage: Stage
    base: Path
    old: dict
    new: dict
    seconds: float
    before: dict
    steps: list = field(default_factory=list)


def outputs(folder, stage):
    """What there is of a stage's outputs, by path, less the seconds that it measured."""
    found = {}
    for name in stage.out:
        path = folder / name
        if path.is_dir():
            found |= {f"{name}/{inner}": content for inner, content in tree(path).items()}
        elif path.name == "sweep.json" and path.is_file():
            raw = json.loads(path.read_text())
            for point in raw["points"]:
                for key in SECONDS:
                    point.pop(key)
            found[name] = raw
        elif path.is_file():
            found[name] = path.read_bytes()
    return found


def prepare(warm, made, folder, name):
    """Make the old output, then the new one undisturbed, and count the steps."""
    stage, base, clean = STAGES[name], folder / "base", folder / "clean"
    shutil.rmtree(folder, ignore_errors=True)
    base.mkdir(parents=True)
    for part in stage.needs:
        source = made / part
        if source.is_dir():
            shutil.copytree(source, base / part, ignore=shutil.ignore_patterns("*.onnx*"))
        else:
            shutil.copyfile(source, base / part)
    if stage.old:
        warm.learn(*stage.old, cwd=base)
    shutil.copytree(base, clean)
    outcome, log = warm.learn(*stage.args, cwd=clean), folder / "steps"
    again = folder / "again"
    shutil.copytree(base, again)
    counted = warm.run(*stage.args, cwd=again, before=at_step(-1, log), seconds=600)
    new = outputs(clean, stage)
    assert counted.code == 0 and outputs(again, stage) == new, f"{name} differs between two runs"
    steps = log.read_text().splitlines()
    return Bench(name, stage, base, outputs(base, stage), new, outcome.seconds, tree(base), steps)


def at_step(number, log=None):
    """What kills the process before its touch of that number of the working folder; log: a file for all touches."""

    def before():
        from optin_cli import files

        here, process, count, busy = str(Path.cwd()), os.getpid(), 0, False
        stream = None if log is None else os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

        def touch(what, paths):
            nonlocal count, busy
            near = any(path.startswith(here) or not path.startswith("/") for path in paths)
            if busy or os.getpid() != process or not near:
                return
            busy, count = True, count + 1
            if stream is not None:
                os.write(stream, f"{count} {what} {' '.join(paths)}\n".encode())
            if count == number:
                os.kill(process, signal.SIGKILL)
            busy = False

        def hook(event, args):
            if event not in TOUCHES:
                return
            if event == "open" and not (isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
                return
            touch(event, [str(path) for path in args[:2] if isinstance(path, (str, bytes, os.PathLike))][:2])

        rename = files._renameat2

        def renamed(source, target, flag):
            touch("rename", [str(source), str(target)])
            try:
                return rename(source, target, flag)
            finally:
                touch("renamed", [str(source), str(target)])

        files._renameat2 = renamed
        sys.addaudithook(hook)

    return before


def disturb(warm, bench, case, draw, number):
    """Stop a run on a copy of the base in one of three ways.

    Returns what was done, the run's outcome, and whether it could tidy up.
    """
    stage, way = bench.stage, WAYS[number % len(WAYS)]
    shutil.rmtree(case, ignore_errors=True)
    shutil.copytree(bench.base, case)
    if way == "instant":
        seconds = draw.uniform(0, bench.seconds)
        how, signals = f"kill -9 after {seconds:.3f} s", [(seconds, signal.SIGKILL)]
        return how, warm.run(*stage.args, cwd=case, signals=signals), False
    if way == "step":
        # Most steps are near the end, where outputs take their places.
        step = 1 + max(draw.randrange(len(bench.steps)), draw.randrange(len(bench.steps)))
        outcome = warm.run(*stage.args, cwd=case, before=at_step(step))
        return f"kill -9 before step {bench.steps[step - 1]}", outcome, False
    kinds, gap = (signal.SIGINT, signal.SIGTERM), draw.choice(GAPS)
    seconds = draw.uniform(0.05, bench.seconds)
    signals = [(seconds, draw.choice(kinds))] + ([] if gap is None else [(seconds + gap, draw.choice(kinds))])
    how = ", ".join(f"{kind.name} after {when:.4f} s" for when, kind in signals)
    return how, warm.run(*stage.args, cwd=case, signals=signals), True


def faults(warm, bench, case, outcome, *, tidy):
    """All that is wrong after a run was stopped; tidy: it could clean up, and say what happened."""
    stage, found = bench.stage, outputs(case, bench.stage)
    ways = {path: (bench.old.get(path), bench.new.get(path)) for path in {*bench.old, *bench.new, *found}}
    if broken := sorted(path for path, known in ways.items() if found.get(path) not in known):
        yield f"{broken[0]} is neither old nor new"
    elif found not in (bench.old, bench.new) and stage.old and (tidy or not stage.pair):
        yield f"old and new outputs are mixed: {sorted(path for path in ways if found.get(path) != ways[path][0])}"
    after = tree(case)
    mine = (*stage.out, *stage.state)
    others = {path: content for path, content in after.items() if not path.startswith(mine)}
    if changed := [p for p, content in bench.before.items() if not p.startswith(mine) and others.get(p) != content]:
        yield f"the input {changed[0]} changed"
    if tidy:
        if outcome.code not in (0, 130):
            yield f"exit status {outcome.code}: {outcome.err[-200:]}"
        if outcome.problem is not None:
            yield outcome.problem
        if left := sorted(others.keys() - bench.before.keys()):
            yield f"left {left[0]} behind"
    again = warm.run(
        *stage.args, *(stage.more or () if "--force" in stage.args or stage.more else ("--force",)), cwd=case
    )
    if again.code != 0:
        yield f"going on fails: {again.problem or again.err[-300:]}"
    elif outputs(case, stage) != bench.new:
        yield "going on ends in other bytes"


def picked(seed, number):
    """The stage of a try of that number, and what draws for it."""
    return [*STAGES][number % len(STAGES)], random.Random(f"{seed}/kill/{number}")
