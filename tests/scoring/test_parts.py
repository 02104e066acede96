"""Parts of a run: merged they are the run, and nothing else is merged."""

import pytest
from helpers.models import save_checkpoint, tiny_tokenizer
from helpers.running import write_rows

from optin_cli.artifacts.part import is_part, read_part_header
from optin_cli.checkpoints.checkpoint import load
from optin_cli.errors import ArtifactError, UsageError
from optin_cli.options.scoring import ScoreOptions
from optin_cli.options.shard import Shard
from optin_cli.scoring.parts import merge_parts, score_part, write_part
from optin_cli.scoring.score import score

QUICK = {"probes": 1, "batch_size": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("parts")
    for seed, name in enumerate(("bert", "other")):
        save_checkpoint(root / name, num_labels=2, seed=seed, num_hidden_layers=2)
        tiny_tokenizer().save_pretrained(root / name)
    for name, first in (("texts", "a"), ("others", "b")):
        write_rows(root / f"{name}.jsonl", [{"text": f"{first} {'c d e ' * (1 + row % 4)}"} for row in range(19)])
    return root


@pytest.fixture(scope="module")
def checkpoint(folder):
    return load(folder / "bert")


@pytest.fixture(scope="module")
def parts(folder, checkpoint):
    return {name: written(folder, checkpoint, name) for name in ("1/3", "2/3", "3/3")}


def written(folder, checkpoint, shard, *, data="texts.jsonl", label="", **options):
    path = folder / f"{label}{shard.replace('/', '-')}.safetensors"
    part = score_part(checkpoint, folder / data, Shard.parse(shard), ScoreOptions(**QUICK, **options))
    write_part(path, part, force=True)
    return path


def whole(folder, checkpoint, **options):
    return score(checkpoint, folder / "texts.jsonl", ScoreOptions(**QUICK, **options)).content()


def test_parts_in_any_order_are_the_whole_run(folder, checkpoint, parts):
    assert merge_parts([parts[name] for name in ("2/3", "3/3", "1/3")]).content() == whole(folder, checkpoint)


@pytest.mark.parametrize("options", [{"criterion": "slimgpt"}, {"estimator": "hybrid", "exact_samples": 4}])
@pytest.mark.parametrize("count", [1, 2, 8])
def test_whatever_is_a_sum_over_samples_is_merged(folder, checkpoint, options, count):
    paths = [written(folder, checkpoint, f"{n}/{count}", label="any", **options) for n in range(1, count + 1)]
    assert merge_parts(paths).content() == whole(folder, checkpoint, **options)


def test_a_part_says_what_it_is(parts):
    header = read_part_header(parts["2/3"])
    assert is_part(parts["2/3"]) and (header.name, header.portions) == ("2/3", 8)
    assert list(header.counts) == ["2", "3", "4"]
    assert sum(read_part_header(path).samples for path in parts.values()) == 19


def odd(name, **change):
    """A part that belongs to another run."""

    def make(folder, checkpoint):
        return written(folder, checkpoint, "2/3", label=name, **change)

    return make


REFUSED = {
    "missing": (["1/3", "3/3"], r"Part 2/3 of 3 is missing"),
    "two missing": (["3/3"], r"Parts 1/3, 2/3 of 3 are missing"),
    "the same file": (["1/3", "2/3", "3/3", "1/3"], r"1-3\.safetensors is given twice"),
    "doubled": (["1/3", "2/3", "3/3", odd("copy")], r"2-3\.safetensors and .*copy2-3\.safetensors are both part 2/3"),
    "options": (["1/3", odd("seed", seed=1), "3/3"], r"seed2-3\..*: its option seed is 1, not 0"),
    "data": (["1/3", odd("data", data="others.jsonl"), "3/3"], r"its calibration is others.*, not texts"),
    "division": (["1/3", lambda f, c: written(f, c, "2/2"), "3/3"], r"it is part 2/2, that is part 1/3"),
    "checkpoint": (
        ["1/3", lambda f, _: written(f, load(f / "other"), "2/3", label="model"), "3/3"],
        r"its checkpoint is other .*, not bert",
    ),
    "no part": (["1/3", lambda f, _: f / "bert/model.safetensors", "3/3"], r"is not a part of scores"),
    "no file": (["1/3", lambda f, _: f / "none.safetensors", "3/3"], r"cannot be read as a part file"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_parts_that_are_not_one_run_are_refused_by_name(folder, checkpoint, parts, name):
    given, words = REFUSED[name]
    paths = [parts[one] if isinstance(one, str) else one(folder, checkpoint) for one in given]
    with pytest.raises(ArtifactError, match=words):
        merge_parts(paths)


def test_a_part_that_lacks_tensors_is_refused(folder, parts):
    cut = folder / "cut.safetensors"
    cut.write_bytes(parts["2/3"].read_bytes()[:-8])
    with pytest.raises(ArtifactError, match=r"cut\.safetensors is not a complete part file"):
        merge_parts([parts["1/3"], cut, parts["3/3"]])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"criterion": "random"}, "sees no samples"),
        ({"units": ("heads", "neurons", "blocks")}, "The importance of blocks"),
    ],
)
def test_what_is_no_sum_over_samples_is_refused(folder, checkpoint, options, words):
    with pytest.raises(UsageError, match=words):
        score_part(checkpoint, folder / "texts.jsonl", Shard(1, 2), ScoreOptions(**options))
