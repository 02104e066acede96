"""timm: folders with config.json naming an architecture, and lone state dicts whose architecture is named."""

from __future__ import annotations

import contextlib
import functools
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file
from torch import nn

from optin_cli.architectures.registry import find_architecture
from optin_cli.architectures.schema import DepthRule
from optin_cli.checkpoints.building import no_larger_than, sizes_of, stored_in
from optin_cli.checkpoints.foreign import explaining
from optin_cli.checkpoints.libraries.registry import (
    CONFIG,
    PLAN_KEY,
    Blueprint,
    Built,
    ImageSpec,
    MapDecoder,
    Mapped,
    Preprocess,
    Reading,
)
from optin_cli.checkpoints.weights import (
    SHOWN,
    State,
    Stored,
    fit_state,
    fitting_notes,
    storage_dtype,
    stored_types,
    with_counters,
)
from optin_cli.errors import CheckpointError, UsageError, did_you_mean
from optin_cli.model.lookup import module_at
from optin_cli.model.modeling_optin import apply_plan
from optin_cli.model.plan import read_plan

if TYPE_CHECKING:
    from optin_cli.model.config_counts import Settings


LIBRARY = "timm"
LOADED_BY = "timm.create_model"
WITHOUT_CLASSES = f"{LOADED_BY}(num_classes=0)"
"""What loads models, and those that put out features."""
INPUT = "x"
TRIAL = (32, 32)
"""Size of a picture that preprocessing is tried on."""
WEIGHTS = "model.safetensors"
REFUSALS = (RuntimeError, ValueError, TypeError, KeyError, AttributeError, AssertionError)
"""What timm raises for arguments that it does not build a model with."""
FOLDERS_SINCE = "1.0.16"
"""The first version of timm that builds models from local folders."""
LOADER = '''

def load_model(folder: Any = None) -> nn.Module:
    """The cut model with its weights, in evaluation mode.

    Args:
        folder: where config.json and the weights lie; the one of this file unless given.

    Raises:
        ImportError: timm is too old; the message says which version is needed.
    """
    import json
    from pathlib import Path

    import timm
    from safetensors.torch import load_file

    if _numbers(timm.__version__) < _numbers("{since}"):
        raise ImportError(
            f"This folder needs timm >={since}: the installed timm {{timm.__version__}} builds no models from local "
            'folders. pip install "timm>={since}"'
        )
    folder = Path(folder or Path(__file__).parent)
    model = timm.create_model(f"local-dir:{{folder}}", pretrained=False)
    apply_plan(model, json.loads((folder / "{config}").read_text(encoding="utf-8"))["{key}"])
    model.load_state_dict(load_file(folder / "{weights}"))
    return model.eval()
'''
RELOAD = """
import sys
sys.path.insert(0, folder)
import modeling_optin
model = modeling_optin.load_model()
"""
RELOAD_PLAIN = """
import timm
model = timm.create_model("local-dir:" + folder, pretrained=True)
"""
CARD_PLAIN = """import timm

model = timm.create_model("local-dir:path/to/this/folder", pretrained=True)"""
CARD = """import sys

sys.path.insert(0, "path/to/this/folder")
from modeling_optin import load_model

model = load_model()"""


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise CheckpointError(
            f"This is a model of timm, which is not installed: {error}.", hint='pip install "optin-cli[vision]"'
        ) from error
    return timm


def owns(raw: Mapping[str, Any]) -> bool:
    """Whether a config is one of timm."""
    return isinstance(raw.get("architecture"), str)


def read(folder: Path, raw: dict[str, Any], reading: Reading) -> Blueprint:
    """Understand a config of timm by building its model."""
    from timm.data import resolve_model_data_config

    if reading.as_class not in (None, LOADED_BY):
        raise UsageError(
            f"--as names a class of transformers, {reading.as_class}, but this is a model of timm.",
            hint="Leave out --as.",
        )

    path = folder / CONFIG
    _require_known(str(raw["architecture"]))
    try:
        with no_larger_than(*stored_in(folder), folder.name) if reading.foreign else contextlib.nullcontext():
            model = _timm().create_model(f"local-dir:{folder}", pretrained=False)
    except REFUSALS as error:
        shown = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"{path} is refused by timm: {shown}") from error
    kind = type(model).__name__
    if reading.architecture is None:
        find_architecture(kind, LIBRARY)
    size = resolve_model_data_config(model)["input_size"]
    names = raw.get("label_names") or raw.get("pretrained_cfg", {}).get("label_names")
    classes = int(getattr(model, "num_classes", 0))
    return Blueprint(
        library=LIBRARY,
        folder=folder,
        identity=path.read_bytes(),
        config=raw,
        kind=kind,
        auto_class=LOADED_BY if classes else WITHOUT_CLASSES,
        model_class=kind,
        image=ImageSpec.of(INPUT, size),
        num_labels=classes,
        label_names=tuple(map(str, names)) if isinstance(names, list) else None,
        problem_type=None,
        plan=read_plan(raw.get(PLAN_KEY), str(path)),
        prototype=model,
        licence=licence if isinstance(licence := raw.get("pretrained_cfg", {}).get("license"), str) else None,
    )


