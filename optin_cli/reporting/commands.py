"""Artifacts in; the commands that make them again out, from the options and inputs that they record.

Options at the default of this version are left out, unless another version wrote the artifact. Names are those that
the artifacts record; files are identified by hash elsewhere in a report.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from optin_cli.artifacts.base import Artifact, Source
from optin_cli.artifacts.evaluation import Evaluation
from optin_cli.artifacts.manifest import Manifest
from optin_cli.artifacts.mask import Mask
from optin_cli.artifacts.scores import Scores
from optin_cli.artifacts.sweep import Sweep
from optin_cli.options.evaluation import DEFAULT_SEQ_LEN, AnswerOptions, EvalOptions
from optin_cli.options.refit import RefitOptions
from optin_cli.options.scoring import ScoreOptions
from optin_cli.options.sweep import SweepOptions
from optin_cli.reporting.evidence import Evidence
from optin_cli.version import __version__

SCORE_FLAGS = {
    "units": "--units",
    "criterion": "--criterion",
    "estimator": "--estimator",
    "rescore": "--rescore",
    "output_weight": "--lambda",
    "temperature": "--tau",
    "probes": "--probes",
    "samples": "--samples",
    "exact_samples": "--exact-samples",
    "exact_kinds": "--exact-kinds",
    "batch_size": "--batch-size",
    "rows": "--rows",
    "max_length": "--max-length",
    "seed": "--seed",
    "token_exchange": "--token-exchange",
}


SEARCH_FLAGS = {
    "algorithm": "--algorithm",
    "round_to": "--round-to",
    "head": "--min-heads",
    "neuron": "--min-neurons",
    "protect": "--protect",
    "layout": "--layout",
}


SEARCH_DEFAULTS: dict[str, Any] = {
    "algorithm": "exact",
    "round_to": 1,
    "head": 0,
    "neuron": 0,
    "protect": [],
    "layout": "ragged",
}


BUDGET_FLAGS = {"macs": "--keep-flops", "parameters": "--keep-params", "latency": "--keep-latency"}


PRUNE_FLAGS = {
    "refit_samples": "--samples",
    "refit_ridge": "--refit-ridge",
    "refit_batch_size": "--batch-size",
    "refit_max_length": "--max-length",
    "refit_seed": "--seed",
    "refit_add_bias": "--add-bias",
}


EVAL_FLAGS = {
    "batch_size": "--batch-size",
    "max_length": "--max-length",
    "doc_stride": "--doc-stride",
    "no_answer_threshold": "--no-answer-threshold",
    "latency_batch": "--latency-batch",
    "latency_length": "--latency-length",
    "latency_runs": "--latency-runs",
    "threads": "--threads",
}


SWEEP_FLAGS = {
    "recipes": "--recipe",
    "keep_flops": "--keep-flops",
    "max_drop": "--max-drop",
    "evaluations": "--evaluations",
    "refit_ridge": "--refit-ridge",
    "samples": "--samples",
    "batch_size": "--batch-size",
    "max_length": "--max-length",
    "seed": "--seed",
    "eval_latency_batch": "--latency-batch",
    "eval_latency_length": "--latency-length",
    "eval_latency_runs": "--latency-runs",
}


def commands_for(evidence: Evidence) -> list[str]:
    """The command lines that made the evidence, in the order to run them."""
    lines: list[str] = []
    if evidence.profile is not None:
        lines.append(_line("profile", [evidence.original.name, "-o", evidence.profile.name], evidence.profile.head))
    if evidence.scores is not None and isinstance(evidence.scores.content, Scores):
        lines.append(_score(evidence.scores.content, evidence.scores.name))
    mask = evidence.mask.content if evidence.mask is not None else None
    manifest = evidence.manifest.content if evidence.manifest is not None else None
    if evidence.mask is not None and isinstance(mask, Mask) and "scores" in mask.inputs:
        lines.append(_search(mask, evidence.mask.name))
    by_sweep = isinstance(manifest, Manifest) and "recipe" in manifest.options
    if isinstance(manifest, Manifest) and evidence.pruned is not None and not by_sweep:
        lines.append(_prune(manifest, evidence.pruned.name))
    lines += [
        _evaluate(read.content, read.name) for read in evidence.evaluations if isinstance(read.content, Evaluation)
    ]
    return lines + [_sweep(read.content) for read in evidence.sweeps if isinstance(read.content, Sweep)]


def _line(command: str, words: list[str], artifact: Artifact, seq_len: int | None = DEFAULT_SEQ_LEN) -> str:
    workload = getattr(artifact, "workload", None)
    length = workload.seq_len if workload is not None else seq_len
    more = [] if length in (None, DEFAULT_SEQ_LEN) or command in ("search", "prune") else ["--seq-len", str(length)]
    return shlex.join(["optin", command, *words, *more])


def _flags(
    artifact: Artifact, values: Mapping[str, Any], flags: Mapping[str, str], usual: Mapping[str, Any]
) -> list[str]:
    """Options as words of a command line, less those at their defaults if this version wrote the artifact."""
    same_version = artifact.optin_version == __version__
    words: list[str] = []
    for key, flag in flags.items():
        value = values.get(key)
        if key in values and value is None and usual.get(key) is not None:
            words += [flag, "none"]
        elif value is None or (same_version and key in usual and value == usual[key]):
            continue
        elif isinstance(value, bool):
            words += [flag] if value else []
        elif flag == "--protect":
            words += [word for pattern in value for word in (flag, str(pattern))]
        elif isinstance(value, list):
            words += [flag, ",".join(_plain(part) for part in value) or "none"]
        else:
            words += [flag, _plain(value)]
    return words


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _data(source: Source, task: str | None) -> list[str]:
    """A task's own dataset goes by the task's name, local data by that of its file or folder."""
    return [] if source.name == task else ["--data", source.name]


def _score(scores: Scores, name: str) -> str:
    header = scores.header
    calibration = header.inputs.get("calibration")
    words = [header.inputs["checkpoint"].name]
    words += [] if calibration is None else ["--calib", calibration.name]
    words += _flags(header, header.options, SCORE_FLAGS, ScoreOptions().recorded())
    return _line("score", [*words, "-o", name], header)


def _search(mask: Mask, name: str) -> str:
    minima = mask.options.get("minima")
    values = {**mask.options, **(minima if isinstance(minima, dict) else {})}
    words = [mask.inputs["scores"].name]
    words += [
        word
        for key, flag in BUDGET_FLAGS.items()
        if key in mask.budget.asked
        for word in (flag, f"{mask.budget.asked[key]:g}")
    ]
    words += ["--latency-table", mask.inputs["latency_table"].name] if "latency_table" in mask.inputs else []
    return _line("search", [*words, *_flags(mask, values, SEARCH_FLAGS, SEARCH_DEFAULTS), "-o", name], mask)


def _prune(manifest: Manifest, name: str) -> str:
    calibration = manifest.inputs.get("calibration")
    words = [manifest.inputs["checkpoint"].name, "--mask", manifest.inputs["mask"].name]
    if calibration is not None:
        usual = {f"refit_{key}": value for key, value in asdict(RefitOptions()).items()}
        words += ["--calib", calibration.name, *_flags(manifest, manifest.options, PRUNE_FLAGS, usual)]
    return _line("prune", [*words, "-o", name], manifest)


def _evaluate(result: Evaluation, name: str) -> str:
    words = [result.inputs["checkpoint"].name]
    words += [] if result.task is None else ["--task", result.task]
    words += _data(result.inputs["data"], result.task) if "data" in result.inputs else []
    words += ["--samples", str(result.samples)] if "data" in result.inputs else []
    words += ["--against", result.inputs["against"].name] if "against" in result.inputs else []
    speed = result.latency
    timing = (
        {"latency_runs": 0}
        if speed is None
        else {
            "latency_batch": speed.batch_size,
            "latency_length": speed.seq_len,
            "latency_runs": speed.runs,
            "threads": speed.threads,
        }
    )
    values = {**result.options, **timing}
    usual = {**asdict(EvalOptions()), **asdict(AnswerOptions())}
    return _line("eval", [*words, *_flags(result, values, EVAL_FLAGS, usual), "-o", name], result)


def _sweep(sweep: Sweep) -> str:
    words = [sweep.inputs["checkpoint"].name, "--calib", sweep.inputs["calibration"].name, "--task", sweep.task]
    words += _data(sweep.inputs["data"], sweep.task)
    words += ["--eval-samples", str(sweep.samples)]
    usual = {
        **ScoreOptions().recorded(),
        **{f"eval_{key}": value for key, value in asdict(EvalOptions()).items()},
        **SweepOptions(keep_flops=(1.0,)).asked(),
    }
    del usual["keep_flops"]
    return _line("sweep", [*words, *_flags(sweep, sweep.options, SWEEP_FLAGS, usual)], sweep)
