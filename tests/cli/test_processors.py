"""Threads follow what the process may use."""

import os
from unittest.mock import patch

import pytest
from helpers.running import python

from optin_cli.cli import processors


@pytest.mark.parametrize(
    ("text", "expected"),
    [("max 100000", 8), ("200000 100000", 2), ("150000 100000", 2), ("1000 100000", 1), ("9900000 100000", 8), ("", 8)],
)
def test_a_quota_limits_processors(tmp_path, text, expected):
    (tmp_path / "cpu.max").write_text(text)
    with patch("os.sched_getaffinity", return_value=set(range(8))):
        assert processors.usable(tmp_path / "cpu.max") == expected
        assert processors.usable(tmp_path / "none") == 8


def test_the_users_settings_win(monkeypatch):
    monkeypatch.setattr(processors, "usable", lambda: 1)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    for name in (processors.THREADS, *processors.WAITING):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    processors.set_threads()
    found = {name: os.environ.pop(name) for name in ("OMP_NUM_THREADS", "KMP_BLOCKTIME")}
    assert found == {"OMP_NUM_THREADS": "1", "KMP_BLOCKTIME": "0"}
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


def test_torch_takes_what_is_set(here):
    code = "import os; os.environ.pop('OMP_NUM_THREADS'); os.cpu_count = lambda: 64\n"
    code += "from optin_cli.cli import processors\nprocessors.usable = lambda: 1\nprocessors.set_threads()\n"
    result = python(f"{code}import torch; print(torch.get_num_threads())", cwd=here)
    assert result.stdout == "1\n", result.stderr
