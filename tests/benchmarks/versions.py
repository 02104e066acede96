"""Pruned folders of every family under other versions of the library that loads them: do they compute the same?

    python tests/benchmarks/versions.py [--library-at NAME=DIR]... [--families NAME]...

Writes tiny pruned models of every family with the installed optin, then loads each with every version in a process of
its own, where optin cannot be imported, and compares outputs. DIR is a folder into which a version of transformers or
of timm was installed, with what it needs beside torch; NAME is what the table calls it:

    pip install --no-deps --target DIR transformers==4.44.2 tokenizers==0.19.1 huggingface_hub==0.24.7 requests \\
        idna charset-normalizer urllib3 certifi
    pip install --no-deps --target DIR timm==1.0.9

Every family is cut in up to four ways: units of every kind; layers that keep none; narrower queries and keys; tokens
that merge. Prints a table of families on stderr and JSON of every cut on stdout. The exit status is 1 if a folder
computes something else, or fails without naming the version that it needs.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from helpers.masks import make_mask
from helpers.models import (
    DECODERS,
    FAMILIES,
    HEADS,
    IMAGES,
    OTHER_HEADS,
    random_dims,
    random_kept,
    save_checkpoint,
    save_images,
)

import optin_cli
from optin_cli.artifacts.mask import GroupMask, Mask
from optin_cli.checkpoints.checkpoint import Checkpoint
from optin_cli.checkpoints.checkpoint import load as load_checkpoint
from optin_cli.checkpoints.verify import run_probe, tolerance_for
from optin_cli.model.tokens import tokens_of

FACTS, INPUTS, OUTPUTS = "facts.json", "inputs.safetensors", "outputs.safetensors"
LIBRARIES = ("transformers", "timm")
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "rope_theta": 500.0}
LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}
WINDOW = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
ROTATED = {"full_attention": {"rope_theta": 700.0}, "sliding_attention": {"rope_theta": 300.0}}
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "llama": {
        "": {"rope_theta": 500.0},
        "linear RoPE": {"rope_parameters": LINEAR},
        "YaRN": {"rope_parameters": YARN},
        "wide heads": {"head_dim": 8},
        "biases": {"attention_bias": True, "mlp_bias": True},
    },
    "qwen2": {
        "": {"rope_theta": 500.0},
        "linear RoPE": {"rope_parameters": LINEAR},
        "YaRN": {"rope_parameters": YARN},
        "window": WINDOW,
    },
    "modernbert": {"": {}, "RoPE": {"rope_parameters": ROTATED}},
    "vit": {"": {}, "base": {"head": "ViTModel"}},
    "swin": {"": {}, "base": {"head": "SwinModel"}},
    "upernet-swin": {"": {"auxiliary_in_channels": 64}},
    "upernet-convnext": {"": {"auxiliary_in_channels": 16}},
}
"""Settings that no version of the library has as its default, or that some cannot do without, by what to call them."""
USUAL = ("classes", "next")
"""Heads that go without saying."""
NAMED = re.compile(r"needs (\w+) ([<>=]{1,2}[\d.]+)")
LOAD = """
import contextlib, importlib, json, os, sys, tempfile, traceback, warnings
sys.modules["optin_cli"] = None
warnings.simplefilter("ignore")
library, *folders = sys.argv[1:]
import torch
from safetensors.torch import load_file
torch.set_num_threads(1)  # a process of several threads cannot be forked safely
importlib.import_module(library)

def load(folder, facts):
    if library == "timm":
        sys.path.insert(0, folder + "/model")
        import modeling_optin
        return modeling_optin.load_model()
    import transformers
    auto_class = getattr(transformers, facts["auto_class"])
    model, report = auto_class.from_pretrained(folder + "/model", trust_remote_code=True, output_loading_info=True)
    for what in ("missing_keys", "mismatched_keys"):
        if report[what]:
            sys.exit(f"{what}: {sorted(report[what])[:4]}")
    return model.eval()

def compare(folder):
    with open(folder + "/facts.json") as stream:
        facts = json.load(stream)
    model = load(folder, facts)
    inputs, expected = load_file(folder + "/inputs.safetensors"), load_file(folder + "/outputs.safetensors")
    with torch.no_grad():
        found = model(**inputs)
    found = {"logits": found} if isinstance(found, torch.Tensor) else found
    real = inputs.get("attention_mask", torch.ones(())).bool()  # what stands at padding is nobody's output
    apart = [(found[name] - value).abs() for name, value in expected.items()]
    print(float(torch.stack([(a[real] if a.shape[:real.dim()] == real.shape else a).max() for a in apart]).max()))

