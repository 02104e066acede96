"""Export a checkpoint as a file that a runtime runs, with a record beside it.

The runtime runs the file in a fresh process where optin cannot be imported, on several shapes; its outputs must
be those of the model in memory, or nothing is written.
"""

import copy
import importlib.metadata
import inspect
import math
import platform
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from optin_cli.artifacts.base import Source
from optin_cli.artifacts.export import Export, ExportCertificate, ExportProbe, TensorRule
from optin_cli.checkpoints.batching import Inputs
from optin_cli.checkpoints.checkpoint import Checkpoint, as_checkpoint
from optin_cli.checkpoints.fresh import run_fresh
from optin_cli.checkpoints.libraries.registry import CONFIG
from optin_cli.checkpoints.save import carry_files
from optin_cli.checkpoints.verify import largest_difference, require_equal, run_probe, tolerance_for
from optin_cli.errors import CertificateError
from optin_cli.exporting.registry import Target, Traced, check_place, place_of, record_of, target_named
from optin_cli.exporting.trace import export_probes, silenced, trace
from optin_cli.files import OutputError, atomic_files, sha256_of
from optin_cli.model.costs import count_totals
from optin_cli.options.export import ExportOptions
from optin_cli.progress import SILENT, Progress
from optin_cli.version import __version__

RUN = """from __future__ import annotations
import sys
sys.modules["optin_cli"] = None
import numpy
from safetensors.numpy import load_file, save_file
{source}
path, feed, result, threads = sys.argv[1:5]
run = open_file(path, int(threads))
probes = {{}}
for key, array in load_file(feed).items():
    number, _, name = key.partition("/")
    probes.setdefault(number, {{}})[name] = array
found = {{}}
for number, inputs in probes.items():
    for name, array in run(inputs).items():
        found[f"{{number}}/{{name}}"] = numpy.ascontiguousarray(array)
save_file(found, result)
"""
"""Runs a file on the arrays "NUMBER/INPUT" of a safetensors file, and stores "NUMBER/OUTPUT"."""


def export(
    checkpoint: Checkpoint | str | Path,
    to: str,
    output: str | Path | None = None,
    *,
    options: ExportOptions | None = None,
    force: bool = False,
    progress: Progress = SILENT,
) -> Export:
    """Write a checkpoint as a file that a runtime runs, certified against the model in memory in a fresh process.

    Args:
        to: a target: onnx, torch-export or openvino.
        output: the file, or its folder, which is made if its parent exists; outside the checkpoint's own folder,
            config, tokenizer and processor are put beside it. Where none is given, the checkpoint's own folder, if
            that is how it was given, else a folder named after both.
        force: replace an earlier export.

    Raises:
        ExportError: a package is missing, or the model cannot be expressed.
        CertificateError: the runtime computes something else, or fails; nothing is written.
        UsageError: the target has no such opset.
    """
    target, options = target_named(to), options or ExportOptions()
    target.require_writing(options.opset, int8=options.int8)
    beside = None if isinstance(checkpoint, Checkpoint) or not Path(checkpoint).is_dir() else checkpoint
    opened = as_checkpoint(checkpoint, "cpu")
    given = Path(output or beside or f"{opened.name.rpartition('/')[2]}-{target.name}")
    path = place_of(given, target, int8=options.int8)
    check_place(path, force=force)
    _check_sibling_config(opened, path)
    if opened.device.type != "cpu":  # the device of a model's constants would be written into the file
        opened = replace(opened, model=copy.deepcopy(opened.model).to("cpu"))
    options = replace(options, seq_len=opened.input.length(options.seq_len))
    takes = opened.input.names()
    probes = export_probes(opened, takes)
    file = path.name
    with atomic_files(path.parent, last=record_of(path).name) as folder, tempfile.TemporaryDirectory() as scratch:
        exact = Path(scratch) / file if options.int8 else folder / file
        progress.update(0, 3, "tracing")
        with silenced():
            traced = trace(opened, takes, probes[0])
            progress.update(1, 3, f"writing {target.name}")
            opset = target.write(traced, exact, options.opset)
        progress.update(2, 3, "certifying in a fresh process")
        proofs = [certify_export(opened, target, exact, traced, probes)]
        if options.int8:
            progress.update(2, 3, "storing weights as int8")
            with silenced():
                _quantize(opened, target, exact, folder / file, probes[0])
            proofs.append(certify_export(opened, target, folder / file, traced, probes, exact=False))
        record = _record(opened, target, traced, probes[0], folder / file, opset, proofs, options)
        (folder / record_of(path).name).write_text(record.dump(), encoding="utf-8")
        _copy_sidecar_files(opened, path.parent, folder)
    return record


def _quantize(checkpoint: Checkpoint, target: Target, source: Path, path: Path, example: Inputs) -> None:
    """Write a file with int8 weights of a checkpoint that was written as `source` in float32."""
    if target.int8.file is not None:
        target.int8.file(source, path)
    if target.int8.model is not None:
        model = copy.deepcopy(checkpoint.model)
        target.int8.model(model)
        target.write(trace(replace(checkpoint, model=model), checkpoint.input.names(), example), path, None)