def describe(name: str, arguments: Mapping[str, Any], reading: Reading) -> Blueprint:
    """Understand timm's name of a model and the arguments it was built with."""
    _require_known(name)
    try:
        model = _timm().create_model(name, pretrained=False, **arguments)
    except REFUSALS as error:
        shown = " ".join(str(error).split()) or type(error).__name__
        given = f" with {', '.join(f'{k}={v}' for k, v in arguments.items())}" if arguments else ""
        raise UsageError(f"timm does not build {name}{given}: {shown}", hint="Correct --arch-args.") from error
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / CONFIG
        from timm.models._hub import save_config_for_hf

        save_config_for_hf(model, str(path), model_config={"model_args": dict(arguments)})
        # Read back, because only then do arguments such as img_size reach what timm says of the model's input.
        raw = json.loads(path.read_text(encoding="utf-8"))
        return replace(read(Path(scratch), raw, replace(reading, foreign=False)), folder=None)


def repository(name: str) -> str:
    """Where timm keeps the weights of that name, those of the default tag if it has none (UsageError if nowhere)."""
    timm = _timm()
    _require_known(name)
    known = timm.models.get_pretrained_cfg(name)
    if known is None or not known.hf_hub_id:
        hint = did_you_mean(name, timm.list_pretrained())
        raise UsageError(f"timm has no pretrained weights of {name!r} on the hub.", hint=hint)
    hub, (model, _, tag) = str(known.hf_hub_id), name.partition(".")
    return f"{hub}{'.'.join(filter(None, (model, tag or known.tag)))}" if hub.endswith("/") else hub


def _require_known(name: str) -> None:
    """Refuse what is no model of timm, with or without the tag of its weights."""
    timm, model = _timm(), name.partition(".")[0]
    if not timm.is_model(model):
        raise CheckpointError(f"timm has no model {model!r}.", hint=did_you_mean(model, timm.list_models()))


def build_streamed(blueprint: Blueprint, _stored: Stored, name: str) -> Built:
    """Refuse: timm's models fit into memory."""
    raise CheckpointError(
        f"{name} is a model of timm ({blueprint.model_class}), which is not streamed.", hint="Leave out --stream."
    )


def build(blueprint: Blueprint, stored: Stored, name: str) -> Built:
    """The model in float32 with exactly the weights that it needs, converted by timm where their names are others."""
    model: nn.Module = blueprint.prototype
    if blueprint.plan:
        with no_larger_than(*sizes_of(stored.tensors), name):
            apply_plan(model, blueprint.plan)
    model = model.float()
    fitted = fit_state(stored, model.state_dict(), name)
    state, convert = with_counters(fitted.state, model), None
    notes: tuple[str, ...] = ()
    if any(_misfits(model, state)) and blueprint.plan is None and (found := _converted(blueprint, state)) is not None:
        state, convert = found, functools.partial(_converted, blueprint)
        notes = (f"{name} has weights under names of old; timm converted them.",)
    missing, extra = _misfits(model, state)
    hint = "Name the model that the weights are of: --arch timm:NAME --arch-args img_size=112,num_classes=10."
    for what, keys, needs in (("lacks", missing, "needs"), ("holds", extra, "has no place for")):
        if keys:
            listed = ", ".join(sorted(keys)[:SHOWN]) + ("…" if len(keys) > SHOWN else "")
            raise CheckpointError(
                f"{name} {what} {len(keys)} weight(s) that {blueprint.model_class} {needs}: {listed}", hint=hint
            )
    expected = model.state_dict()
    left_out = (*fitted.left_out, *(key for key in state if key not in expected))
    try:
        model.load_state_dict({key: state[key] for key in expected})
    except RuntimeError as error:
        lines = "\n".join(str(error).strip().splitlines()[:6])
        raise CheckpointError(f"{name} does not load as {blueprint.model_class}: {lines}", hint=hint) from error
    return Built(
        model=model.eval().requires_grad_(False),
        root="",
        left_out=left_out,
        notes=(*notes, *fitting_notes(fitted, left_out, name, blueprint.model_class)),
        dtype=storage_dtype(fitted.state),
        types=stored_types(fitted.state, lambda marks: marks if convert is None else convert(marks) or {}),
    )


def _misfits(model: nn.Module, state: State) -> tuple[list[str], list[str]]:
    """Names that a state lacks, and those that it has of parts of the model that have weights, but not these.

    Names of other parts are no misfit: of losses and counters, or of a head that the model was built without.
    """
    expected = model.state_dict()
    extra = [key for key in state if key not in expected and _nearest(model, key).state_dict()]
    return [key for key in expected if key not in state], extra


