"""Where there is no terminal, long work says how far it is."""

from unittest.mock import patch

from optin_cli.cli import common


def test_a_log_has_a_line_every_half_minute(capsys):
    with patch("time.monotonic", return_value=100.0) as clock, common.progress("scoring") as progress:
        for now, done in ((100, 0), (120, 1), (140, 2), (150, 3), (170, 4), (171, 0), (200, 0), (240, 2)):
            clock.return_value = float(now)
            progress.update(done, 8, f"batch {done}")
    assert capsys.readouterr().err.splitlines() == [
        "scoring: 25%, about 0:02:00 left (batch 2)",
        "scoring: 50%, about 0:01:10 left (batch 4)",
        "scoring: 0% (batch 0)",
        "scoring: 25%, about 0:03:27 left (batch 2)",
    ]
