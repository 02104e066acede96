"""A manifest in; the model card of the cut checkpoint out, opening with how to load it."""

from __future__ import annotations

from optin_cli.artifacts import Manifest

CARD = """---
library_name: {library}
tags: [optin, pruned]
---
# {name}, pruned by optin

## How to load

{how}

## What was done

Cut from `{name}` (sha256 `{sha}`) by [optin](https://pypi.org/project/optin-cli/) {version}, without training.
{budget}

| | before | after | ratio |
|---|---|---|---|
| MACs (batch {batch}, {shape}) | {macs_before:,} | {macs_after:,} | {macs_ratio:.3f} |
| parameters | {parameters_before:,} | {parameters_after:,} | {parameters_ratio:.3f} |
| bytes of weights | {bytes_before:,} | {bytes_after:,} | {bytes_ratio:.3f} |

| group | kept |
|---|---|
{groups}

## Certificate

Reloaded by {loader}: outputs ({outputs}) differ from the cut model's by at most {reloaded:.3g}{masked}
(tolerance {tolerance:.3g}). `optin.json` holds the whole record.

## Limits

Accuracy was not measured here: run `optin eval` on your own data. MACs are multiply-accumulates of matrix
products, convolutions and attention at the stated input size.
"""


RAGGED = """The layers have different widths, which the stock `{model_class}` cannot express. The module beside the
weights can (it needs torch and {library} only):

```python
{loading}
```

or, without running code from this folder, `optin_cli.load(folder)`.
Do **not** let the stock class ignore mismatched sizes: it would fill in random weights."""

UNIFORM = """All layers have the same widths, so the stock `{model_class}` of {library} loads this folder, and so does
whatever reads its config:

```python
{loading}
```"""

HOW = {"ragged": RAGGED, "uniform": UNIFORM}
"""By layout."""


def write_card(manifest: Manifest, library: str, loading: str) -> str:
    """Model card in Markdown.

    Args:
        library: that builds the model. loading: lines of Python that load the folder.
    """
    before, after, certificate = manifest.before, manifest.after, manifest.certificate
    source = manifest.inputs["checkpoint"]
    asked = ", ".join(f"{share:g} of the {name}" for name, share in manifest.budget.asked.items())
    reached = ", ".join(f"{share:.4f} of the {name}" for name, share in manifest.budget.reached.items())
    return CARD.format(
        name=source.name,
        sha=source.sha256,
        version=manifest.optin_version,
        library=library,
        how=HOW[manifest.layout].format(model_class=manifest.model_class, library=library, loading=loading),
        budget=f"Asked: {asked}. Reached: {reached}." if asked else f"Reached: {reached}.",
        batch=manifest.workload.batch_size,
        shape=manifest.workload.shape,
        macs_before=before.macs,
        macs_after=after.macs,
        macs_ratio=after.macs / before.macs,
        parameters_before=before.parameters,
        parameters_after=after.parameters,
        parameters_ratio=after.parameters / before.parameters,
        bytes_before=before.bytes,
        bytes_after=after.bytes,
        bytes_ratio=after.bytes / before.bytes,
        groups="\n".join(f"| {name} | {len(g.kept)} of {g.units} |" for name, g in manifest.groups.items()),
        loader=certificate.loader,
        outputs=", ".join(certificate.outputs),
        reloaded=certificate.reloaded,
        masked="" if certificate.masked is None else f", and from the masked original's by {certificate.masked:.3g}",
        tolerance=certificate.tolerance,
    )
