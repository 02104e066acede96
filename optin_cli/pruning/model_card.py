"""Write the model card of a pruned checkpoint, and put an evaluation into it.

The card opens with how to load. Measurements are kept between two marks, and only `write_measured` puts numbers
there.
"""

import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

from optin_cli.architectures.registry import known_architectures
from optin_cli.artifacts.base import require_source
from optin_cli.artifacts.evaluation import Evaluation, with_error
from optin_cli.artifacts.manifest import Manifest
from optin_cli.artifacts.mask import Budget, GroupMask
from optin_cli.artifacts.together import write_together
from optin_cli.checkpoints.folders import CARD, MANIFEST, folder_source
from optin_cli.checkpoints.libraries.registry import Blueprint
from optin_cli.errors import ArtifactError, UsageError
from optin_cli.files import check_output
from optin_cli.tasks.registry import load_task, task_names

TEXT = """---
{front}---
# {title}, pruned by optin

## How to load

{how}

## What was done

Cut from `{name}` (sha256 `{sha}`) by optin {version}, without training.
{budget}

| | before | after | ratio |
|---|---|---|---|
| MACs (batch {work.batch_size}, {work.shape}) | {before.macs:,} | {after.macs:,} | {macs_ratio:.3f} |
| parameters | {before.parameters:,} | {after.parameters:,} | {parameters_ratio:.3f} |
| bytes of weights | {before.bytes:,} | {after.bytes:,} | {bytes_ratio:.3f} |

{begin}
{measured}
{end}

## How

{recipe}

{groups}

## Certificate

Reloaded by {proof.loader}: outputs ({outputs}) differ from the cut model's by at most {proof.reloaded:.3g}{masked}
(tolerance {proof.tolerance:.3g}).{generation}{note} `optin.json` holds the whole record.

## Limits

- The cut model knows no more than the original: its intended use, biases and limits are those of `{name}`.
- It was fitted to the calibration data named above; inputs of another kind may lose more than the metric shows.
- MACs are multiply-accumulates of matrix products, convolutions and attention at the stated input size. Fewer MACs
  are not always less time: measure latency on your own device.

## Licence

{licence}
"""
BEGIN, END = "<!-- optin:measured -->", "<!-- /optin:measured -->"
RAGGED = """The layers have different widths, which the stock `{model_class}` cannot express. The module beside the
weights can (it needs torch and {library} only):

```python
{loading}
```

or, without running code from this folder, `optin_cli.load(folder).model`. Certified with {library} {version}.{others}
Do **not** let the stock class ignore mismatched sizes: it would fill in random weights."""
UNIFORM = """All layers have the same widths, so the stock `{model_class}` of {library} loads this folder, and so does
whatever reads its config:

```python
{loading}
```"""
COMPARED = {"transformers": ("4.44.2", "4.57.1"), "timm": ("1.0.23",)}
"""Earlier versions with which every described family was compared, by library (`tests/benchmarks/versions.py`)."""
ELSEWHERE = """ With {versions}, tiny
models of this family, cut in the same ways, give equal outputs, or the module says which version is needed before a
weight is read."""
DECILM = """The layers have FFNs of different widths. The config says so in the terms of DeciLM
(`DeciLMForCausalLM`, `block_configs`), which vLLM and others run by their own code: `vllm serve FOLDER
--trust-remote-code`, where the code from this folder is the class that reads the config. {library} runs it by the
module beside the weights:

```python
{loading}
```

or, without running code from this folder, `optin_cli.load(folder).model`. Certified with {library} {version}. The stock
`{model_class}` cannot express it; do **not** let it ignore mismatched sizes."""
HOW = {"ragged": RAGGED, "uniform": UNIFORM, "deci": DECILM}
"""By layout."""
UNMEASURED = """## Metric and latency

Not measured yet. `optin eval FOLDER --task TASK --against ORIGINAL --card` measures both models and writes it here."""
MEASURED = """## Metric and latency

By `optin eval` {version}{task}.{timed} Behind ± is the standard error; that of a change is over the samples that both
models see. A cell without a number was not measured.

| | on | before | after | change |
|---|---|---|---|---|
{rows}"""
LIBRARY = "sentence-transformers"
PIPELINES = {"SentenceTransformer": "sentence-similarity", "CrossEncoder": "text-ranking"}
"""What hubs file folders of that library under."""
FRONT = re.compile(r"---\n(.*?)\n---\n", re.DOTALL)
"""The front matter of a card."""
CARRIED = ("license", "license_name", "license_link", "language", "datasets", "base_model", "pipeline_tag")
"""Keys of the original card's front matter that hold for the cut model too."""
FOLDED = 32
"""Tables of groups with more rows than this are folded away."""
MOST_PARTS, MOST_LETTERS = 200, 500
"""Longest list, and text, of the original card that is carried."""
MARKUP = re.compile(r"[\[\]`*|\\]")
"""What has a meaning in Markdown, beside HTML."""
INNER_OPTIONS = ("minima", "protect")


