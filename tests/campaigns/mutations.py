"""Damaged files of every kind, and what must hold of each run on one: taken or refused in plain words, no harm done."""

import json
import random
import shutil

from helpers.running import QUICK, tree

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
} | {
    "bert.latency.json": (
        ["inspect", "F"],
        ["diff", "F", "F"],
        ["search", "bert.scores.safetensors", "--keep-latency", "0.9", "--latency-table", "F", "-o", "o"],
    ),
    "bert-sweep/sweep.json": (["inspect", "F"], ["report", "bert-sweep"], ["diff", "bert-sweep", "bert-sweep"]),
    "bert.pt": (["profile", "F", "--arch", "bert"],),
    "vit/config.json": (["profile", "vit"],),
    "vit-small/config.json": (["profile", "vit-small"],),
    "vit.mask.json": (["prune", "vit", "--mask", "F", "--no-refit", "-o", "o"],),
    "table.csv": (["eval", "bert", "--task", "sst2", "--data", "F", "--latency-runs", "0", "-o", "o"],),
    "bert-pruned/config.json": (["profile", "bert-pruned"], ["inspect", "bert-pruned"]),
    "bert-pruned/model.onnx.optin.json": (
        ["inspect", "F"],
        ["eval", "bert-pruned/model.onnx", "--latency-runs", "0", "-o", "o"],
    ),
}
"""By damaged file, what reads it; F stands for its name."""


def make_more(root, run):
    """What the suite's other tests do without: tables of latency, a sweep, images' models, an exported file."""
    import torch
    from helpers.models import save_images
    from safetensors.torch import load_file

    save_images(root / "vit", "timm-vit")
    torch.save(load_file(root / "bert/model.safetensors"), root / "bert.pt")
    rows = [json.loads(line) for line in (root / "train.jsonl").read_text().splitlines()]
    (root / "table.csv").write_text("sentence,label\n" + "".join(f"{row['sentence']},{row['label']}\n" for row in rows))
    run("profile", root / "bert", "--latency", "--runs", "1", "--batch", "1", "-o", root / "bert.latency.json")
    quick = ("--samples", "16", "--latency-runs", "0", "--keep-flops", "0.7")
    data = ("--calib", root / "texts.jsonl", "--task", "sst2", "--data", root / "train.jsonl")
    run("sweep", root / "bert", *data, *quick, "-o", root / "bert-sweep")
    run("score", root / "vit", "--criterion", "magnitude", "-o", root / "vit.scores.safetensors")
    run("search", root / "vit.scores.safetensors", "--keep-flops", "0.6", "-o", root / "vit.mask.json")
    run("prune", root / "vit", "--mask", root / "vit.mask.json", "--no-refit", "-o", root / "vit-small")
    run("export", root / "bert-pruned", "--to", "onnx")


PARTS = sorted({"bert", "bert-pruned", "other", "bert.mask.json", *(name.partition("/")[0] for name in COMMANDS)})


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


def desk(made, folder):
    """A fresh folder with copies of all that commands take."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for part in PARTS:
        source = made / part
        if source.is_dir():
            shutil.copytree(source, folder / part)
        elif source.exists():
            shutil.copyfile(source, folder / part)
    return folder


def damaged(made, folder, seed, name, number):
    """A desk on which one file is damaged, and the words of a command that reads it."""
    draw = random.Random(f"{seed}/{name}/{number}")
    desk(made, folder)
    mutate(draw, folder / name)
    return [name if part == "F" else part for part in draw.choice(COMMANDS[name])]


def fault(outcome, before, folder):
    """What is wrong with a run on a desk that was `before`; None where nothing is."""
    after = tree(folder)
    if outcome.code not in (0, 1, 2):
        return f"exit status {outcome.code}"
    if outcome.code and "error: " not in outcome.err:
        return "no message"
    if changed := [path for path, content in before.items() if after.get(path) != content]:
        return f"changed {changed[0]}"
    if outcome.code and (left := sorted(after.keys() - before.keys())):
        return f"refused, but left {left[0]}"
    return None
