"""torch.export: store a traced model (a zip archive of the graph as JSON and raw weights), and run the file."""

from pathlib import Path
from typing import TYPE_CHECKING

from optin_cli.exporting.registry import Quantizer, Run, Target, Traced

if TYPE_CHECKING:
    from torch import nn


def write(traced: Traced, path: Path, _opset: int | None) -> None:
    """Store the program, without the lines of code (paths of this machine) that its nodes came from."""
    import io

    import torch

    for module in traced.program.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            node.meta.pop("stack_trace", None)
    # Torch's own writer of files ends the process when the disk is full.
    content = io.BytesIO()
    torch.export.save(traced.program, content)
    path.write_bytes(content.getbuffer())


def quantize(model: "nn.Module") -> None:
    """Store the weights of linear layers as int8 by torchao, each output channel with a scale of its own, in place.

    Embeddings, activations and sums stay float32: torchao's embeddings, and its products of integers, need operators of
    its own, so that the file would not load with torch alone.
    """
    from torchao.quantization import Int8WeightOnlyConfig, quantize_
    from torchao.utils import unwrap_tensor_subclass

    quantize_(model, Int8WeightOnlyConfig())
    unwrap_tensor_subclass(model)


def check(path: Path, scratch: Path) -> Path:
    """A copy of what an archive holds that cannot run code (ExportError: it is none, or holds more)."""
    from optin_cli.exporting.vetting import vet

    copy = scratch / path.name
    vet(path, copy)
    return copy


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
