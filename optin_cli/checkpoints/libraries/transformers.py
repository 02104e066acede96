"""Hugging Face transformers: folders with config.json naming a model_type, loaded without running code from them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from optin_cli.architectures.registry import find_architecture, known_heads
from optin_cli.checkpoints.folders import download
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
from optin_cli.checkpoints.weights import State, strip_prefix
from optin_cli.errors import CheckpointError, UsageError, did_you_mean, headline
from optin_cli.model.modeling_optin import apply_plan
from optin_cli.tasks.schema import LabelMapRule

if TYPE_CHECKING:
    from optin_cli.model.config_counts import Settings


LIBRARY = "transformers"
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
TEXT, IMAGE = "input_ids", "pixel_values"
"""Names of a model's main input."""
SQUARE, WIDE = (256, 256), (320, 256)
"""Sizes of two images (width, height) that show what a processor makes of images in general."""
REDUCES = ("do_reduce_labels", "reduce_labels")
"""How processors say that id 0 of a label map does not count, the second in files of old that are still around."""
LOADER = '''

class {stock}(transformers.{stock}):
    """The stock class with the shapes of `config.{key}`, under its name: by that pipelines know what it is for."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        apply_plan(self, config.{key})
'''
TRUST = ", trust_remote_code=True"
RETURNS = {"return_dict": True, "output_attentions": False, "output_hidden_states": False}
"""Keys of a config that decide what a model returns, and their values where outputs are compared by name."""
RELOAD = """
import transformers
model = transformers.{auto_class}.from_pretrained(folder{trust}, dtype=torch.float32, **{returns})
"""
ATTENTION_KEYS = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
ATTENTIONS = ("sdpa", "eager")
"""Attention implementations that need nothing but torch, on any device and in float32."""
CARD = """from transformers import {auto_class}, {processor}

folder = "path/to/this/folder"
model = {auto_class}.from_pretrained(folder{trust})
{variable} = {processor}.from_pretrained(folder)"""


def owns(raw: Mapping[str, Any]) -> bool:
    """Whether a config is one of transformers."""
    return "model_type" in raw


def read(folder: Path, raw: dict[str, Any], reading: Reading) -> Blueprint:
    """Understand a config of transformers."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    path = folder / CONFIG
    if reading.architecture is None:
        find_architecture(str(raw["model_type"]), LIBRARY)
    try:
        config = AutoConfig.for_model(**_with_own_attention(raw))
    except (ValueError, TypeError, KeyError, StrictDataclassError) as error:
        shown = " ".join(str(error).split())
        raise CheckpointError(f"{path} is refused by transformers: {shown}") from error
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
        plan=getattr(config, PLAN_KEY, None),
        prototype=model_class,
        opened_as=reading.as_class if model_class.__name__ != named else None,
    )


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

    try:
        return AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError, TypeError) as error:
        raise CheckpointError(f"The image processor of {folder} cannot be used: {headline(error)}") from error


def _image_spec(folder: Path, config: Any) -> ImageSpec:
    """What the image processor makes of an image, else what the config says."""
    channels = int(getattr(config, "num_channels", 3))
    if _has_processor(folder):
        from PIL import Image

        mode = "L" if channels == 1 else "RGB"
        process = _as_pixels(_processor(folder))
        square, wide = (process(Image.new(mode, size)) for size in (SQUARE, WIDE))
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

    return type(model_class.__name__, (model_class,), {"__init__": build_planned})


def build(blueprint: Blueprint, state: State, name: str) -> Built:
    """The model in float32 with its weights; nothing is filled in at random.

    It returns its outputs by name, whatever its config says.
    """
    config = copy.deepcopy(blueprint.config)
    for key, value in RETURNS.items():
        setattr(config, key, value)
    kind = planned_class(blueprint.prototype) if blueprint.plan else blueprint.prototype
    try:
        with torch.device("meta"):
            expected = set(kind(config).state_dict())
        model, report = kind.from_pretrained(
            None,
            config=config,
            state_dict=strip_prefix(state, expected),
            dtype=torch.float32,
            output_loading_info=True,
        )
    except (RuntimeError, ValueError, OSError, KeyError, TypeError, AttributeError) as error:
        shown = "\n".join(str(error).strip().splitlines()[:6])
        raise CheckpointError(f"{name} does not load as {blueprint.model_class}: {shown}") from error
    optional = blueprint.head.may_miss
    missing = sorted(key for key in report["missing_keys"] if key.partition(".")[0] not in optional)
    absent = {key.partition(".")[0] for key in report["missing_keys"]} & set(optional)
    if missing:
        raise CheckpointError(
            f"{name} lacks {len(missing)} weight(s) that {blueprint.model_class} needs: {', '.join(missing[:5])}"
            + ("…" if len(missing) > 5 else "."),
            hint="Transformers would fill them with random numbers. Pass the whole checkpoint, "
            "or a config whose architectures names the class that was trained.",
        )
    for part in absent:
        setattr(model, part, None)
    root = next(path for path, module in model.named_modules() if module is model.base_model)
    return Built(model.eval().requires_grad_(False), root, tuple(sorted(report["unexpected_keys"])))


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
    """A processor as a function of one image. image: what to scale to, where the user asked for its size."""
    how: dict[str, Any] = {"return_tensors": "pt"}
    if image is not None and image.resized:
        how |= {"do_resize": True, "size": {"height": image.height, "width": image.width}}
        how |= {"do_center_crop": False} if hasattr(processor, "do_center_crop") else {}
    return lambda picture: processor(images=picture, **how)[IMAGE][0]


def at_size(blueprint: Blueprint, image: ImageSpec) -> Blueprint:
    """Scaled to that size without a crop, which not every processor makes exactly."""
    if blueprint.folder is not None and _has_processor(blueprint.folder):
        from PIL import Image

        picture = Image.new("L" if image.channels == 1 else "RGB", WIDE)
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


def _classes(blueprint: Blueprint) -> dict[str, str]:
    """Stock class names by auto class: the checkpoint's own, and the bare base model where there is one."""
    import transformers

    bases = transformers.AutoModel._model_mapping
    base = {"AutoModel": bases[type(blueprint.config)].__name__} if type(blueprint.config) in bases else {}
    return {blueprint.auto_class: blueprint.model_class, **base}


