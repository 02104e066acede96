"""Check a mask against a checkpoint before it is pruned."""

from dataclasses import dataclass

from torch import nn

from optin_cli.artifacts.base import Source, Totals, require_description, require_source
from optin_cli.artifacts.mask import Mask
from optin_cli.checkpoints.batching import Inputs
from optin_cli.checkpoints.checkpoint import Checkpoint
from optin_cli.checkpoints.checks import require_kinds
from optin_cli.errors import ArtifactError, UsageError, did_you_mean
from optin_cli.model.config_counts import Settings
from optin_cli.model.costs import count_totals
from optin_cli.pruning.config import config_settings
from optin_cli.pruning.parts import require_parts


@dataclass(frozen=True)
class Pruning:
    """A mask that fits a checkpoint. settings: keys of the library's config that state it, None if only a plan can."""

    checkpoint: Checkpoint
    mask: Mask
    source: Source
    settings: Settings | None

    @property
    def outputs(self) -> list[str]:
        """Names of the outputs that are compared."""
        return [rule.name for rule in self.checkpoint.structure.outputs]

    @property
    def probe(self) -> Inputs:
        """The inputs that they are compared for."""
        return self.checkpoint.input.probe(self.mask.workload.seq_len)

    def cost(self, model: nn.Module, size: int) -> Totals:
        """What `model` costs for the mask's workload; size: bytes of its stored weights."""
        return count_totals(model, self.checkpoint.input.example(self.mask.workload), size)


def plan_pruning(checkpoint: Checkpoint, mask: Mask, source: Source) -> Pruning:
    """Check a mask against a checkpoint; source: name and hash of the mask (ArtifactError if it does not fit)."""
    require_source(mask, source.name, "checkpoint", checkpoint.source)
    require_description(mask, source.name, checkpoint.description, f"{checkpoint.name} was opened")
    require_kinds(checkpoint, mask.groups)
    _require_workload(checkpoint, mask, source.name)
    groups = checkpoint.structure.units
    for group_name, kept in mask.groups.items():
        if group_name not in groups:
            raise ArtifactError(
                f"{source.name} masks the group {group_name!r}, which {checkpoint.name} does not have.",
                hint=did_you_mean(group_name, groups),
            )
        if kept.units != groups[group_name]:
            raise ArtifactError(
                f"{source.name} says that {group_name} has {kept.units} units; "
                f"in {checkpoint.name} it has {groups[group_name]}."
            )
    for kind in checkpoint.structure.kinds:
        kind.check(checkpoint.structure.within_blocks(mask.kept), source.name)
    if checkpoint.streaming is not None and checkpoint.processes.count > 1:
        raise UsageError("Processes do not share the pruning of a model that is streamed.", hint="Leave out torchrun.")
    if checkpoint.streaming is not None:
        require_parts(checkpoint.structure, checkpoint.streaming, mask.kept, source.name)
    return Pruning(checkpoint, mask, source, config_settings(checkpoint, mask, source.name))


def _require_workload(checkpoint: Checkpoint, mask: Mask, name: str) -> None:
    """Refuse a mask whose costs are stated for inputs that the model does not take (ArtifactError)."""
    takes, workload, fits = checkpoint.input, mask.workload, mask.workload.batch_size == 1
    try:
        own = takes.workload(takes.length(workload.seq_len))
    except UsageError:
        own, fits = takes.workload(takes.length(None)), False
    sized_by_user = workload.image is not None and own.image is not None and (workload.resized or own.resized)
    fits = fits and (workload.image == own.image or bool(sized_by_user))
    if not fits:
        raise ArtifactError(
            f"{name} states costs for batch {workload.batch_size}, {workload.shape}, which {checkpoint.name} does not "
            f"take: it takes {own.shape}.",
            hint="Search again, from scores of this checkpoint.",
        )
