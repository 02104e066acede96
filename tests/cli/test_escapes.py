"""No text from files steers a terminal."""

import io
import os
import pty
import sys
from unittest.mock import patch

import pytest
from helpers.running import call

from optin_cli.cli import common
from optin_cli.cli.escapes import escaped

HOSTILE = "a\x1b]0;pwned\x07\x1b[2J\r\x9b1m\u202eb\u2066c\x7f"
SHOWN = r"a\x1b]0;pwned\x07\x1b[2J\x0d\u009b1m\u202eb\u2066c\u007f"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (HOSTILE, SHOWN),
        ("plain, t\u00e9\n\t\u5b57", "plain, t\u00e9\n\t\u5b57"),
        ("\udcff", r"\udcff"),
        ("\u2028", r"\u2028"),
    ],
    ids=["hostile", "plain", "half a character", "separator"],
)
def test_what_steers_is_shown_as_escapes(text, shown):
    assert escaped(text) == shown


def spoil(raw):
    raw["optin_version"] = HOSTILE
    raw["inputs"]["checkpoint"]["name"] = HOSTILE
    raw["options"] |= {HOSTILE: HOSTILE}
    raw["groups"] = {HOSTILE + name: group for name, group in raw["groups"].items()}


@pytest.mark.parametrize("args", [("inspect", "m.json"), ("diff", "m.json", "bert.mask.json")], ids=lambda a: a[0])
def test_artifacts_do_not_steer(desk, args):
    desk.take("bert.mask.json")
    (desk.folder / "m.json").write_bytes((desk.folder / "bert.mask.json").read_bytes())
    desk.edit("m.json", spoil)
    result = call(*args)
    assert result.code == 0 and "pwned" in result.out
    assert not set("\x1b\x07\r\x9b\u202e\u2066\x7f") & set(result.out + result.err)


def test_messages_do_not_steer(here):
    result = call("inspect", HOSTILE)
    assert result.code == 1 and SHOWN in result.err and "\x1b" not in result.err


@pytest.mark.parametrize("terminal", [True, False])
def test_data_is_escaped_on_terminals_alone(monkeypatch, terminal):
    stream = io.StringIO()
    stream.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stdout", stream)
    common.print_result("", HOSTILE, as_json=False)
    assert stream.getvalue() == (SHOWN if terminal else HOSTILE) + "\n"


def test_progress_does_not_steer():
    main, other = pty.openpty()
    with os.fdopen(other, "w") as stream, patch.object(sys, "stderr", stream), common.progress("reading") as bar:
        bar.update(1, 2, "\x1b]0;pwned")
    shown = os.read(main, 100_000)
    os.close(main)
    assert rb"\x1b]0;pwned" in shown and b"\x1b]0;" not in shown
