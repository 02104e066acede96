"""Hugging Face transformers: folders with config.json naming a model_type, loaded without running code from them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from optin_cli.architectures.registry import find_architecture, known_heads
from optin_cli.architectures.schema import DepthRule
from optin_cli.checkpoints.building import no_larger_than, sizes_of
from optin_cli.checkpoints.decilm import in_own_terms
from optin_cli.checkpoints.folders import download
from optin_cli.checkpoints.foreign import explaining
from optin_cli.checkpoints.libraries.registry import (
    CONFIG,
    MODELING,
    PLAN_KEY,
    Blueprint,
    Built,
    ImageSpec,
    MapDecoder,
    Preprocess,
    Reading,
    read_folder,
)
from optin_cli.checkpoints.libraries.transformers_code import (
    LIBRARY,
    RETURNS,
    first_version,
    loading,
    modeling,
    reloading,
    stock_classes,
)
from optin_cli.checkpoints.streaming import WeightsOnMeta, strip_weights
from optin_cli.checkpoints.weights import (
    QUANTIZE_LATER,
    SHOWN,
    State,
    Stored,
    fit_state,
    fitting_notes,
    shown,
    storage_dtype,
    stored_types,
    with_counters,
)
from optin_cli.errors import CheckpointError, UsageError, did_you_mean
from optin_cli.model.modeling_optin import apply_plan
from optin_cli.model.plan import read_plan
from optin_cli.tasks.schema import LabelMapRule

if TYPE_CHECKING:
    from optin_cli.model.config_counts import Settings


__all__ = [
    "at_size",
    "build",
    "build_streamed",
    "describe",
    "loading",
    "map_decoder",
    "modeling",
    "owns",
    "plain_shapes",
    "preprocess",
    "read",
    "reloading",
    "repository",
    "save",
    "save_plain",
    "with_blocks",
]
"""What `registry.Library` asks of a library."""
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
TEXT, IMAGE = "input_ids", "pixel_values"
"""Names of a model's main input."""
QUANTIZED = ("quantization_config", "compression_config")
"""Keys of a config that say how weights are quantized, the second in files of old."""
BITSANDBYTES = ("load_in_8bit", "load_in_4bit")
"""How configs of old say that bitsandbytes is meant."""
SQUARE, WIDE = (256, 256), (320, 256)
"""Sizes of two images (width, height) that show what a processor makes of images in general."""
REDUCES = ("do_reduce_labels", "reduce_labels")
"""How processors say that id 0 of a label map does not count, the second in files of old that are still around."""
ATTENTION_KEYS = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
CACHELESS = {"use_cache": False}
"""Keys of a config with which blocks that run several times, one batch at a time, remember nothing between."""
ATTENTIONS = ("sdpa", "eager")
"""Attention implementations that need nothing but torch, on any device and in float32."""


def owns(raw: Mapping[str, Any]) -> bool:
    """Whether a config is one of transformers."""
    return "model_type" in raw


