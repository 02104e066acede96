"""The commands that make artifacts again, from the options and inputs that the artifacts record.

Options at the default of this version are left out, unless another version wrote the artifact. Inputs are named as the
user named them, as far as artifacts record that; they are identified by hash elsewhere in a report.
"""

import json
import shlex
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from optin_cli.artifacts.base import Artifact, Source
from optin_cli.artifacts.evaluation import Evaluation
from optin_cli.artifacts.manifest import Manifest
from optin_cli.artifacts.mask import Mask
from optin_cli.artifacts.reading import Read
from optin_cli.artifacts.scores import Scores
from optin_cli.artifacts.sweep import Sweep
from optin_cli.options.common import DEFAULT_SEQ_LEN, SEQ_LEN
from optin_cli.options.declare import Declared, declared
from optin_cli.options.evaluation import EvalOptions
from optin_cli.options.generation import DEFAULT_DECODE_RUNS
from optin_cli.options.images import IMAGE_SIZE
from optin_cli.options.refit import RefitOptions
from optin_cli.options.scoring import ScoreOptions
from optin_cli.options.search import BudgetOptions, SearchOptions
from optin_cli.options.sweep import SweepOptions
from optin_cli.reporting.evidence import Evidence
from optin_cli.reporting.places import Places
from optin_cli.version import __version__

RECIPE = "recipe"
"""Option that masks of sweeps record, and models cut by them."""


def commands_for(evidence: Evidence) -> list[str]:
    """The command lines that made the evidence, in the order to run them, all in one directory."""
    places, manifest = Places.of(evidence), evidence.manifest
    lines = [_profile(evidence, places)] if evidence.profile is not None else []
    lines += [_sweep(read, places) for read in evidence.sweeps]
    scores, mask = evidence.scores, evidence.mask
    swept = mask is not None and RECIPE in mask.content.options
    if scores is not None and isinstance(scores.content, Scores) and not swept:
        lines.append(_score(scores.content, places.file(scores), places))
    if mask is not None and "scores" in mask.content.inputs and not swept:
        lines.append(_search(mask.content, places.file(mask), places))
    if manifest is not None and evidence.pruned is not None:
        by_prune = RECIPE not in manifest.content.options or _refit_options(manifest.content).keys() > {"ridge"}
        lines += [_prune(manifest.content, evidence, places)] if by_prune else []
    return lines + [_evaluate(read.content, places.file(read), places) for read in evidence.evaluations]


def _line(command: str, words: Iterable[str], artifact: Artifact) -> str:
    workload = getattr(artifact, "workload", None)
    length = None if workload is None or command in ("search", "prune") else workload.seq_len
    more = [] if length in (None, DEFAULT_SEQ_LEN) else [str(SEQ_LEN.flag), str(length)]
    if command != "search" and workload is not None and workload.resized:
        more += [str(IMAGE_SIZE.flag), "{1}x{2}".format(*workload.image)]
    if command != "search" and (description := artifact.inputs.get("architecture")) is not None:
        more += ["--architecture", description.name]
    if command != "search":
        opened = (artifact.inputs[role].opened_as for role in ("checkpoint", "against") if role in artifact.inputs)
        more += ["--as", name] if (name := next(filter(None, opened), None)) else []
    return shlex.join(["optin", command, *words, *more])


def words_of(
    kind: type, values: Mapping[str, Any], artifact: Artifact, usual: Mapping[str, Any] = MappingProxyType({})
) -> list[str]:
    """Recorded options as words of a command line, less those at their defaults if this version wrote the artifact.

    Args:
        kind: the options class that the command takes.
        values: by the keys under which artifacts record them.
        usual: recorded defaults, where they are not the default of the field.
    """
    same_version = artifact.optin_version == __version__
    words: dict[str, list[str]] = {}
    for one in declared(kind):
        value, default = values.get(one.key), usual.get(one.key, one.default)
        default = [*default] if isinstance(default, tuple) else default
        # The sequence length is that of the workload, and several classes may share a flag.
        known = one.key in values and one.option != SEQ_LEN and one.flag not in words
        if known and not (same_version and value == default):
            words[one.flag] = _words(one, value)
    return [word for each in words.values() for word in each]


def _words(one: Declared, value: Any) -> list[str]:
    if one.option.repeated:
        return [word for item in (value if isinstance(value, list) else []) for word in (one.flag, str(item))]
    if isinstance(value, bool):
        return [one.flag] if value else []
    if value is None or value == []:
        return [one.flag, "none"] if one.option.none else []
    return [
        one.flag,
        ",".join(one.option.said(_plain(item)) for item in (value if isinstance(value, list) else [value])),
    ]


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _calibration(source: Source, places: Places, flag: str = "--data") -> list[str]:
    """Words that name calibration data: a task, local data, or local data of a task's form by `flag`."""
    record, name = source.data, places.name(source)
    if record is None or record.task is None:
        words = ["--calib", name]
    else:
        words = ["--calib", record.task, *([flag, name] if record.local else [])]
    return words + _columns(source)


def _data(source: Source, task: str | None, places: Places) -> list[str]:
    """A task's own dataset goes by the task's name, local data by where it lies."""
    return [*([] if source.name == task else ["--data", places.name(source)]), *_columns(source)]


