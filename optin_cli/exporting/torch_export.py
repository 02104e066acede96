"""torch.export: store a traced model (a zip archive of the graph as JSON and raw weights), and run the file."""

from pathlib import Path

from optin_cli.exporting.registry import Run, Target, Traced


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
    check=check,
)