def read(folder: Path, raw: dict[str, Any], reading: Reading) -> Blueprint:
    """Understand a config of transformers."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    path, raw = folder / CONFIG, in_own_terms(raw)
    if reading.architecture is None:
        find_architecture(str(raw["model_type"]), LIBRARY)
    _require_unquantized(raw, folder)
    try:
        config = AutoConfig.for_model(**_with_own_attention(raw))
    except (ValueError, TypeError, KeyError, StrictDataclassError) as error:
        words = " ".join(str(error).split())
        raise CheckpointError(f"{path} is refused by transformers: {words}") from error
    named = config.architectures[0] if config.architectures else None
    auto_class, model_class = _find_class(config, reading.as_class)
    config.architectures = [model_class.__name__]
    takes = str(model_class.main_input_name)
    if takes not in (TEXT, IMAGE):
        raise CheckpointError(
            f"{model_class.__name__} takes {takes}, which is neither text nor images.",
            hint="Pass a checkpoint of a text or image model.",
        )
    problem_type = "regression" if config.problem_type is None and config.num_labels == 1 else config.problem_type
    names = getattr(config, "id2label", None) or {}
    return Blueprint(
        library=LIBRARY,
        folder=folder,
        identity=path.read_bytes(),
        config=config,
        kind=config.model_type,
        auto_class=auto_class,
        model_class=model_class.__name__,
        image=_image_spec(folder, config) if takes == IMAGE else None,
        num_labels=int(config.num_labels),
        label_names=tuple(str(names[i]) for i in range(len(names))) if set(names) == set(range(len(names))) else None,
        problem_type=problem_type,
        plan=read_plan(getattr(config, PLAN_KEY, None), str(path)),
        prototype=model_class,
        opened_as=reading.as_class if model_class.__name__ != named else None,
    )


def _require_unquantized(raw: Mapping[str, Any], folder: Path) -> None:
    """Refuse a config that says how its weights are quantized."""
    stated = next((raw[key] for key in QUANTIZED if isinstance(raw.get(key), Mapping)), None)
    if stated is not None:
        legacy = next((key for key in BITSANDBYTES if stated.get(key)), None)
        method = stated.get("quant_method") or ("bitsandbytes" if legacy else "a method that its config does not name")
        raise CheckpointError(f"{folder} is quantized by {method}.", hint=QUANTIZE_LATER)


def describe(name: str, arguments: Mapping[str, Any], reading: Reading) -> Blueprint:
    """Understand a config folder, or the hub id of one."""
    if arguments:
        raise UsageError(
            "--arch-args are for models of timm, which are named; a transformers config says everything itself.",
            hint="Pass --arch timm:NAME, or leave out --arch-args.",
        )
    return read_folder(Path(name) if Path(name).is_dir() else download(name), reading)


def repository(name: str) -> str:
    """The id itself."""
    return name


def _processor(folder: Path) -> Any:
    from transformers import AutoImageProcessor

    with explaining(f"The image processor of {folder} cannot be used"):
        return AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _image_spec(folder: Path, config: Any) -> ImageSpec:
    """What the image processor makes of an image, else what the config says."""
    channels = int(getattr(config, "num_channels", 3))
    if _has_processor(folder):
        from PIL import Image

        process = _as_pixels(_processor(folder), ImageSpec(IMAGE, channels, *SQUARE))
        square, wide = (process(Image.new("RGB", size)) for size in (SQUARE, WIDE))
        return ImageSpec.of(IMAGE, square.shape, fixed=square.shape == wide.shape)
    size = getattr(config, "image_size", None)
    if size is None:
        raise CheckpointError(
            f"{folder} does not say what image size its model takes: neither a processor nor an image_size is there.",
            hint=f"Put the model's {PROCESSORS[0]} beside its {CONFIG}.",
        )
    height, width = (size, size) if isinstance(size, int) else size
    return ImageSpec(IMAGE, channels, int(height), int(width))


def _with_own_attention(raw: Mapping[str, Any]) -> dict[str, Any]:
    """A config, and those inside it, without attention implementations that may be missing here."""
    return {
        key: _with_own_attention(value) if isinstance(value, dict) else value
        for key, value in raw.items()
        if key not in ATTENTION_KEYS or value in ATTENTIONS
    }


def _find_class(config: Any, as_class: str | None) -> tuple[str, Any]:
    """An auto class, and the model class that it has for a config: the one that the config names, or `as_class`'s.

    Raises UsageError: there is no such auto class. CheckpointError: it has no class for this config, or the config
    names a class with unknown outputs.
    """
    names, classes = list(config.architectures or []), _classes_by_head(type(config))
    if as_class is not None:
        return as_class, _class_asked(as_class, classes, names, config.model_type)
    for name in names:
        for auto_class, found in classes.items():
            if name in found:
                return auto_class, found[name]
    found_words = f"the model class {names[0]}" if names else "no model class (architectures)"
    raise CheckpointError(
        f"The config names {found_words}, which optin has no outputs to compare for.",
        hint=f"It can be opened as another class whose weights the checkpoint has: --as {_listed(classes)}.",
    )


def _classes_by_head(config_class: type) -> dict[str, dict[str, Any]]:
    """Model classes of a config's type by name, of each auto class whose outputs are known."""
    import transformers

    classes: dict[str, dict[str, Any]] = {}
    for auto_class, head in known_heads().items():
        mapping = getattr(transformers, auto_class)._model_mapping if head.library == LIBRARY else {}
        if config_class in mapping:
            found = mapping[config_class]
            each = {one.__name__: one for one in (found if isinstance(found, tuple) else (found,))}
            classes[auto_class] = {name: one for name, one in each.items() if not head.classes or name in head.classes}
    return {auto_class: found for auto_class, found in classes.items() if found}


