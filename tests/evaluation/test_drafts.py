"""Drafts of speculative decoding, against an implementation without a cache."""

import pytest
import torch
from helpers.models import save_checkpoint, tiny_tokenizer
from helpers.running import call

import optin_cli
from optin_cli.artifacts.base import parse
from optin_cli.artifacts.evaluation import Evaluation
from optin_cli.data.spec import DataSpec
from optin_cli.errors import UsageError
from optin_cli.evaluation.drafts import beginnings, require_draft
from optin_cli.options.evaluation import EvalOptions
from optin_cli.options.generation import GenerationOptions
from optin_cli.progress import SILENT
from optin_cli.reporting.commands import _evaluate
from optin_cli.reporting.places import Places

NEW, AHEAD = 10, 3
OPTIONS = EvalOptions(
    generation=GenerationOptions(prompt_length=8, new_tokens=NEW, draft_tokens=AHEAD, draft_prompts=3, decode_warmup=0)
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("drafts")
    save_checkpoint(root / "llama", "llama", "next")
    words = [f"{a} good film {b} c bad {a} film d" for a in "abcdef" for b in "ghij"]
    (root / "texts.txt").write_text("\n".join(words))
    return root


@pytest.fixture(scope="module")
def original(folder):
    return optin_cli.load(folder / "llama")


def blurred(folder, share):
    """The same model with noise on its weights."""
    draft = optin_cli.load(folder / "llama")
    torch.manual_seed(1)
    for weight in draft.model.parameters():
        weight.add_(torch.randn(weight.shape), alpha=share * float(weight.std()))
    return draft


def choose(model, ids):
    """The likest next token that is no end token."""
    logits = model(input_ids=torch.tensor([ids]))["logits"][0, -1]
    logits[model.generation_config.eos_token_id] = -torch.inf
    return int(logits.argmax())


def speculate(draft, original, ids):
    """Passes of the original, drafted and accepted tokens, and the text, by the definition."""
    start, passes, drafted, accepted = len(ids), 0, 0, 0
    while len(ids) < start + NEW:
        ahead = min(AHEAD, start + NEW - len(ids) - 1)
        proposed = []
        for _ in range(ahead):
            proposed.append(choose(draft, ids + proposed))
        kept = 0
        while kept < ahead and choose(original, ids + proposed[:kept]) == proposed[kept]:
            kept += 1
        ids = [*ids, *proposed[:kept], choose(original, ids + proposed[:kept])]
        passes, drafted, accepted = passes + 1, drafted + ahead, accepted + kept
    return passes, drafted, accepted


@torch.no_grad()
@pytest.mark.parametrize("noise", [0.0, 0.1, 3.0])
def test_counts_are_those_of_the_definition(folder, original, noise):
    draft = blurred(folder, noise)
    found = optin_cli.evaluate_draft(draft, original, folder / "texts.txt", options=OPTIONS)
    prompts = [
        p["input_ids"][0].tolist() for p in beginnings(original, DataSpec.of(folder / "texts.txt"), OPTIONS, SILENT)
    ]
    counts = [speculate(draft.model, original.model, prompt) for prompt in prompts]
    assert (found.passes, found.drafted, found.accepted) == tuple(map(sum, zip(*counts, strict=True)))
    assert found.acceptance == found.accepted / found.drafted
    assert (found.prompts, found.same) == (3, 3), "the text is the original's"
    assert found.prompt_tokens == max(map(len, prompts)) <= 8 and found.new_tokens == NEW
    assert found.speedup > 0 and found.tokens_per_second.median > 0 and found.alone_per_second.median > 0
    if not noise:
        assert found.acceptance == 1
        assert optin_cli.evaluate_draft(original, original, folder / "texts.txt", options=OPTIONS).acceptance == 1


def test_models_are_left_as_they_were(folder, original):
    draft = blurred(folder, 0.0)
    before = draft.model.generation_config.to_dict()
    optin_cli.evaluate_draft(draft, original, folder / "texts.txt", options=OPTIONS)
    assert draft.model.generation_config.to_dict() == before


def other_tokens(folder):
    save_checkpoint(folder, "llama", "next")
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["verse"])
    tokenizer.save_pretrained(folder)


def more_rows(folder):
    save_checkpoint(folder, "llama", "next", vocab_size=120)


def encoder(folder):
    save_checkpoint(folder, "bert")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            other_tokens,
            ["draft cannot draft for llama, whose tokenizer is another: 30 tokens and 29", "'verse' is 29 and none"],
        ),
        (more_rows, ["it has logits for 120 tokens, the other for 99"]),
        (encoder, ["--draft-for needs a model that generates text, but draft is a BertForSequenceClassification"]),
    ],
)
def test_unfit_pairs_are_refused(tmp_path, original, make, words):
    make(tmp_path / "draft")
    with pytest.raises(UsageError) as caught:
        require_draft(optin_cli.load(tmp_path / "draft"), original)
    for part in words:
        assert part in str(caught.value)


FLAGS = ("--latency-runs", 0, "--prompt-length", 8, "--new-tokens", 6, "--draft-tokens", 2, "--draft-prompts", 2)


def test_the_command_measures_a_draft(folder, here):
    llama, data = folder / "llama", folder / "texts.txt"
    found = call("eval", llama, "--draft-for", llama, "--against", llama, "--data", data, *FLAGS)
    assert found.code == 0, found.err
    result = parse(Evaluation, (here / "llama.eval.json").read_text(), "eval")
    assert result.draft.acceptance == 1 and result.draft.drafted == 2 * 4 and result.inputs["draft_for"].name == "llama"
    assert "acceptance rate, drafts of 2 tokens for llama" in found.err and "2 of 2" in found.err
    assert "--draft-for llama" in _evaluate(result, "e.json", Places(None, {}))
    assert "--draft-tokens 2 --draft-prompts 2" in _evaluate(result, "e.json", Places(None, {}))


def test_a_draft_needs_texts(folder):
    found = call("eval", folder / "llama", "--draft-for", folder / "llama")
    assert found.code == 2 and "--draft-for continues texts, and none are named." in found.err
