"""Configs of saved folders, as earlier versions of a library read them."""

import json

import pytest

from optin_cli.architectures.schema import EarlierRule
from optin_cli.checkpoints.save import suit_earlier

RULE = EarlierRule(
    config={"theta": "rope.theta", "scaling": "rope", "width": "size"},
    absent={"rope.type": "default"},
    unread=["rope.beta"],
)


@pytest.mark.parametrize(
    ("ours", "stated"),
    [
        ({"rope": {"type": "default", "theta": 5.0, "beta": 1}, "size": 3}, {"theta": 5.0, "width": 3}),
        (
            {"rope": {"type": "linear", "theta": 5.0, "beta": 1}},
            {"theta": 5.0, "scaling": {"type": "linear", "theta": 5.0}},
        ),
        ({"rope": None}, {}),
        ({"rope": {"theta": 5.0}, "theta": 7.0}, {"theta": 7.0, "scaling": {"theta": 5.0}}),
    ],
)
def test_earlier_keys_state_what_ours_do(tmp_path, ours, stated):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(ours))
    suit_earlier(path, RULE)
    found = json.loads(path.read_text())
    assert {key: found[key] for key in ("theta", "scaling", "width") if key in found} == stated
    assert not found["rope"] or "beta" not in found["rope"]