def _class_asked(as_class: str, classes: Mapping[str, Mapping[str, Any]], names: list[str], model_type: str) -> Any:
    """The model class that an auto class has for a config: one that the config names, else its first."""
    known = [auto_class for auto_class, head in known_heads().items() if head.library == LIBRARY]
    if as_class not in known:
        raise UsageError(f"Unknown class --as {as_class}.", hint=did_you_mean(as_class, known))
    if as_class not in classes:
        raise CheckpointError(
            f"{as_class} has no class for {model_type} models.", hint=f"Pass one that has: --as {_listed(classes)}."
        )
    own = [classes[as_class][name] for name in names if name in classes[as_class]]
    return [*own, *classes[as_class].values()][0]


def _listed(classes: Mapping[str, Mapping[str, Any]]) -> str:
    """Auto classes with their model classes, in words."""
    return ", ".join(f"{auto_class} ({', '.join(found)})" for auto_class, found in classes.items())


def planned_class(model_class: Any) -> Any:
    """A model class that takes the shapes of its config's cut plan as soon as it is built."""

    def build_planned(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        model_class.__init__(self, config, *args, **kwargs)
        apply_plan(self, getattr(config, PLAN_KEY))

    # The library translates names of weights for classes of its own modules alone.
    return type(model_class.__name__, (model_class,), {"__init__": build_planned, "__module__": model_class.__module__})


def build(blueprint: Blueprint, stored: Stored, name: str) -> Built:
    """The model in float32 with its weights; nothing is filled in at random.

    It returns its outputs by name, whatever its config says.
    """
    config = copy.deepcopy(blueprint.config)
    for key, value in RETURNS.items():
        setattr(config, key, value)
    kind = planned_class(blueprint.prototype) if blueprint.plan else blueprint.prototype
    try:
        with no_larger_than(*sizes_of(stored.tensors), name), torch.device("meta"):
            blank = kind(config)
        fitted = fit_state(stored, blank.state_dict(), name)
        model, report = _load(kind, config, with_counters(fitted.state, blank))
        types = stored_types(fitted.state, lambda marks: _load(kind, config, marks)[0].state_dict())
    except (RuntimeError, ValueError, OSError, KeyError, TypeError, AttributeError) as error:
        lines = "\n".join(str(error).strip().splitlines()[:6])
        raise CheckpointError(f"{name} does not load as {blueprint.model_class}: {lines}") from error
    optional = blueprint.head.may_miss
    missing = sorted(key for key in report["missing_keys"] if key.partition(".")[0] not in optional)
    if missing and len(report["missing_keys"]) >= len(dict(blank.named_parameters())):
        raise CheckpointError(
            f"None of the weights of {name} has a place in {blueprint.model_class}: there are "
            f"{shown(list(fitted.state), 'tensor')}; expected {shown(missing, 'tensor')}.",
            hint="Pass the weights of that model, or a config whose architectures names the class that was trained.",
        )
    absent = {key.partition(".")[0] for key in report["missing_keys"]} & set(optional)
    if missing:
        raise CheckpointError(
            f"{name} lacks {len(missing)} weight(s) that {blueprint.model_class} needs: {', '.join(missing[:SHOWN])}"
            + ("…" if len(missing) > SHOWN else "."),
            hint="Transformers would fill them with random numbers. Pass the whole checkpoint, "
            "or a config whose architectures names the class that was trained.",
        )
    for part in absent:
        setattr(model, part, None)
    left_out = (*fitted.left_out, *sorted(report["unexpected_keys"]))
    return Built(
        model=model.eval().requires_grad_(False),
        root=next(path for path, module in model.named_modules() if module is model.base_model),
        left_out=left_out,
        notes=fitting_notes(fitted, left_out, name, blueprint.model_class),
        dtype=storage_dtype(fitted.state),
        types=types,
    )


def build_streamed(blueprint: Blueprint, stored: Stored, name: str) -> Built:
    """The model on the meta device, and its weights by its own names, for weights that are stored under these."""
    config = copy.deepcopy(blueprint.config)
    for key, value in RETURNS.items():
        setattr(config, key, value)
    kind = planned_class(blueprint.prototype) if blueprint.plan else blueprint.prototype
    try:
        with no_larger_than(*sizes_of(stored.tensors), name), WeightsOnMeta():
            model = kind(config)
        strip_weights(model)
        expected = model.state_dict(keep_vars=True)
        fitted = fit_state(stored, expected, name)
    except (RuntimeError, ValueError, OSError, KeyError, TypeError, AttributeError) as error:
        lines = "\n".join(str(error).strip().splitlines()[:6])
        raise CheckpointError(f"{name} does not load as {blueprint.model_class}: {lines}") from error
    found = _under_own_names(fitted.state, expected)
    absent = expected.keys() - found.keys()
    optional = {key.partition(".")[0] for key in absent} & set(blueprint.head.may_miss)
    unfit = {key for key, tensor in found.items() if tensor.shape != expected[key].shape}
    unfit |= {key for key in absent if key.partition(".")[0] not in optional}
    unfit |= {key for key, tensor in model.named_buffers() if tensor.is_meta and key not in expected}
    if unfit:
        raise CheckpointError(
            f"{name} cannot be streamed: of {blueprint.model_class}, {shown([*unfit], 'tensor')} are not in its files "
            "under that name and in that shape.",
            hint="Leave out --stream, or save the model with save_pretrained of this version of transformers.",
        )
    for part in optional:
        setattr(model, part, None)
    for key, value in CACHELESS.items():  # only now, since how the model generates is what its config said
        setattr(model.config, key, value)
    left_out = (*fitted.left_out, *sorted(fitted.state.keys() - expected.keys()))
    types = {key: tensor.dtype for key, tensor in found.items() if tensor.is_floating_point()}
    return Built(
        model=model.eval().requires_grad_(False),
        root=next(path for path, module in model.named_modules() if module is model.base_model),
        left_out=left_out,
        notes=fitting_notes(fitted, left_out, name, blueprint.model_class),
        dtype=storage_dtype(fitted.state),
        types=types if len(set(types.values())) > 1 else {},
        stored=found,
    )


def _under_own_names(state: State, expected: Mapping[str, torch.Tensor]) -> State:
    """Stored tensors by all names that a model has for them; of tied weights a file has one, or the first counts."""
    present = {id(expected[key]): key for key in reversed([*expected]) if key in state}
    return {key: state[present[id(tensor)]] for key, tensor in expected.items() if id(tensor) in present}


def _load(kind: Any, config: Any, state: State) -> tuple[Any, dict[str, Any]]:
    """A model in float32 with the weights of a state, and what transformers reports of names that do not match."""
    model, report = kind.from_pretrained(
        None, config=config, state_dict=state, dtype=torch.float32, output_loading_info=True
    )
    return model, report


def preprocess(blueprint: Blueprint) -> Preprocess:
    """The checkpoint's own image processor."""
    return _as_pixels(_required_processor(blueprint), blueprint.image)


def _required_processor(blueprint: Blueprint) -> Any:
    folder = blueprint.folder
    if folder is None or not _has_processor(folder):
        raise CheckpointError(
            f"{folder} holds no image processor, so it is unknown how to prepare images.",
            hint=f"Put the model's {PROCESSORS[0]} beside its {CONFIG}.",
        )
    return _processor(folder)


def _has_processor(folder: Path) -> bool:
    return any((folder / name).is_file() for name in PROCESSORS)


def _as_pixels(processor: Any, image: ImageSpec | None = None) -> Preprocess:
    """A processor as a function of one image. image: its channels, and what to scale to where the user asked for it."""
    how: dict[str, Any] = {"return_tensors": "pt"}
    if image is not None and image.resized:
        how |= {"do_resize": True, "size": {"height": image.height, "width": image.width}}
        how |= {"do_center_crop": False} if hasattr(processor, "do_center_crop") else {}
    mode = "RGB" if image is None else image.mode
    return lambda picture: processor(images=picture.convert(mode), **how)[IMAGE][0]


def at_size(blueprint: Blueprint, image: ImageSpec) -> Blueprint:
    """Scaled to that size without a crop, which not every processor makes exactly."""
    if blueprint.folder is not None and _has_processor(blueprint.folder):
        from PIL import Image

        picture = Image.new("RGB", WIDE)
        found = tuple(map(int, _as_pixels(_processor(blueprint.folder), image)(picture).shape))
        if found != image.shape:
            raise UsageError(
                f"The image processor of {blueprint.folder} makes images of {found[1]} x {found[2]} pixels when asked "
                f"for {image.height} x {image.width}.",
                hint=f"Pass --image-size {found[1]}x{found[2]}, or another size that it keeps.",
            )
    return replace(blueprint, image=image)


def map_decoder(blueprint: Blueprint) -> MapDecoder:
    """By the processor's own rules; logits of pixels are interpolated where it has none."""
    processor = _required_processor(blueprint)
    reduce = any(getattr(processor, key, False) for key in REDUCES)
    rule = LabelMapRule(ignore_index=getattr(processor, "ignore_index", None), reduce_labels=reduce)
    post = getattr(processor, "post_process_semantic_segmentation", None)

    def decode(outputs: Mapping[str, torch.Tensor], size: tuple[int, int]) -> torch.Tensor:
        if post is None:
            return F.interpolate(outputs["logits"], size=size, mode="bilinear", align_corners=False).argmax(dim=1)[0]
        found: torch.Tensor = post(SimpleNamespace(**outputs), target_sizes=[size])[0]
        return found

    return MapDecoder(rule, decode)


def with_blocks(blueprint: Blueprint, model: Any | None, rule: DepthRule, kept: Sequence[int]) -> Blueprint:
    """The number of blocks, and the values of each, in the config and in that of the model."""
    config = copy.deepcopy(blueprint.config)
    for own in (config, *([] if model is None else [model.config])):
        setattr(own, rule.count, len(kept))
        for key in rule.per_block:
            if (values := getattr(own, key, None)) is not None:
                setattr(own, key, [values[number] for number in kept])
    return replace(blueprint, config=config)


def save(blueprint: Blueprint, model: Any, state: State, plan: dict[str, Any], folder: Path) -> None:
    """As save_pretrained does. The config keeps its model type and gains the plan and an `auto_map`.

    Weights have the names of published checkpoints, which every version of transformers understands.
    """
    model.save_pretrained(folder, state_dict=state)
    config = copy.deepcopy(blueprint.config)
    setattr(config, PLAN_KEY, plan)
    names = stock_classes(blueprint) | ({"AutoConfig": "StockConfig"} if first_version(blueprint) else {})
    config.auto_map = {auto: f"{Path(MODELING).stem}.{name}" for auto, name in names.items()}
    config.save_pretrained(folder)


def _plain_config(blueprint: Blueprint, settings: Settings) -> Any:
    """The config with `settings`, validated again, without the keys of a pruned checkpoint."""
    from transformers import AutoConfig

    raw = {k: v for k, v in blueprint.config.to_dict().items() if k not in (PLAN_KEY, "auto_map")}
    return AutoConfig.for_model(**(raw | settings))


def plain_shapes(blueprint: Blueprint, settings: Settings) -> dict[str, tuple[int, ...]]:
    """Build the class without memory for its weights."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        with torch.device("meta"):
            state = blueprint.prototype(_plain_config(blueprint, settings)).state_dict()
    except (RuntimeError, ValueError, TypeError, KeyError, ZeroDivisionError, StrictDataclassError) as error:
        words = " ".join(str(error).split())
        raise CheckpointError(f"{blueprint.model_class} does not build with such a config: {words}") from error
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def save_plain(blueprint: Blueprint, model: Any, state: State, settings: Settings, folder: Path) -> None:
    """As save_pretrained does, with the changed config."""
    model.save_pretrained(folder, state_dict=state)
    _plain_config(blueprint, settings).save_pretrained(folder)