def read_front(folder: Path | None) -> dict[str, Any]:
    """The YAML front matter of a checkpoint's card; empty where there is none that can be read."""
    import yaml
    from huggingface_hub import metadata_load

    if folder is None or not (folder / CARD).is_file():
        return {}
    try:
        front = metadata_load(folder / CARD) or {}
    except (ValueError, OSError, RecursionError, yaml.YAMLError):
        return {}
    return {key: value for key, value in front.items() if _is_short(value)}


def _is_short(value: Any) -> bool:
    """Whether a value is text or a list of texts: aliases of YAML can stand for more than memory holds."""
    parts = value if isinstance(value, list) else [value]
    return len(parts) <= MOST_PARTS and all(isinstance(part, str) and len(part) <= MOST_LETTERS for part in parts)


def _others(blueprint: Blueprint) -> str:
    """What is known of other versions of the library; nothing for families that are not described here."""
    described = blueprint.kind in known_architectures(blueprint.library)
    return ELSEWHERE.format(versions=" and ".join(COMPARED[blueprint.library])) if described else ""


def write_card(manifest: Manifest, blueprint: Blueprint, licence_files: Sequence[str]) -> str:
    """Model card in Markdown. blueprint: of the original. licence_files: names of those that lie in the folder."""
    before, after, certificate = manifest.before, manifest.after, manifest.certificate
    library, sentences = blueprint.library, blueprint.sentences
    front = read_front(blueprint.folder if sentences is None else sentences.folder)
    if blueprint.licence is not None:
        front = {"license": blueprint.licence} | front
    kind = (library, blueprint.head.pipeline)
    if sentences is not None:
        kind = (LIBRARY, PIPELINES[sentences.loader])
    loading = blueprint.builder.loading(blueprint, plain=manifest.layout == "uniform")
    source = manifest.inputs["checkpoint"]
    return TEXT.format(
        front=_front(front, *kind, source.name),
        title=_plain(source.name),
        name=_code(source.name),
        sha=source.sha256,
        version=manifest.optin_version,
        work=manifest.workload,
        how=HOW[manifest.layout].format(
            model_class=manifest.model_class,
            library=library,
            loading=loading,
            version=manifest.versions[library],
            others=_others(blueprint),
        ),
        budget=_budget(manifest.budget),
        before=before,
        after=after,
        macs_ratio=after.macs / before.macs,
        parameters_ratio=after.parameters / before.parameters,
        bytes_ratio=after.bytes / before.bytes,
        begin=BEGIN,
        measured=UNMEASURED,
        end=END,
        recipe=_recipe(manifest),
        groups=_groups(manifest.groups),
        proof=certificate,
        outputs=", ".join(certificate.outputs),
        masked="" if certificate.masked is None else f", and from the masked original's by {certificate.masked:.3g}",
        generation="" if certificate.generation is None else f" It {certificate.generation.words}.",
        note="" if certificate.note is None else f" {certificate.note}",
        licence=_licence(front, licence_files),
    )


def write_measured(folder: Path, evaluation: Evaluation, target: Path | None = None, *, force: bool = False) -> None:
    """Put what an evaluation of a cut folder measured into its card, in place of what stood there.

    Args:
        target: a file for the evaluation itself, which is written together with the card: both or none. force: replace
            an existing one.

    Raises:
        UsageError: `optin prune` did not write the folder. ArtifactError: the evaluation is of another model, or the
            card no longer says where its numbers go. OutputError: one of the files cannot be written.
    """
    require_card(folder)
    require_source(evaluation, "The evaluation", "checkpoint", folder_source(folder))
    text = (folder / CARD).read_text(encoding="utf-8")
    start, _, rest = _with_results(text, evaluation).partition(BEGIN)
    end = rest.partition(END)[2]
    if target is not None:
        check_output(target, force=force)
    record = {} if target is None else {target: evaluation.dump()}
    write_together(record | {folder / CARD: f"{start}{BEGIN}\n{_measured(evaluation)}\n{END}{end}"}, force=True)