def _nearest(model: nn.Module, name: str) -> nn.Module:
    """The innermost module of the model that a name leads to; an empty one where it leads nowhere."""
    parts = name.split(".")
    for length in range(len(parts) - 1, 0, -1):
        if (module := module_at(model, ".".join(parts[:length]))) is not None:
            return module
    return nn.Module()


def _converted(blueprint: Blueprint, state: State) -> State | None:
    """A state as timm converts what it downloads to a model's current names; None where that does not fit the model."""
    own: nn.Module = blueprint.prototype
    source = {"state_dict": dict(state), "source": "", "num_classes": blueprint.num_labels}
    arguments = blueprint.config.get("model_args", {})
    if blueprint.image is not None:
        source["input_size"] = blueprint.image.shape
    try:
        model = _timm().create_model(
            blueprint.config["architecture"], pretrained=True, pretrained_cfg_overlay=source, **arguments
        )
    except REFUSALS:
        return None
    found: State = model.state_dict()
    return (
        found if {k: t.shape for k, t in found.items()} == {k: t.shape for k, t in own.state_dict().items()} else None
    )


def preprocess(blueprint: Blueprint) -> Preprocess:
    """The evaluation transform of the model's own data config."""
    from PIL import Image
    from timm.data import create_transform, resolve_model_data_config

    config = resolve_model_data_config(blueprint.prototype)
    if blueprint.image is not None and blueprint.image.resized:
        config |= {"input_size": blueprint.image.shape}
    mode = "RGB" if blueprint.image is None else blueprint.image.mode
    with explaining(f"The preprocessing of images in {CONFIG} cannot be used"):
        transform: Preprocess = create_transform(**config, is_training=False)
        transform(Image.new(mode, TRIAL))
    return lambda picture: transform(picture.convert(mode))


def at_size(blueprint: Blueprint, image: ImageSpec) -> Blueprint:
    """Scaled and cropped as the data config says, to another size."""
    return replace(blueprint, image=image)


def map_decoder(blueprint: Blueprint) -> MapDecoder:
    """Refuse: timm has no models of segmentation."""
    raise CheckpointError(f"{blueprint.model_class} is a model of timm, which has none of semantic segmentation.")


def with_blocks(blueprint: Blueprint, _model: Any | None, rule: DepthRule, kept: Sequence[int]) -> Blueprint:
    """The argument of the model that says how many blocks it has."""
    raw = blueprint.config
    return replace(blueprint, config={**raw, "model_args": {**raw.get("model_args", {}), rule.count: len(kept)}})


def save(blueprint: Blueprint, _model: Any, state: State, plan: dict[str, Any], folder: Path) -> None:
    """As timm's save_for_hf does; the config gains the plan."""
    _write(folder, state, {**blueprint.config, PLAN_KEY: plan})


def _write(folder: Path, state: State, config: dict[str, Any]) -> None:
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def modeling(_blueprint: Blueprint) -> str:
    """A function that builds timm's own model, gives it the pruned shapes and loads the weights."""
    return LOADER.format(config=CONFIG, key=PLAN_KEY, weights=WEIGHTS, since=FOLDERS_SINCE)


def _plain_config(blueprint: Blueprint, settings: Settings) -> dict[str, Any]:
    """The config whose arguments of the model are those of `settings`, without what only a cut checkpoint's has."""
    raw = {key: value for key, value in blueprint.config.items() if key != PLAN_KEY}
    return {**raw, "model_args": {**raw.get("model_args", {}), **settings}}


def plain_shapes(blueprint: Blueprint, settings: Settings) -> dict[str, tuple[int, ...]]:
    """Build the model as timm does from a folder."""
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / CONFIG).write_text(json.dumps(_plain_config(blueprint, settings)), encoding="utf-8")
        try:
            model = _timm().create_model(f"local-dir:{scratch}", pretrained=False)
        except REFUSALS as error:
            raise CheckpointError(f"timm refuses the config: {' '.join(str(error).split())}") from error
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def save_plain(blueprint: Blueprint, _model: Any, state: State, settings: Settings, folder: Path) -> None:
    """As timm's save_for_hf does, with the changed arguments of the model."""
    _write(folder, state, _plain_config(blueprint, settings))


def reloading(_blueprint: Blueprint, *, plain: bool = False, mapped: Mapped | None = None) -> tuple[str, str]:
    """By timm itself, or by the function beside the weights, with all weights in memory."""
    del mapped
    if plain:
        return "plain timm.create_model in a fresh process without optin", RELOAD_PLAIN
    return "timm.create_model and modeling_optin.py in a fresh process without optin", RELOAD


def loading(_blueprint: Blueprint, *, plain: bool = False) -> str:
    """By timm itself, or by the function beside the weights."""
    return CARD_PLAIN if plain else CARD
