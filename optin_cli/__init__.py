"""Make trained transformers smaller without retraining: the Python API behind the `optin` command.

Names are imported on first use, so that importing the package (and `optin --help`) is instant.
"""

import importlib
from typing import TYPE_CHECKING, Any

from optin_cli.version import __version__ as __version__

if TYPE_CHECKING:
    from optin_cli.checkpoints.checkpoint import Checkpoint as Checkpoint
    from optin_cli.checkpoints.checkpoint import load as load
    from optin_cli.data.spec import DataSpec as DataSpec
    from optin_cli.diffing.diff import diff as diff
    from optin_cli.evaluation.drafts import evaluate_draft as evaluate_draft
    from optin_cli.evaluation.evaluate import evaluate as evaluate
    from optin_cli.exporting.export import export as export
    from optin_cli.options.evaluation import AnswerOptions as AnswerOptions
    from optin_cli.options.evaluation import EvalOptions as EvalOptions
    from optin_cli.options.export import ExportOptions as ExportOptions
    from optin_cli.options.generation import GenerationOptions as GenerationOptions
    from optin_cli.options.images import ImageOptions as ImageOptions
    from optin_cli.options.latency import LatencyOptions as LatencyOptions
    from optin_cli.options.refit import RefitOptions as RefitOptions
    from optin_cli.options.scoring import ScoreOptions as ScoreOptions
    from optin_cli.options.shrink import ShrinkOptions as ShrinkOptions
    from optin_cli.options.sweep import SweepOptions as SweepOptions
    from optin_cli.options.trim import TrimOptions as TrimOptions
    from optin_cli.profiling.latency import profile_latency as profile_latency
    from optin_cli.profiling.profile import profile as profile
    from optin_cli.pruning.calibration import RecordedData as RecordedData
    from optin_cli.pruning.model_card import write_measured as write_measured
    from optin_cli.pruning.prune import prune as prune
    from optin_cli.reporting.report import report as report
    from optin_cli.scoring.score import score as score
    from optin_cli.searching.limits import Limits as Limits
    from optin_cli.searching.search import search as search
    from optin_cli.sweeping.shrink import shrink as shrink
    from optin_cli.sweeping.sweep import sweep as sweep
    from optin_cli.trimming.trim import trim as trim

_API = {
    "load": "checkpoints.checkpoint",
    "profile": "profiling.profile",
    "profile_latency": "profiling.latency",
    "score": "scoring.score",
    "search": "searching.search",
    "prune": "pruning.prune",
    "evaluate": "evaluation.evaluate",
    "evaluate_draft": "evaluation.drafts",
    "write_measured": "pruning.model_card",
    "export": "exporting.export",
    "shrink": "sweeping.shrink",
    "sweep": "sweeping.sweep",
    "trim": "trimming.trim",
    "report": "reporting.report",
    "diff": "diffing.diff",
    "Checkpoint": "checkpoints.checkpoint",
    "DataSpec": "data.spec",
    "Limits": "searching.limits",
    "RecordedData": "pruning.calibration",
    "AnswerOptions": "options.evaluation",
    "EvalOptions": "options.evaluation",
    "ExportOptions": "options.export",
    "GenerationOptions": "options.generation",
    "ImageOptions": "options.images",
    "LatencyOptions": "options.latency",
    "RefitOptions": "options.refit",
    "ScoreOptions": "options.scoring",
    "ShrinkOptions": "options.shrink",
    "SweepOptions": "options.sweep",
    "TrimOptions": "options.trim",
}
"""Module of the package that holds each public name."""
__all__ = ["__version__", *_API]  # noqa: PLE0604 - a table of names


def __getattr__(name: str) -> Any:
    if name in _API:
        return getattr(importlib.import_module(f"optin_cli.{_API[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