def require_card(folder: Path) -> None:
    """Refuse a folder whose card cannot take an evaluation, before any time is spent."""
    if not (folder / MANIFEST).is_file():
        raise UsageError(
            f"{folder} was not written by optin prune (it has no {MANIFEST}), so it has no card to update.",
            hint="Leave out --card, or evaluate the cut folder.",
        )
    text = (folder / CARD).read_text(encoding="utf-8") if (folder / CARD).is_file() else ""
    if not 0 <= text.find(BEGIN) < text.find(END):
        raise ArtifactError(
            f"{folder / CARD} does not say where measured numbers go: the line {BEGIN}, with {END} behind it.",
            hint="Put both lines back, or cut the model again for a new card.",
        )


def _front(original: Mapping[str, Any], library: str, pipeline: str | None, name: str) -> str:
    from huggingface_hub import ModelCardData

    front: dict[str, Any] = {"library_name": library, "pipeline_tag": pipeline}
    front |= {key: original[key] for key in CARRIED if original.get(key) is not None}
    if name.count("/") == 1:  # an id on the hub; the name of a folder would lead nowhere
        front["base_model"] = name
    return f"{ModelCardData(**front, tags=['optin', 'pruned']).to_yaml()}\n"


def _with_results(text: str, evaluation: Evaluation) -> str:
    """A card whose front matter holds the metrics as the model hub shows them; as it was if that cannot be read."""
    from huggingface_hub import ModelCardData

    found = FRONT.match(text)
    front = None if found is None else _parse_front(found[1])
    if found is None or not isinstance(front, dict):
        return text
    front.pop("model-index", None)
    results = _results(evaluation, front.get("pipeline_tag"))
    if results:
        front |= {"model_name": evaluation.inputs["checkpoint"].name, "eval_results": results}
    return f"---\n{ModelCardData(**front).to_yaml()}\n---\n{text[found.end() :]}"


def _parse_front(text: str) -> Any:
    """Front matter as a mapping; None where it cannot be read."""
    import yaml

    try:
        return yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError):
        return None


def _results(evaluation: Evaluation, pipeline: str | None) -> list[Any]:
    """The metrics of an evaluation, for the front matter."""
    from huggingface_hub import EvalResult

    data, name = evaluation.inputs.get("data"), evaluation.task
    task = load_task(name) if name in task_names() else None
    own = None if task is None or data is None or data.name != task.name else task.dataset
    return [
        EvalResult(
            task_type=pipeline or name or "other",
            dataset_type=own.path if own is not None else data.name,
            dataset_name=data.name,
            dataset_config=None if own is None else own.config,
            dataset_split=evaluation.split,
            metric_type=metric,
            metric_value=round(value, 6),
        )
        for metric, value in evaluation.metrics.items()
        if data is not None
    ]


def _plain(name: str) -> str:
    """A name as text of Markdown, without markup that it may hold."""
    return MARKUP.sub(lambda found: f"&#{ord(found[0])};", escape(name, quote=False).replace("\n", " "))


def _code(name: str) -> str:
    """A name inside a span of code."""
    return name.replace("`", "'").replace("\n", " ")


def _licence(front: Mapping[str, Any], files: Sequence[str]) -> str:
    found = front.get("license_name") or front.get("license")
    said = f"That of the original: `{_code(str(found))}`." if found else "That of the original, whose card names none."
    return said + (f" See {', '.join(f'[{_plain(name)}]({quote(name)})' for name in files)}." if files else "")


def _budget(budget: Budget) -> str:
    """What was asked and what is reached, as far as that is known."""
    asked = ", ".join(f"{share:g} of the {name}" for name, share in budget.asked.items())
    reached = ", ".join(f"{share:.4f} of the {name}" for name, share in budget.reached.items())
    sentences = [*([f"Asked: {asked}."] if asked else []), f"Reached: {reached}."]
    if unknown := [name for name in budget.asked if name not in budget.reached]:
        sentences.append(f"The {', '.join(unknown)} is not known: the mask was edited after the search.")
    return " ".join(sentences)


