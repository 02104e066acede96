"""Architecture descriptions, changed."""

import json

from optin_cli.architectures.registry import FOLDER, parse_architecture


def described(tmp_path, change):
    """bert.json after `change(document, head group, neuron group)`, parsed from a file."""
    raw = json.loads((FOLDER / "bert.json").read_text())
    change(raw, *raw["stacks"][0]["groups"])
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(raw))
    return parse_architecture(path)


def put(target, key, value):
    target[key] = value