def _columns(source: Source) -> list[str]:
    """Words that name the columns that were asked for."""
    words: list[str] = []
    if source.data is not None and source.data.columns is not None:
        words += ["--text-columns", ",".join(source.data.columns)]
    if source.data is not None and source.data.label_column is not None:
        words += ["--label-column", source.data.label_column]
    return words


def _profile(evidence: Evidence, places: Places) -> str:
    assert evidence.profile is not None
    words = [places.name(evidence.original), "-o", places.file(evidence.profile)]
    return _line("profile", words, evidence.profile.content)


def _score(scores: Scores, name: str, places: Places) -> str:
    header = scores.header
    calibration = header.inputs.get("calibration")
    words = [places.name(header.inputs["checkpoint"])]
    words += [] if calibration is None else _calibration(calibration, places)
    words += words_of(ScoreOptions, header.options, header, ScoreOptions().recorded())
    return _line("score", [*words, "-o", name], header)


def _search(mask: Mask, name: str, places: Places) -> str:
    minima = mask.options.get("minima")
    values = {**mask.options, **(minima if isinstance(minima, dict) else {})}
    words = [places.name(mask.inputs["scores"])]
    for budget in declared(BudgetOptions):
        words += [budget.flag, f"{mask.budget.asked[budget.key]:g}"] if budget.key in mask.budget.asked else []
    words += ["--latency-table", mask.inputs["latency_table"].name] if "latency_table" in mask.inputs else []
    return _line("search", [*words, *words_of(SearchOptions, values, mask), "-o", name], mask)


def _refit_options(manifest: Manifest) -> dict[str, Any]:
    prefix = "refit_"
    return {k.removeprefix(prefix): value for k, value in manifest.options.items() if k.startswith(prefix)}


def _prune(manifest: Manifest, evidence: Evidence, places: Places) -> str:
    assert evidence.pruned is not None
    calibration = manifest.inputs.get("calibration")
    words = [places.name(manifest.inputs["checkpoint"]), "--mask", places.name(manifest.inputs["mask"])]
    if calibration is None:
        words.append("--no-refit")
    else:
        words += _calibration(_as_read(calibration, evidence), places)
        words += words_of(RefitOptions, _refit_options(manifest), manifest)
    return _line("prune", [*words, "-o", places.name(evidence.pruned)], manifest)


def _as_read(calibration: Source, evidence: Evidence) -> Source:
    """Calibration data as the scores or the mask record it, since the record of a model holds its name alone."""
    scored = (read.head.inputs.get("calibration") for read in (evidence.mask, evidence.scores) if read is not None)
    return next((one for one in scored if one is not None and one.name == calibration.name), calibration)


def _evaluate(result: Evaluation, name: str, places: Places) -> str:
    words = [places.name(result.inputs["checkpoint"])]
    words += [] if result.task is None else ["--task", result.task]
    words += _data(result.inputs["data"], result.task, places) if "data" in result.inputs else []
    words += ["--samples", str(result.samples)] if "data" in result.inputs else []
    words += ["--against", places.name(result.inputs["against"])] if "against" in result.inputs else []
    words += ["--draft-for", places.name(result.inputs["draft_for"])] if "draft_for" in result.inputs else []
    speed = result.latency
    timing: dict[str, Any] = {"latency_runs": 0}
    if speed is not None:
        timing = {"latency_batch": speed.batch_size, "latency_length": speed.seq_len, "latency_runs": speed.runs}
    timing |= _generation(result)
    words += words_of(EvalOptions, {**result.options, **timing}, result)
    words += [] if speed is None else ["--threads", str(speed.threads)]
    return _line("eval", [*words, "-o", name], result)


def _generation(result: Evaluation) -> dict[str, Any]:
    """What was measured of generation, by the keys of its options."""
    found: dict[str, Any] = {}
    if (speed := result.generation) is not None:
        usual = DEFAULT_DECODE_RUNS if result.latency is not None else 0
        found = {"decode_batch": [*speed.speeds], "prompt_length": speed.prompt_tokens, "new_tokens": speed.new_tokens}
        found |= {} if speed.runs == usual else {"decode_runs": speed.runs}
    if (draft := result.draft) is not None:
        found |= {"draft_tokens": draft.draft_tokens, "draft_prompts": draft.prompts}
        found |= {"prompt_length": draft.prompt_tokens, "new_tokens": draft.new_tokens}
    return found


def _sweep(read: Read[Sweep], places: Places) -> str:
    sweep = read.content
    calibration, data = sweep.inputs["calibration"], sweep.inputs["data"]
    words = [places.name(sweep.inputs["checkpoint"]), *_calibration(calibration, places, "--calib-data")]
    if _columns(calibration):  # one option names those of both
        data = data.model_copy(update={"data": None})
    words += ["--task", sweep.task, *_data(data, sweep.task, places)]
    words += ["--eval-samples", str(sweep.samples), *words_of(SweepOptions, sweep.options, sweep)]
    folder = places.folder(read)
    return _line("sweep", [*words, *([] if folder is None else ["-o", folder])], sweep)