def _recipe(manifest: Manifest) -> str:
    """What decided, and on which data, as far as the manifest says."""
    options = {key: value for key, value in manifest.options.items() if key not in INNER_OPTIONS or value}
    recipe, criterion = options.pop("recipe", None), options.pop("criterion", None)
    lines = [] if recipe is None else [f"Recipe: `{recipe}`."]
    lines += [] if criterion is None else [f"Importance of units: criterion `{criterion}`."]
    sources = (("architecture", "Units as described by"), ("scoring", "Scored on"), ("calibration", "Refitted on"))
    for role, what in sources:
        if role in manifest.inputs:
            source = manifest.inputs[role]
            lines.append(f"{what} `{source.name}` (sha256 `{source.sha256[:12]}…`).")
    if manifest.refit is not None:
        kept, whole = sum(refit.kept for refit in manifest.refit.values()), len(manifest.refit)
        lines.append(f"Least squares solved {kept} of {whole} consumers anew; the others keep their weights.")
    else:
        lines.append("No refit: the kept weights are those of the original.")
    listed = ", ".join(f"`{key}` {_value(value)}" for key, value in options.items())
    return "\n".join([*lines, f"Options: {listed}." if listed else ""]).rstrip()


def _value(value: object) -> str:
    """The value of an option."""
    if isinstance(value, list):
        return _plain(", ".join(map(str, value))) or "none"
    if isinstance(value, dict):
        return _plain(", ".join(f"{key} {inner}" for key, inner in value.items()))
    return "default" if value is None else _plain(str(value))


def _groups(groups: Mapping[str, GroupMask]) -> str:
    """A row per layer and a column per kind of unit; folded where it is long."""
    rows: dict[str, dict[str, str]] = {}
    for name, group in groups.items():
        layer, _, kind = name.rpartition(".")
        rows.setdefault(layer, {})[kind] = f"{len(group.kept):,} of {group.units:,}"
    kinds = list(dict.fromkeys(kind for row in rows.values() for kind in row))
    lines = [f"| kept in | {' | '.join(kinds)} |", "|---" * (len(kinds) + 1) + "|"]
    lines += [f"| {layer} | {' | '.join(row.get(kind, '') for kind in kinds)} |" for layer, row in rows.items()]
    table = "\n".join(lines)
    if len(rows) <= FOLDED:
        return table
    return f"<details>\n<summary>What {len(rows)} layers keep</summary>\n\n{table}\n\n</details>"


def _rows(evaluation: Evaluation) -> list[tuple[str, str, str, str, str]]:
    """What was measured, on what, before, after, and the change."""
    other = evaluation.against
    rows = []
    data = evaluation.inputs.get("data")
    conditions = "" if data is None else f"{data.name}, {evaluation.samples:,} samples"
    for name, value in evaluation.metrics.items():
        first = evaluation.metric is not None and name == evaluation.metric.name
        after = with_error(value, evaluation.standard_error if first else None)
        before = None if other is None else other.known_metrics.get(name)
        change = "" if before is None else f"{value - before:+.4f}"
        if first and other is not None and other.drop_error is not None and not other.relative_drop:
            change += f" ± {other.drop_error:.4f}"
        rows.append((name, conditions, "" if before is None else f"{before:.4f}", after, change))
    if other is not None and other.agreement is not None:
        rows.append(("agreement of both", conditions, "", f"{other.agreement:.4f}", ""))
    if evaluation.latency is not None:
        latency, ratio = evaluation.latency, other.latency_ratio if other is not None else None
        speed = f"batch {latency.batch_size}, {latency.shape}, median of {latency.runs} runs"
        before_ms, change = (f"{latency.median_ms / ratio:.4g}", f"ratio {ratio:.3f}") if ratio else ("", "")
        rows.append(("latency, ms", speed, before_ms, f"{latency.median_ms:.4g}", change))
    if evaluation.generation is not None:
        for name, mine, theirs, ratio in evaluation.generation.rows(other.generation if other is not None else None):
            rows.append((name, "", theirs, mine, "" if ratio is None else f"ratio {ratio:.3f}"))
    return rows


def _measured(evaluation: Evaluation) -> str:
    task = f", task `{evaluation.task}`" if evaluation.task else ""
    # Names of processors are long: beside the table, not in it.
    timed = "" if evaluation.latency is None else f" Latency was measured on {evaluation.latency.timed_on}."
    if evaluation.latency is None and evaluation.generation is not None:
        timed = f" Generation was timed on {evaluation.generation.timed_on}."
    lines = [f"| {' | '.join(row)} |" for row in _rows(evaluation)]
    if not lines:
        return UNMEASURED
    return MEASURED.format(version=evaluation.optin_version, task=task, timed=timed, rows="\n".join(lines))
