"""Speed of generation in an evaluation: which models are timed, on what, and where it is shown."""

import pytest
from helpers.models import save_checkpoint
from helpers.running import call, done

import optin_cli
from optin_cli.artifacts.base import parse
from optin_cli.artifacts.evaluation import Evaluation
from optin_cli.artifacts.generation import Generation, Quartiles
from optin_cli.cli.tables import generation_rows
from optin_cli.diffing.diff import diff
from optin_cli.evaluation.generation import held_lengths
from optin_cli.options.evaluation import EvalOptions
from optin_cli.options.generation import GenerationOptions
from optin_cli.reporting.commands import _evaluate
from optin_cli.reporting.places import Places

QUICK = GenerationOptions(decode_runs=1, decode_warmup=0, decode_batch=(2,), prompt_length=5, new_tokens=3)
FLAGS = (
    "--latency-runs",
    "0",
    "--decode-runs",
    "1",
    "--decode-batch",
    "2",
    "--prompt-length",
    "5",
    "--new-tokens",
    "3",
)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("decoders") / "llama", "llama", "next")


@pytest.fixture(scope="module")
def timed(llama):
    model = optin_cli.load(llama)
    return optin_cli.evaluate(model, against=model, options=EvalOptions(latency_runs=0, generation=QUICK))


def test_both_models_are_timed(timed):
    for found in (timed.generation, timed.against.generation):
        assert [*found.speeds] == [2] and (found.prompt_tokens, found.new_tokens, found.runs) == (5, 3, 1)
    assert timed.generation.cache_bytes_per_token == timed.against.generation.cache_bytes_per_token > 0
    assert parse(Evaluation, timed.dump(), "eval") == timed


def test_the_table_compares_each_measure(timed):
    rows = generation_rows(timed)
    assert [name for name, *_ in rows] == [
        "prefill tokens/s, batch 2, 5 tokens",
        "decode tokens/s, batch 2, 3 tokens after 5",
        "KV-cache bytes/token, float32",
    ]
    assert rows[2][1:] == ("384", "384", "1.000")
    mine, theirs = (one.speeds[2].decode_per_second.median for one in (timed.generation, timed.against.generation))
    assert rows[1][3] == f"{mine / theirs:.3f}"
    alone = generation_rows(timed.model_copy(update={"against": None}))
    assert [row[2:] for row in alone] == [("", "")] * 3


def test_speed_is_no_difference(timed, tmp_path):
    slower = timed.generation.model_dump(mode="json", by_alias=True)
    slower["speeds"]["2"]["decode_per_second"]["median"] /= 2
    for name, speed in (("a", timed.generation), ("b", Generation.model_validate(slower))):
        (tmp_path / name).write_text(timed.model_copy(update={"generation": speed}).dump())
    found = diff(tmp_path / "a", tmp_path / "b")
    assert found.same and [*found.timings] == ["generation.speeds.2.decode_per_second.median"]


def test_a_report_says_how_to_time_again(timed):
    line = _evaluate(timed, "e.json", Places(None, {}))
    assert "--decode-runs 1 --decode-batch 2 --prompt-length 5 --new-tokens 3" in line and "--latency-runs 0" in line


@pytest.mark.parametrize(
    ("asked", "latency_runs", "runs"), [(None, 20, 5), (None, 1, 5), (None, 0, 0), (0, 20, 0), (3, 0, 3)]
)
def test_generation_is_timed_where_latency_is(asked, latency_runs, runs):
    assert GenerationOptions(decode_runs=asked).runs(latency_runs) == runs


@pytest.mark.parametrize(("positions", "prompt", "new"), [(1024, 128, 32), (150, 118, 32), (64, 32, 32), (20, 10, 10)])
def test_lengths_are_what_the_positions_hold(tmp_path, positions, prompt, new):
    model = optin_cli.load(save_checkpoint(tmp_path / "llama", "llama", "next", max_position_embeddings=positions))
    held = held_lengths(GenerationOptions(), [model])
    assert (held.prompt_length, held.new_tokens) == (prompt, new)


def test_models_that_do_not_generate_are_not_timed(made):
    assert optin_cli.evaluate(made.bert, options=EvalOptions(latency_runs=1, latency_batch=1)).generation is None
    found = call("eval", made.bert, "--decode-runs", "1")
    assert found.code == 2
    assert "--decode-runs needs a model that generates text, but bert is a BertForSequenceClassification" in found.err


def test_the_command_times_generation(llama, here):
    done("eval", llama, *FLAGS)
    found = parse(Evaluation, (here / "llama.eval.json").read_text(), "eval")
    assert found.latency is None and [*found.generation.speeds] == [2]


def test_quartiles_in_words():
    assert Quartiles(lower=9.87654, median=123.456, upper=16310.4).words() == "123.5 (9.877 to 16,310)"


def test_quartiles_of_few_values():
    assert Quartiles.of([2.0]) == Quartiles(lower=2, median=2, upper=2)
    assert Quartiles.of([5.0, 1, 4, 2, 3]) == Quartiles(lower=2, median=3, upper=4)
