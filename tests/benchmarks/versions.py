"""Pruned folders of every family under other versions of the library that loads them: do they compute the same?

    python tests/benchmarks/versions.py [--library timm] [--library-at VERSION=DIR]... [--families NAME]...

Writes tiny pruned models of every family with the installed optin, then loads each with every version in a process of
its own, where optin cannot be imported, and compares outputs. DIR is a folder into which that version was installed,
with what it needs beside torch:

    pip install --no-deps --target DIR transformers==4.44.2 tokenizers==0.19.1 huggingface_hub==0.24.7 requests \\
        idna charset-normalizer urllib3 certifi

Every family is cut in up to four ways: units of every kind; layers that keep none; narrower queries and keys; tokens
that merge. Prints a table on stderr and JSON on stdout; the exit status is 1 if a folder computes something else, or
fails without naming the version that it needs.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
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
UNUSUAL = {
    **{name: {"rope_theta": 500.0} for name in DECODERS},
    "upernet-swin": {"auxiliary_in_channels": 64},
    "upernet-convnext": {"auxiliary_in_channels": 16},
}
"""Settings that no version of the library has as its default, or that some cannot do without."""
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
    with torch.no_grad():
        found = model(**load_file(folder + "/inputs.safetensors"))
    found = {"logits": found} if isinstance(found, torch.Tensor) else found
    expected = load_file(folder + "/outputs.safetensors")
    print(max(float((found[name] - expected[name]).abs().max()) for name in expected))

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
    """In place of a certificate's fresh process: every folder is loaded in one below."""
    del loading
    return run_probe(load_checkpoint(folder, device="cpu").model, inputs, names)


def checkpoints(library: str, wanted: list[str], root: Path) -> Iterator[tuple[str, Checkpoint]]:
    """Tiny models of every family and head by name."""
    makers: dict[str, Callable[[Path], Path]] = {}
    if library == "transformers":
        makers |= {name: lambda folder, f=name: save_checkpoint(folder, f) for name in FAMILIES}
        makers |= {f"bert {head}": lambda folder, h=head: save_checkpoint(folder, "bert", h) for head in HEADS}
        makers |= {name: lambda folder, f=name: save_checkpoint(folder, f, "next", **UNUSUAL[f]) for name in DECODERS}
    makers |= {
        name: lambda folder, f=name: save_images(folder, f, **UNUSUAL.get(f, {}))
        for name, (owner, *_) in IMAGES.items()
        if owner == library
    }
    for name, make in makers.items():
        if not wanted or name in wanted:
            yield name, load_checkpoint(make(root / name), device="cpu")


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
    for name, checkpoint in checkpoints(library, wanted, root / "whole"):
        for way, kept in masks(checkpoint):
            folder = root / f"{name}, {way}"
            folder.mkdir()
            mask = mask_of(checkpoint, kept)
            optin_cli.prune(checkpoint, mask, folder / "model", reload=reload_here)
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
            print(folder.name, file=sys.stderr, flush=True)
    return folders


def mask_of(checkpoint: Checkpoint, kept: Mapping[str, list[int]]) -> Mask:
    """A mask of units of any kind."""
    units = checkpoint.structure.units
    groups = {name: GroupMask(units=units[name], kept=list(units_kept)) for name, units_kept in kept.items()}
    return make_mask(checkpoint).model_copy(update={"groups": groups})


def load_all(library: str, path: str | None, folders: list[Path], scratch: Path) -> dict[str, dict[str, Any]]:
    """What every folder computes with the version that lies at `path`, the installed one where None."""
    environment = {
        **os.environ,
        "PYTHONPATH": path or "",
        "HF_MODULES_CACHE": str(scratch / "modules"),
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    line = [sys.executable, "-c", LOAD, library, *map(str, folders)]
    done = subprocess.run(line, env=environment, cwd=scratch, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{library} at {path} does not start:\n{done.stderr}")
    return {Path(folder).name: answer for folder, answer in map(json.loads, done.stdout.splitlines())}


def cell(library: str, answer: Mapping[str, Any], tolerance: float) -> tuple[bool, str]:
    """Whether a folder does what it should, and what it does."""
    if "error" in answer:
        return f"needs {library}" in answer["error"], answer["error"]
    return answer["difference"] <= tolerance, f"{answer['difference']:.1e}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", choices=["transformers", "timm"], default="transformers")
    parser.add_argument("--library-at", action="append", default=[], metavar="VERSION=DIR")
    parser.add_argument("--families", action="append", default=[], metavar="NAME")
    asked = parser.parse_args()
    paths: dict[str, str | None] = dict(text.split("=", 1) for text in asked.library_at)
    paths[f"{importlib.metadata.version(asked.library)} (installed)"] = None
    with tempfile.TemporaryDirectory() as scratch:
        folders = write(asked.library, asked.families, Path(scratch))
        answers = {version: load_all(asked.library, at, folders, Path(scratch)) for version, at in paths.items()}
        tolerances = {folder.name: json.loads((folder / FACTS).read_text())["tolerance"] for folder in folders}
    table = Table(title=f"pruned folders by version of {asked.library}: largest difference of outputs")
    for heading in ("family, cut", *paths):
        table.add_column(heading, overflow="fold")
    wrong = 0
    for name, tolerance in tolerances.items():
        cells = [cell(asked.library, answers[version][name], tolerance) for version in paths]
        wrong += sum(not good for good, _ in cells)
        table.add_row(name, *(text if good else f"WRONG: {text}" for good, text in cells))
    Console(stderr=True, width=200).print(table)
    print(json.dumps({"library": asked.library, "tolerances": tolerances, "answers": answers}, indent=2))
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
