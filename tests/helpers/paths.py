"""Where things lie: this checkout, and the real checkpoints and data beside it, where there are any."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
