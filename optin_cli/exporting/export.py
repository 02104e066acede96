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
from optin_cli.exporting.registry import (
    FLOAT16,
    Prove,
    Signature,
    Target,
    check_place,
    place_of,
    record_of,
    target_named,
)
from optin_cli.exporting.trace import LENGTH, export_probes, silenced, trace
from optin_cli.files import OutputError, atomic_files, sha256_of
from optin_cli.model.costs import count_totals
from optin_cli.options.export import ExportOptions
from optin_cli.progress import SILENT, Progress
from optin_cli.version import __version__

FLOAT32 = "f32"
EXACT = (None, FLOAT32)
"""How weights are stored in files that must compute what the model does."""
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
        to: a target: onnx, torch-export, openvino or gguf.
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
    target.require_writing(options)
    beside = None if isinstance(checkpoint, Checkpoint) or not Path(checkpoint).is_dir() else checkpoint
    opened = as_checkpoint(checkpoint, "cpu")
    given = Path(output or beside or f"{opened.name.rpartition('/')[2]}-{target.name}")
    form = target.form(options)
    path = place_of(given, target, form)
    check_place(path, force=force)
    _check_sibling_config(opened, path)
    if opened.device.type != "cpu":  # the device of a model's constants would be written into the file
        opened = replace(opened, model=copy.deepcopy(opened.model).to("cpu"))
    options = replace(options, seq_len=opened.input.length(options.seq_len))
    probes = export_probes(opened, target.takes or opened.input.names())
    file = path.name
    with atomic_files(path.parent, last=record_of(path).name) as folder, tempfile.TemporaryDirectory() as scratch:
        exact = folder / file if form in EXACT else Path(scratch) / file
        progress.update(0, 3, f"writing {target.name}")
        with silenced():
            signature, opset = _write(opened, target, exact, probes[0], options)
        progress.update(2, 3, "certifying in a fresh process")
        prove = None if target.proving is None else target.proving(opened)
        proofs = [certify_export(opened, target, exact, signature, probes, prove=prove)]
        if form not in EXACT:
            progress.update(2, 3, f"storing weights as {form}")
            with silenced():
                _store_as(form, opened, target, exact, folder / file, probes[0])
            proofs.append(certify_export(opened, target, folder / file, signature, probes, exact=False, prove=prove))
        record = _record(opened, target, signature, probes[0], folder / file, opset, proofs, options)
        (folder / record_of(path).name).write_text(record.dump(), encoding="utf-8")
        _copy_sidecar_files(opened, path.parent, folder)
    return record


def _write(
    checkpoint: Checkpoint, target: Target, path: Path, example: Inputs, options: ExportOptions
) -> tuple[Signature, int | None]:
    """Write a file with float32 weights, and return what it takes and gives, and the opset that it is in."""
    if target.convert is not None:
        return target.convert(checkpoint, path, FLOAT32), None
    if target.write is None:
        raise TypeError(f"the target {target.name} has nothing that writes it")
    traced = trace(checkpoint, [*example], example)
    return traced, target.write(traced, path, options.opset)


def _store_as(
    form: str | None, checkpoint: Checkpoint, target: Target, exact: Path, path: Path, example: Inputs
) -> None:
    """Write a file with less exact weights than those of the float32 file `exact`."""
    if target.convert is not None and form is not None:
        target.convert(checkpoint, path, form)
    elif form == FLOAT16 and target.half is not None:
        target.half(exact, path)
    elif target.int8 is not None and target.int8.file is not None:
        target.int8.file(exact, path)
    elif target.int8 is not None and target.int8.model is not None and target.write is not None:
        model = copy.deepcopy(checkpoint.model)
        target.int8.model(model)
        target.write(trace(replace(checkpoint, model=model), [*example], example), path, None)


def _record(
    checkpoint: Checkpoint,
    target: Target,
    signature: Signature,
    example: Inputs,
    path: Path,
    opset: int | None,
    proofs: Sequence[ExportCertificate],
    options: ExportOptions,
) -> Export:
    """The record of a file, which is alone with its weights in its folder.

    Args:
        example: inputs that the file takes. proofs: certificates, the file's own last.
    """
    takes, blueprint = checkpoint.input, checkpoint.blueprint
    files = sorted(path.parent.iterdir(), key=lambda file: (file.name != path.name, file.name))
    workload = takes.workload(options.seq_len)
    libraries = {name: importlib.metadata.version(name) for name in ("torch", blueprint.library)}
    inputs = {**checkpoint.sources, "config": Source(name=CONFIG, sha256=sha256_of(blueprint.identity))}
    versions = libraries | target.versions(int8=options.int8)
    return Export(
        optin_version=__version__,
        options={
            **({} if options.opset is None else {"opset": options.opset}),
            **({"int8": True} if options.int8 else {}),
            **({"dtype": FLOAT16} if target.form(options) == FLOAT16 else {}),
            **({"gguf_type": target.form(options)} if target.types else {}),
        },
        inputs={role: source.published for role, source in inputs.items()},
        target=target.name,
        files={file.name: sha256_of(file) for file in files},
        family=checkpoint.structure.family,
        model_class=blueprint.model_class,
        auto_class=blueprint.auto_class,
        takes=_input_rules(signature, example),
        gives=_output_rules(signature, run_probe(checkpoint.model, example, signature.gives)),
        reserved_positions=takes.reserved,
        opset=opset,
        workload=workload,
        totals=count_totals(checkpoint.model, takes.example(workload), sum(file.stat().st_size for file in files)),
        certificate=proofs[-1],
        unquantized=proofs[0] if len(proofs) > 1 else None,
        versions={"python": platform.python_version(), **dict(sorted(versions.items()))},
    )


def certify_export(
    checkpoint: Checkpoint,
    target: Target,
    path: Path,
    signature: Signature,
    probes: Sequence[Inputs],
    *,
    exact: bool = True,
    prove: Prove | None = None,
) -> ExportCertificate:
    """Compare a file and the model on all probes, in a fresh process.

    Raises:
        CertificateError: the file does not run, or gives outputs of other shapes, or none that are numbers; or, if it
            is to be `exact`, ones that differ.
    """
    expected = [run_probe(checkpoint.model, probe, signature.gives) for probe in probes]
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
        shape = tuple(probe[signature.takes[0]].shape)
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
        length = shape[-1] if LENGTH in signature.axes[signature.takes[0]].values() else None
        records.append(ExportProbe(batch_size=shape[0], seq_len=length, padded=padded, difference=difference))
    return ExportCertificate(
        loader=f"{target.runtime} in a fresh process without optin",
        probes=records,
        difference=max(probe.difference for probe in records),
        tolerance=tolerance,
        continuation=None if prove is None else prove(path, exact),
    )


def _input_rules(signature: Signature, example: Mapping[str, torch.Tensor]) -> dict[str, TensorRule]:
    return {
        name: TensorRule(
            dtype=_dtype(example[name]),
            shape=[signature.axes[name].get(axis, length) for axis, length in enumerate(example[name].shape)],
        )
        for name in signature.takes
    }


def _output_rules(signature: Signature, outputs: Mapping[str, torch.Tensor]) -> dict[str, TensorRule]:
    return {
        name: TensorRule(dtype=_dtype(outputs[name]), shape=list(shape)) for name, shape in signature.shapes.items()
    }


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
