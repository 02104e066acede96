"""Damaged files of every kind: each is taken or refused in plain words, and nothing else changes.

The suite tries few; MUTATIONS=10000 SEED=1 python -m pytest tests/campaigns tries many.
"""

import json
import os
import random
import shutil

import pytest
from helpers.running import QUICK, call, tree

TRIED = int(os.environ.get("MUTATIONS", "90"))
SEED = os.environ.get("SEED", "0")
ODD = (
    *(None, True, False, 0, -1, 1, 2, 0.5, -0.5, 10**6, 10**12, 10**30, -(10**30), 1e300, 1e-300),
    *("", "a", "8", "../x", "/etc/passwd", "\x1b[2J", "\u202e", "x" * 10_000, [], {}, [[]], [{}], {"a": {"b": []}}),
)
"""What no field expects, or only some do."""
RAW = ("NaN", "Infinity", "-Infinity", "1e999", '"\\ud800"', "[" * 5000, "{", '{"a": 1, "a": 2}', "\x00", "")
"""What is not JSON, or should not be."""
MASK, SEVEN = ("--mask", "bert.mask.json"), ("--keep-flops", "0.7")
COMMANDS = {
    "bert.mask.json": (["inspect", "F"], ["diff", "F", "F"], ["prune", "bert", "--mask", "F", "-o", "o"]),
    "bert.profile.json": (
        ["inspect", "F"],
        ["diff", "F", "F"],
        ["report", "--profile", "F", *MASK],
    ),
    "bert-pruned.eval.json": (["inspect", "F"], ["diff", "F", "F"], ["report", "bert-pruned", "--eval", "F"]),
    "bert-pruned/optin.json": (["inspect", "bert-pruned"], ["report", "bert-pruned"], ["profile", "bert-pruned"]),
    "bert.scores.safetensors": (
        ["inspect", "F"],
        ["diff", "F", "F"],
        ["search", "F", *SEVEN, "-o", "o"],
    ),
    "bert/config.json": (["profile", "bert"], ["diff", "bert", "other"]),
    "bert/tokenizer_config.json": (["score", "bert", "--calib", "texts.jsonl", *QUICK, "-o", "o"],),
    "bert/tokenizer.json": (["score", "bert", "--calib", "texts.jsonl", *QUICK, "-o", "o"],),
    "bert/model.safetensors": (["profile", "bert"], ["diff", "bert", "other"]),
    "texts.jsonl": (["score", "bert", "--calib", "texts.jsonl", *QUICK, "-o", "o"],),
}
"""By damaged file, what reads it; F stands for its name."""
PARTS = sorted({"bert", "bert-pruned", "other", *(name.partition("/")[0] for name in COMMANDS)})


def places(node, path=()):
    """Every place in a document, by the keys that lead there."""
    yield path
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from places(value, (*path, key))


def mutate_document(draw, text):
    """Change, remove, repeat or break one place of a JSON document."""
    document = json.loads(text)
    *outer, last = draw.choice([path for path in places(document) if path])
    owner = document
    for key in outer:
        owner = owner[key]
    how = draw.choice(("value", "remove", "raw", "more"))
    if how == "remove":
        del owner[last]
    elif how == "more" and isinstance(owner, dict):
        owner[draw.choice(("extra", "\x1b[31m", last * 2))] = draw.choice(ODD)
    elif how == "raw":
        owner[last] = "<raw>"
        return json.dumps(document).replace('"<raw>"', draw.choice(RAW), 1)
    else:
        owner[last] = draw.choice(ODD)
    return json.dumps(document)


def mutate_bytes(draw, content):
    """Flip, cut, repeat or overwrite some bytes."""
    start = draw.randrange(len(content))
    how, length = draw.choice(("flip", "cut", "repeat", "noise")), draw.choice((1, 8, 100))
    if how == "cut":
        return content[:start]
    part = content[start : start + length]
    if how == "repeat":
        return content[:start] + part + content[start:]
    new = bytes(byte ^ 1 << draw.randrange(8) for byte in part) if how == "flip" else draw.randbytes(len(part))
    return content[:start] + new + content[start + length :]


def mutate_safetensors(draw, content):
    """Change the header's own record, a tensor's entry, or bytes."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    how = draw.choice(("record", "entry", "bytes"))
    if how == "bytes":
        return mutate_bytes(draw, content)
    if how == "record" and "optin" in header.get("__metadata__", {}):
        header["__metadata__"]["optin"] = mutate_document(draw, header["__metadata__"]["optin"])
        new = json.dumps(header)
    else:
        new = mutate_document(draw, json.dumps(header))
    raw = new.encode("utf-8", "replace")
    return len(raw).to_bytes(8, "little") + raw + content[8 + size :]


def mutate(draw, path):
    content = path.read_bytes()
    if path.suffix == ".safetensors":
        changed = mutate_safetensors(draw, content)
    elif path.suffix == ".json" and draw.random() < 0.8:
        changed = mutate_document(draw, content.decode()).encode("utf-8", "replace")
    else:
        changed = mutate_bytes(draw, content)
    path.write_bytes(changed)


@pytest.mark.parametrize("name", COMMANDS)
def test_damage_is_taken_or_refused_in_plain_words(made, here, name):
    for number in range(max(1, TRIED // len(COMMANDS))):
        draw = random.Random(f"{SEED}/{name}/{number}")
        shutil.rmtree(here / "desk", ignore_errors=True)
        (here / "desk").mkdir()
        os.chdir(here / "desk")
        for part in PARTS:
            source = made.root / part
            shutil.copytree(source, part) if source.is_dir() else shutil.copyfile(source, part)
        mutate(draw, here / "desk" / name)
        args = [name if part == "F" else part for part in draw.choice(COMMANDS[name])]
        before = tree(here / "desk")
        result = call(*args)
        case = f"SEED={SEED}, {name}, number {number}: optin {' '.join(args)}\n{result.err}"
        assert result.code in (0, 1, 2), case
        assert "Traceback" not in result.err and "defect of optin" not in result.err, case
        assert not set("\x1b\u202e") & set(result.out + result.err), case
        after = tree(here / "desk")
        assert {path: after.get(path) for path in before} == before, case
        assert result.code == 0 or after.keys() == before.keys(), case
