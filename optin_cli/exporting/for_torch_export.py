"""A traced model in; a file of torch.export, or what runs one, out.

The format is torch's own: a zip archive of the graph as JSON and the weights as raw bytes.
"""

from __future__ import annotations

from pathlib import Path

from optin_cli.exporting import Run, Target, Traced


def write(traced: Traced, path: Path, _opset: int | None) -> None:
    """Store the program, without the lines of code (paths of this machine) that its nodes came from."""
    import torch

    for module in traced.program.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            node.meta.pop("stack_trace", None)
    torch.export.save(traced.program, path)


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
)