def prepare(folder):
    with open(folder + "/facts.json") as stream, contextlib.suppress(ImportError):
        importlib.import_module(json.load(stream)["module"])  # children then have it already
    if library == "transformers":
        import transformers.dynamic_module_utils

for folder in folders:
    prepare(folder)
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as printed:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.dup2(said.fileno(), 2)
                os.dup2(printed.fileno(), 1)
                compare(folder)
                status = 0
            except SystemExit as stop:
                print(stop.code, file=sys.stderr)
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said.seek(0)
        printed.seek(0)
        last = [line for line in said.read().splitlines() if line.strip()][-1:]
        failed = {"error": last[0] if last else f"status {status}"}
        answer = failed if status else {"difference": float(printed.read())}
    print(json.dumps([folder, answer]), flush=True)
"""


def reload_here(folder: Path, loading: str, inputs: Mapping[str, torch.Tensor], names: Any) -> dict[str, torch.Tensor]:
    """In place of a certificate's fresh process, which every folder has below; causal models generate here too."""
    model = load_checkpoint(folder, device="cpu").model
    _, found, wrapping = loading.partition("\nclass ")
    if not found:
        return run_probe(model, inputs, names)
    scope = {"model": model, "torch": torch, "transformers": transformers}
    exec(found + wrapping, scope)
    with torch.no_grad():
        outputs = scope["model"](**inputs)
    return {name: outputs[name] for name in names}


@dataclass(frozen=True)
class Case:
    """A tiny model: its family, its head (None for images, where settings say it) and its settings by their name."""

    family: str
    head: str | None
    setting: str
    values: Mapping[str, Any]

    @property
    def name(self) -> str:
        """What the table calls it."""
        return ", ".join(part for part in (self.family, self.head, self.setting) if part and part not in USUAL)

    def save(self, root: Path) -> Path:
        """Write it; returns the folder."""
        if self.head is None:
            return save_images(root / self.name, self.family, **self.values)
        return save_checkpoint(root / self.name, self.family, self.head, **self.values)


def cases(library: str) -> Iterator[Case]:
    """All families, heads and settings of a library."""
    heads = [("bert", head) for head in (HEADS | OTHER_HEADS)]
    heads += [(family, "masked") for family in FAMILIES if family != "bert"]
    heads += [(family, "pretraining") for family in ("albert", "electra")]
    usual: list[tuple[str, str | None]] = [(family, None) for family, found in IMAGES.items() if found[0] == library]
    if library == "transformers":
        usual += [*((family, "classes") for family in FAMILIES), *((family, "next") for family in DECODERS)]
        yield from (Case(family, head, "", {}) for family, head in heads if head != "classes")
    for family, head in usual:
        for setting, values in SETTINGS.get(family, {"": {}}).items():
            yield Case(family, head, setting, values)


def masks(checkpoint: Checkpoint) -> Iterator[tuple[str, dict[str, list[int]]]]:
    """What stays, by the way of cutting."""
    structure = checkpoint.structure
    half = random_kept(structure, 1)
    yield "units", half
    if empty := [group.name for group in structure.groups if group.least == 0]:
        yield "emptied", half | {name: [] for name in (empty[0], *empty[2:][-1:])}
    if dims := random_dims(structure, 1):
        yield "narrow", half | dims
    if (tokens := tokens_of(structure)) is not None and (most := tokens.mergeable) > 1:
        yield "merged", half | {name: list(range(most - 2)) for name in tokens.units}


def write(library: str, wanted: list[str], root: Path) -> list[Path]:
    """Pruned folders with inputs and what the model in memory makes of them."""
    folders = []
    for case in cases(library):
        if wanted and case.family not in wanted:
            continue
        checkpoint = load_checkpoint(case.save(root / "whole"), device="cpu")
        for way, kept in masks(checkpoint):
            folder = root / f"{case.name}: {way}"
            folder.mkdir()
            optin_cli.prune(checkpoint, mask_of(checkpoint, kept), folder / "model", reload=reload_here)
            inputs, names = checkpoint.input.probe(None), [rule.name for rule in checkpoint.structure.outputs]
            outputs = run_probe(load_checkpoint(folder / "model", device="cpu").model, inputs, names)
            save_file(dict(inputs), folder / INPUTS)
            save_file({key: value.contiguous() for key, value in outputs.items()}, folder / OUTPUTS)
            facts = {
                "auto_class": checkpoint.blueprint.auto_class,
                "module": type(checkpoint.model).__module__,
                "tolerance": tolerance_for(outputs),
            }
            (folder / FACTS).write_text(json.dumps(facts), encoding="utf-8")
            folders.append(folder)
        print(case.name, file=sys.stderr, flush=True)
    return folders


