"""A cut model, its plan and the checkpoint it came from in; a folder that plain transformers can load out."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from optin_cli import runtime
from optin_cli.checkpoint import CONFIG, PLAN_KEY, Checkpoint
from optin_cli.surgery import Plan

MODELING = "modeling_optin.py"
MANIFEST = "optin.json"
CARD = "README.md"
CARRIED = (
    "tokenizer*",
    "vocab.*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.model",
    "preprocessor_config.json",
    "processor_config.json",
    "chat_template*",
    "LICENSE*",
    "NOTICE*",
)
"""Files of a checkpoint that belong to any model cut from it: tokenizer, processor, licence."""

LOADER = '''

class {name}(transformers.{stock}):
    """{stock} with the shapes of `config.{key}`."""

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        apply_plan(self, config.{key})
'''


def round_to_storage(model: nn.Module, dtype: torch.dtype) -> None:
    """Round the weights in memory to what storing them as `dtype` keeps, so that saving changes nothing more."""
    with torch.no_grad():
        for tensor in model.parameters():
            if tensor.is_floating_point():
                tensor.copy_(tensor.to(dtype).to(tensor.dtype))


def modeling_source(classes: dict[str, str]) -> str:
    """Text of the self-contained module beside the weights.

    Args:
        classes: stock class names by the names of their cut counterparts.
    """
    text = Path(runtime.__file__).read_text(encoding="utf-8")
    text = text.replace("import torch\n", "import torch\nimport transformers\n", 1)
    return text + "".join(LOADER.format(name=n, stock=s, key=PLAN_KEY) for n, s in classes.items())


def save_cut(checkpoint: Checkpoint, model: Any, plan: Plan, folder: Path) -> None:
    """Write weights, config, modelling code and carried files of a cut model into an existing folder.

    Weights keep the storage type of the checkpoint. The config keeps its model type and gains the plan and
    an `auto_map`, for the checkpoint's own auto class and for the bare base model.
    """
    import transformers

    state = {
        name: (tensor.to(checkpoint.dtype) if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in model.state_dict().items()
    }
    model.save_pretrained(folder, state_dict=state)
    base_class = transformers.AutoModel._model_mapping[type(checkpoint.config)]
    stocks = {checkpoint.auto_class: checkpoint.model_class, "AutoModel": base_class.__name__}
    names = {auto: f"Optin{stock}" for auto, stock in stocks.items()}
    config = copy.deepcopy(checkpoint.config)
    setattr(config, PLAN_KEY, plan.model_dump())
    config.auto_map = {auto: f"{Path(MODELING).stem}.{name}" for auto, name in names.items()}
    config.save_pretrained(folder)
    classes = {names[auto]: stock for auto, stock in stocks.items()}
    (folder / MODELING).write_text(modeling_source(classes), encoding="utf-8")
    for pattern in CARRIED:
        for path in sorted(checkpoint.folder.glob(pattern)):
            if path.is_file() and not (folder / path.name).exists():
                shutil.copyfile(path, folder / path.name)
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(folder / CONFIG)