def save(blueprint: Blueprint, model: Any, state: State, plan: dict[str, Any], folder: Path) -> None:
    """As save_pretrained does. The config keeps its model type and gains the plan and an `auto_map`.

    Weights keep the names they have in the model: transformers translates those of earlier versions for its own classes
    alone, not for one beside the weights.
    """
    model.save_pretrained(folder, state_dict=state, save_original_format=False)
    config = copy.deepcopy(blueprint.config)
    setattr(config, PLAN_KEY, plan)
    config.auto_map = {auto: f"{Path(MODELING).stem}.{stock}" for auto, stock in _classes(blueprint).items()}
    config.save_pretrained(folder)


def modeling(blueprint: Blueprint) -> str:
    """One class per entry of the auto map, named like the library's own: pipelines go by that name."""
    stocks = dict.fromkeys(_classes(blueprint).values())
    classes = "".join(LOADER.format(stock=stock, key=PLAN_KEY) for stock in stocks)
    return f"\n\nimport transformers  # noqa: E402\n{classes}"


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
        shown = " ".join(str(error).split())
        raise CheckpointError(f"{blueprint.model_class} does not build with such a config: {shown}") from error
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def save_plain(blueprint: Blueprint, model: Any, state: State, settings: Settings, folder: Path) -> None:
    """As save_pretrained does, with the changed config."""
    model.save_pretrained(folder, state_dict=state)
    _plain_config(blueprint, settings).save_pretrained(folder)


def reloading(blueprint: Blueprint, *, plain: bool = False) -> tuple[str, str]:
    """By the auto class; with the code beside the weights unless the library's own class takes them."""
    trust = "" if plain else TRUST
    call = f"{blueprint.auto_class}.from_pretrained"
    words = f"plain {call}" if plain else f"{call}({trust.lstrip(', ')})"
    code = RELOAD.format(auto_class=blueprint.auto_class, trust=trust, returns=RETURNS)
    return f"{words} in a fresh process without optin", code


def loading(blueprint: Blueprint, *, plain: bool = False) -> str:
    """By the auto class, with what prepares its inputs."""
    text, trust = blueprint.image is None, "" if plain else TRUST
    variable, processor = ("tokenizer", "AutoTokenizer") if text else ("processor", "AutoImageProcessor")
    return CARD.format(auto_class=blueprint.auto_class, processor=processor, variable=variable, trust=trust)