def mask_of(checkpoint: Checkpoint, kept: Mapping[str, list[int]]) -> Mask:
    """A mask of units of any kind."""
    units = checkpoint.structure.units
    groups = {name: GroupMask(units=units[name], kept=list(units_kept)) for name, units_kept in kept.items()}
    return make_mask(checkpoint).model_copy(update={"groups": groups})


def load_all(library: str, path: str | None, folders: list[Path], scratch: Path) -> dict[str, dict[str, Any]]:
    """What every folder computes with the version that lies at `path`, the installed one where None."""
    if not folders:
        return {}
    environment = {
        **os.environ,
        "PYTHONPATH": path or "",
        "HF_MODULES_CACHE": str(scratch / "modules"),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    print(f"loading with {library} at {path or 'its usual place'}", file=sys.stderr, flush=True)
    line = [sys.executable, "-c", LOAD, library, *map(str, folders)]
    done = subprocess.run(line, env=environment, cwd=scratch, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{library} at {path} does not start:\n{done.stderr}")
    return {Path(folder).name: answer for folder, answer in map(json.loads, done.stdout.splitlines())}


@dataclass(frozen=True)
class Outcome:
    """What came of one folder in one version: whether that is as it should be, and the same in words."""

    good: bool
    words: str
    difference: float | None = None


def outcome(library: str, answer: Mapping[str, Any], tolerance: float) -> Outcome:
    """An answer judged: outputs must be equal, or a message name the version that is needed."""
    if "error" in answer:
        found = NAMED.search(answer["error"])
        named = found is not None and found[1] == library
        return Outcome(named, f"needs {found[2]}" if found is not None and named else answer["error"])
    difference = answer["difference"]
    good = difference <= tolerance
    return Outcome(good, "equal" if good else f"off by {difference:.1e}", difference if good else None)


def cell(outcomes: Mapping[str, Outcome]) -> str:
    """What came of all cuts of one model in one version, by cut."""
    ways: dict[str, list[str]] = {}
    for way, found in outcomes.items():
        ways.setdefault(("" if found.good else "WRONG: ") + found.words, []).append(way)
    largest = max((found.difference for found in outcomes.values() if found.difference is not None), default=0.0)
    words = {text: f"equal ({largest:.0e})" if text == "equal" else text for text in ways}
    if len(ways) == 1:
        return words[next(iter(ways))]
    return "; ".join(f"{', '.join(cuts)}: {words[text]}" for text, cuts in ways.items())


def library_in(folder: str) -> str:
    """Which library was installed into a folder."""
    found = next((name for name in LIBRARIES if (Path(folder) / name).is_dir()), None)
    if found is None:
        sys.exit(f"{folder} holds neither of {', '.join(LIBRARIES)}: pip install --target {folder} …")
    return found


def compare(library: str, paths: Mapping[str, str | None], wanted: list[str]) -> tuple[Table, dict[str, Any], bool]:
    """Table, record and whether all is as it should be of one library. paths: of its versions."""
    with tempfile.TemporaryDirectory() as scratch:
        folders = write(library, wanted, Path(scratch))
        answers = {version: load_all(library, at, folders, Path(scratch)) for version, at in paths.items()}
        tolerances = {folder.name: json.loads((folder / FACTS).read_text())["tolerance"] for folder in folders}
    table = Table(title=f"Pruned folders by version of {library}: largest difference of outputs, or what they need")
    for heading in ("family", *paths):
        table.add_column(heading, overflow="fold")
    rows: dict[str, dict[str, dict[str, Outcome]]] = {}
    for name, tolerance in tolerances.items():
        model, _, way = name.partition(": ")
        for version in paths:
            found = outcome(library, answers[version][name], tolerance)
            rows.setdefault(model, {}).setdefault(version, {})[way] = found
    for model, row in rows.items():
        table.add_row(model, *(cell(row[version]) for version in paths))
    good = all(found.good for row in rows.values() for each in row.values() for found in each.values())
    return table, {"tolerances": tolerances, "answers": answers}, good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library-at", action="append", default=[], metavar="NAME=DIR")
    parser.add_argument("--families", action="append", default=[], metavar="NAME")
    asked = parser.parse_args()
    paths: dict[str, dict[str, str | None]] = {library: {} for library in LIBRARIES}
    for name, folder in (text.split("=", 1) for text in asked.library_at):
        paths[library_in(folder)][name] = folder
    records, well = {}, True
    for library in LIBRARIES:
        paths[library][f"{importlib.metadata.version(library)} (installed)"] = None
        table, records[library], good = compare(library, paths[library], asked.families)
        well = well and good
        if table.row_count:
            Console(stderr=True, width=160).print(table)
    print(json.dumps(records, indent=2))
    return int(not well)


if __name__ == "__main__":
    sys.exit(main())
