"""Code for folders of transformers: what goes along with the weights, and what loads them elsewhere."""

from __future__ import annotations

import re

import torch

from optin_cli.architectures.registry import known_architectures
from optin_cli.checkpoints.libraries.registry import PLAN_KEY, Blueprint, Mapped
from optin_cli.checkpoints.sentences import is_installed

LIBRARY = "transformers"
LOADER = '''

class {stock}(transformers.{stock}):
    """The stock class with the shapes of `config.{key}`, under its name: by that pipelines know what it is for."""

    # Buffers that the version which wrote this folder computes; in others they may be among the weights.
    _keys_to_ignore_on_load_missing = [*(transformers.{stock}._keys_to_ignore_on_load_missing or []), *{computed}]
    # Versions 4.44 to 4.48 may replace parameters instead of filling them, and lose the biases of tied output heads.
    _supports_param_buffer_assignment = False

    def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        apply_plan(self, config.{key})

    @classmethod
    def is_custom_code(cls) -> bool:
        """False: the names of weights are those of the stock class, which the library translates for its own alone."""
        return False
'''
REQUIRE = '''
if not hasattr(transformers, "{stock}"):
    raise ImportError(
        f"This folder needs transformers >={first}: the installed transformers {{transformers.__version__}} has no "
        '{stock}. pip install "transformers>={first}"'
    )


class StockConfig:
    """The stock config. It is reached through this module, so that versions without it get to know what they lack."""

    from_pretrained = transformers.{config}.from_pretrained

    @staticmethod
    def register_for_auto_class(auto_class: str = "AutoConfig") -> None:
        """Do nothing: the stock config goes without code."""
'''
TRUST = ", trust_remote_code=True"
RETURNS = {"return_dict": True, "output_attentions": False, "output_hidden_states": False}
"""Keys of a config that decide what a model returns, and their values where outputs are compared by name."""
RELOAD = """
import transformers
model = transformers.{auto_class}.from_pretrained(folder{trust}, dtype=torch.float32, **{returns})
"""
RELOAD_MAPPED = """
import transformers
model = transformers.{auto_class}.from_pretrained(folder{trust}, dtype={dtype}, **{returns})
blocks = [model.get_submodule(path) for path in {blocks}]
inside = {{module for block in blocks for module in block.modules()}}
stored = {{}}

def widen(block, _):
    stored[block] = [parameter.data for parameter in block.parameters()]
    block.float()

def narrow(block, *_):
    for parameter, data in zip(block.parameters(), stored.pop(block)):
        parameter.data = data

for module in model.modules():
    for tensor in [] if module in inside else [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
        tensor.data = tensor.float() if tensor.is_floating_point() else tensor
for block in blocks:
    block.register_forward_pre_hook(widen)
    block.register_forward_hook(narrow)
"""
"""RELOAD for a model that memory cannot hold in float32: one block at a time is converted to it."""
CARD = """from transformers import {auto_class}, {processor}

folder = "path/to/this/folder"
model = {auto_class}.from_pretrained(folder{trust})
{variable} = {processor}.from_pretrained(folder{trust})"""


RELOADS = {
    "SentenceTransformer": """
from sentence_transformers import SentenceTransformer
found = SentenceTransformer(folder, device="cpu"{trust}).float().eval()
class Sentences(torch.nn.Module):
    def forward(self, **inputs):
        first, *others = found
        features = first(inputs)
        hidden = features["token_embeddings"].clone()  # earlier versions pool in place
        for module in others:
            features = module(features)
        return {{**features, "last_hidden_state": hidden}}
model = Sentences()
""",
    "CrossEncoder": """
from sentence_transformers import CrossEncoder
model = CrossEncoder(folder, device="cpu"{trust}).model.float()
""",
}
CARD_SENTENCES = """from sentence_transformers import {loader}

model = {loader}("path/to/this/folder"{trust})"""


def stock_classes(blueprint: Blueprint) -> dict[str, str]:
    """Stock class names by auto class: the checkpoint's own, and the bare base model where there is one."""
    import transformers

    bases = transformers.AutoModel._model_mapping
    base = {"AutoModel": bases[type(blueprint.config)].__name__} if type(blueprint.config) in bases else {}
    return {blueprint.auto_class: blueprint.model_class, **base}


def first_version(blueprint: Blueprint) -> str | None:
    """The first version of the library that has such models, if its description says so."""
    description = known_architectures(LIBRARY).get(blueprint.kind)
    return None if description is None else description.first.get(blueprint.kind)


def modeling(blueprint: Blueprint) -> str:
    """One class per entry of the auto map, named like the library's own: pipelines go by that name."""
    stocks, first = dict.fromkeys(stock_classes(blueprint).values()), first_version(blueprint)
    config = type(blueprint.config).__name__
    require = "" if first is None else REQUIRE.format(stock=blueprint.model_class, config=config, first=first)
    with torch.device("meta"):
        modules = blueprint.prototype(blueprint.config).modules()
    computed = sorted({rf"{re.escape(name)}$" for module in modules for name in module._non_persistent_buffers_set})
    classes = "".join(LOADER.format(stock=stock, key=PLAN_KEY, computed=computed) for stock in stocks)
    return f"\n\nimport transformers  # noqa: E402\n{require}{classes}"


def reloading(blueprint: Blueprint, *, plain: bool = False, mapped: Mapped | None = None) -> tuple[str, str]:
    """By the auto class, or sentence-transformers where they are installed and the folder is theirs.

    With the code beside the weights unless the library's own class takes them. Sentence-transformers map no weights.
    """
    trust = "" if plain else TRUST
    if blueprint.sentences is not None and is_installed():
        loader = blueprint.sentences.loader
        words = f"{'plain ' if plain else ''}{loader}({trust.lstrip(', ')})"
        return f"{words} in a fresh process without optin", RELOADS[loader].format(trust=trust)
    call = f"{blueprint.auto_class}.from_pretrained"
    words = f"plain {call}" if plain else f"{call}({trust.lstrip(', ')})"
    named = {"auto_class": blueprint.auto_class, "trust": trust, "returns": RETURNS}
    if mapped is not None:
        return f"{words} in a fresh process without optin", RELOAD_MAPPED.format(**named, **vars(mapped))
    code = RELOAD.format(**named)
    return f"{words} in a fresh process without optin", code


def loading(blueprint: Blueprint, *, plain: bool = False) -> str:
    """By the auto class, with what prepares its inputs."""
    text, trust = blueprint.image is None, "" if plain else TRUST
    if blueprint.sentences is not None:
        return CARD_SENTENCES.format(loader=blueprint.sentences.loader, trust=trust)
    variable, processor = ("tokenizer", "AutoTokenizer") if text else ("processor", "AutoImageProcessor")
    return CARD.format(auto_class=blueprint.auto_class, processor=processor, variable=variable, trust=trust)