def _record(
    checkpoint: Checkpoint,
    target: Target,
    traced: Traced,
    example: Inputs,
    path: Path,
    opset: int | None,
    proofs: Sequence[ExportCertificate],
    options: ExportOptions,
) -> Export:
    """The record of a file, which is alone with its weights in its folder.

    Args:
        example: the inputs that were traced. proofs: certificates, the file's own last.
    """
    takes, blueprint = checkpoint.input, checkpoint.blueprint
    files = sorted(path.parent.iterdir(), key=lambda file: (file.name != path.name, file.name))
    workload = takes.workload(options.seq_len)
    quantizing = target.int8.needs if options.int8 else ()
    packages = sorted({"torch", blueprint.library, *target.writes_with, *target.runs_with, *quantizing})
    return Export(
        optin_version=__version__,
        options={
            **({} if options.opset is None else {"opset": options.opset}),
            **({"int8": True} if options.int8 else {}),
        },
        inputs={**checkpoint.sources, "config": Source(name=CONFIG, sha256=sha256_of(blueprint.identity))},
        target=target.name,
        files={file.name: sha256_of(file) for file in files},
        family=checkpoint.structure.family,
        model_class=blueprint.model_class,
        auto_class=blueprint.auto_class,
        takes=_input_rules(traced, example),
        gives=_output_rules(traced, run_probe(checkpoint.model, example, traced.gives)),
        reserved_positions=takes.reserved,
        opset=opset,
        workload=workload,
        totals=count_totals(checkpoint.model, takes.example(workload), sum(file.stat().st_size for file in files)),
        certificate=proofs[-1],
        unquantized=proofs[0] if len(proofs) > 1 else None,
        versions={"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in packages}},
    )


def certify_export(
    checkpoint: Checkpoint,
    target: Target,
    path: Path,
    traced: Traced,
    probes: Sequence[Inputs],
    *,
    exact: bool = True,
) -> ExportCertificate:
    """Compare a file and the model on all probes, in a fresh process.

    Raises:
        CertificateError: the file does not run, or gives outputs of other shapes, or none that are numbers; or, if it
            is to be `exact`, ones that differ.
    """
    expected = [run_probe(checkpoint.model, probe, traced.gives) for probe in probes]
    with tempfile.TemporaryDirectory() as scratch:
        feed, result = Path(scratch) / "inputs.safetensors", Path(scratch) / "outputs.safetensors"
        save_file({f"{n}/{k}": t.contiguous() for n, probe in enumerate(probes) for k, t in probe.items()}, feed)
        arguments = [str(path.resolve()), str(feed), str(result), str(torch.get_num_threads())]
        code = RUN.format(source=inspect.getsource(target.open))
        run_fresh(code, arguments, Path(scratch), f"The exported file does not run ({target.runtime})")
        found = load_file(result)
    tolerance = max(map(tolerance_for, expected)) if exact else None
    records = []
    for number, (probe, outputs) in enumerate(zip(probes, expected, strict=True)):
        shape = tuple(probe[traced.takes[0]].shape)
        mask = probe.get("attention_mask")
        given = {name: found[f"{number}/{name}"] for name in outputs}
        if any(given[name].shape != tensor.shape for name, tensor in outputs.items()):
            raise CertificateError(f"The exported file gives outputs of other shapes for inputs of {shape}.")
        difference = largest_difference(outputs, given)
        require_equal(
            f"The exported file in {target.runtime} against the model, inputs of {shape}",
            difference,
            math.inf if tolerance is None else tolerance,
            "The exporter or the runtime is at fault: try another --opset, or another --to.",
        )
        padded = mask is not None and not bool(mask.all())
        length = None if mask is None else shape[-1]
        records.append(ExportProbe(batch_size=shape[0], seq_len=length, padded=padded, difference=difference))
    return ExportCertificate(
        loader=f"{target.runtime} in a fresh process without optin",
        probes=records,
        difference=max(probe.difference for probe in records),
        tolerance=tolerance,
    )


def _input_rules(traced: Traced, example: Mapping[str, torch.Tensor]) -> dict[str, TensorRule]:
    return {
        name: TensorRule(
            dtype=_dtype(example[name]),
            shape=[traced.axes[name].get(axis, length) for axis, length in enumerate(example[name].shape)],
        )
        for name in traced.takes
    }


def _output_rules(traced: Traced, outputs: Mapping[str, torch.Tensor]) -> dict[str, TensorRule]:
    """Rows come first; the program's own symbols show whether a second axis is the sequence or a width."""
    inner = [*traced.program.graph.nodes][-1].args[0]
    rules: dict[str, TensorRule] = {}
    for name, node in zip(traced.gives, inner, strict=True):
        lengths = node.meta["val"].shape
        shape = [n if isinstance(n, int) else ("batch", "length")[axis] for axis, n in enumerate(lengths)]
        rules[name] = TensorRule(dtype=_dtype(outputs[name]), shape=shape)
    return rules


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _check_sibling_config(checkpoint: Checkpoint, path: Path) -> None:
    """Refuse a folder that holds another checkpoint: its config and tokenizer would be read beside this model."""
    config = path.parent / CONFIG
    if config.is_file() and config.read_bytes() != checkpoint.blueprint.identity:
        raise OutputError(
            f"{path.parent} holds another checkpoint's {CONFIG}, so {path.name} would be read with that.",
            hint="Pass -o with a folder of its own.",
        )


def _copy_sidecar_files(checkpoint: Checkpoint, folder: Path, staged: Path) -> None:
    """Put config, tokenizer and processor into `staged`, where `folder` lacks them."""
    if not (folder / CONFIG).is_file():
        (staged / CONFIG).write_bytes(checkpoint.blueprint.identity)
    carry_files(checkpoint, staged, folder)
