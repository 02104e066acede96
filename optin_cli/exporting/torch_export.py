"""torch.export: store a traced model (a zip archive of the graph as JSON and raw weights), and run the file."""

import json
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

from optin_cli.exporting.registry import ExportError, Quantizer, Run, Target, Traced

if TYPE_CHECKING:
    from torch import nn

PLAIN = re.compile(
    r"""[^/]+/(data/(weights/(weight_\d+|\w+_config\.json)|constants/(tensor_\d+|\w+_config\.json)|sample_inputs/\w+\.pt)
    |models/\w+\.json|archive_format|archive_version|byteorder|\.data/\w+)""",
    re.VERBOSE,
)
"""Members of an archive that holds a graph, raw tensors and example inputs: no pickled objects, no compiled code."""


def write(traced: Traced, path: Path, _opset: int | None) -> None:
    """Store the program, without the lines of code (paths of this machine) that its nodes came from."""
    import torch

    for module in traced.program.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            node.meta.pop("stack_trace", None)
    torch.export.save(traced.program, path)


def quantize(model: "nn.Module") -> None:
    """Store the weights of linear layers as int8 by torchao, each output channel with a scale of its own, in place.

    Embeddings, activations and sums stay float32: torchao's embeddings, and its products of integers, need operators of
    its own, so that the file would not load with torch alone.
    """
    from torchao.quantization import Int8WeightOnlyConfig, quantize_
    from torchao.utils import unwrap_tensor_subclass

    quantize_(model, Int8WeightOnlyConfig())
    unwrap_tensor_subclass(model)


def check(path: Path) -> None:
    """Refuse what is no archive, or one in which torch.export.load would unpickle, and so run, code (ExportError).

    The graph itself is still read by torch's own loader, which is not made for files of unknown origin.
    """
    import io
    import pickle

    import torch

    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            strange = [name for name in names if not PLAIN.fullmatch(name)]
            for name in names:
                if name.endswith("_config.json"):
                    parts = json.loads(archive.read(name))["config"]
                    strange += [part for part, how in parts.items() if how["use_pickle"]]
                elif name.endswith(".pt"):
                    torch.load(io.BytesIO(archive.read(name)), weights_only=True)
    except pickle.UnpicklingError:
        strange = ["example inputs that are not tensors"]
    except (zipfile.BadZipFile, OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ExportError(f"{path} is not a file of torch.export: {error}") from error
    if strange:
        raise ExportError(
            f"{path} holds more than a graph and tensors, so it is refused: loading it could run code ({strange[0]})."
        )


def open_file(path: str, threads: int) -> Run:
    """The program as a module. Torch's threads are those of the process, so that models beside it share them."""
    import torch

    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    module = torch.export.load(path).module()

    def run(inputs):  # type: ignore[no-untyped-def]
        with torch.no_grad():
            outputs = module(**{name: torch.from_numpy(array) for name, array in inputs.items()})
        return {name: tensor.numpy() for name, tensor in outputs.items()}

    return run


TARGET = Target(
    name="torch-export",
    suffix=".pt2",
    extra=None,
    writes_with=("torch",),
    runs_with=("torch",),
    write=write,
    open=open_file,
    int8=Quantizer(needs=("torchao",), extra="int8", model=quantize),
    check=check,
)
