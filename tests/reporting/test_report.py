"""`optin report`: what the page says, how it is built, and artifacts that do not belong together."""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.pages import tables
from helpers.reports import page_of, report
from helpers.running import call, done, python, tree
from helpers.sweeps import make_sweep, point

import optin_cli
from optin_cli.artifacts.base import Source, Totals, Workload, parse
from optin_cli.artifacts.costs import SharedCost
from optin_cli.artifacts.evaluation import Comparison, Evaluation, Latency, Measure
from optin_cli.artifacts.generation import Draft, Generation, Quartiles, Speed
from optin_cli.artifacts.manifest import Manifest
from optin_cli.artifacts.mask import Mask
from optin_cli.artifacts.scores import GroupScores, Scores, ScoresHeader, read_scores, write_scores
from optin_cli.checkpoints.folders import folder_source
from optin_cli.pruning.model_card import _measured
from optin_cli.reporting import commands
from optin_cli.reporting.places import Places
from optin_cli.searching.limits import Limits
from optin_cli.searching.search import search


def read(kind, path):
    return parse(kind, Path(path).read_bytes(), str(path))


def rows(root, heading, number=0):
    return tables(root)[heading][number]


def test_a_pruned_folder_with_what_lies_beside_it(work):
    root = report("bert-pruned")
    manifest, evaluation = read(Manifest, "bert-pruned/optin.json"), read(Evaluation, "bert-pruned.eval.json")
    text = root.text
    for before, after in zip(*(t.model_dump().values() for t in (manifest.before, manifest.after)), strict=True):
        assert f"{before:,} → {after:,}" in text
        assert f"\N{MULTIPLICATION SIGN} {after / before:.3f}" in text
    assert f"{evaluation.metric.value:.4f} ± {evaluation.standard_error:.4f} standard error" in text
    assert f"before: {evaluation.against.metric.value:.4f}" in text
    assert f"\N{MULTIPLICATION SIGN} {evaluation.against.latency_ratio:.3f}" in text
    title = next(root.all("title")).text
    assert title.startswith("bert-pruned: MACs \N{MULTIPLICATION SIGN}") and "accuracy" in title
    for source in (*manifest.inputs.values(), evaluation.inputs["data"], folder_source(Path("bert-pruned"))):
        assert source.sha256 in text
    assert "the mask names its hash" in text and "record names its hash" in text
    assert f"tolerance {manifest.certificate.tolerance:.3g}" in text
    assert not re.search(r"/(tmp|home|root|work)\b|202\d-", text), "no machine paths, no dates"


def test_heads_and_their_numbers(work):
    root = report("bert-pruned")
    mask, scores = read(Mask, "bert.mask.json"), read_scores("bert.scores.safetensors")
    heads = {name: group for name, group in mask.groups.items() if name.endswith(".head")}
    picture = next(svg for svg in root.all("svg") if svg.text.startswith("Heads by layer"))
    told = [node.text for node in picture.all("title")][1:]
    assert len(told) == sum(group.units for group in heads.values())
    crosses = sum("cross" in node.attributes.get("class", "") for node in picture.all("path"))
    assert crosses == sum(group.units - len(group.kept) for group in heads.values())
    numbers = {row[0]: row[1:] for row in rows(root, "Heads by layer")[1:]}
    for name, group in heads.items():
        gone = [unit for unit in range(group.units) if unit not in group.kept]
        values = ", ".join(f"{value:.3g}" for value in scores.importance[name])
        assert numbers[name] == [*(", ".join(map(str, part)) or "none" for part in (group.kept, gone)), values]
        for unit in gone:
            assert f"{name}, head {unit}: importance {scores.importance[name][unit]:.3g}, removed" in told


def test_neurons_and_macs_by_layer(work):
    root = report("bert-pruned")
    manifest, scores = read(Manifest, "bert-pruned/optin.json"), read_scores("bert.scores.safetensors")
    for row in rows(root, "Neurons by layer")[1:]:
        group = manifest.groups[f"{row[0]}.neuron"]
        values = scores.importance[f"{row[0]}.neuron"]
        shares = [len(group.kept) / group.units, values[group.kept].sum() / values.sum()]
        counts = [f"{len(group.kept)}", f"{group.units}"]
        assert row[1:5] == [*counts, *(f"{100 * share:.1f} %" for share in shares)]
    *layers, whole = rows(root, "MACs by layer")[1:]
    assert whole[1:4] == [f"{manifest.before.macs:,}", f"{manifest.after.macs:,}", whole[3]]
    for column, total in ((1, manifest.before.macs), (2, manifest.after.macs)):
        assert sum(int(row[column].replace(",", "")) for row in layers) == pytest.approx(total, abs=len(layers))


def test_without_scores_and_evaluation_it_says_so(work, made):
    Path("alone").mkdir()
    shutil.move("bert-pruned", "alone/bert-pruned")
    root = report("alone/bert-pruned")
    assert "the scores file was not found" in root.text
    assert "Not known: neither the scores file nor a profile" in root.text
    assert root.text.count("Not measured: optin eval") == 2
    assert "the file was not found" in root.text, "the mask, of which the hash is known"
    profiled = report("alone/bert-pruned", "--profile", made.profile)
    assert len(rows(profiled, "MACs by layer")) == 3 + 3


def test_equal_artifacts_give_equal_bytes(work, tmp_path_factory):
    report("bert-pruned", output="a.html")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shutil.copytree(work, elsewhere, dirs_exist_ok=True)
    done("report", elsewhere / "bert-pruned", "-o", elsewhere / "b.html")
    assert Path("a.html").read_bytes() == (elsewhere / "b.html").read_bytes()
    piped = done("report", "bert-pruned", "-o", "-")
    assert piped.out.encode() == Path("a.html").read_bytes()


def test_a_folder_that_holds_artifacts(work):
    shutil.copyfile("bert.mask.json", "again.mask.json")
    raw = json.loads(Path("bert.mask.json").read_text())
    raw["groups"]["encoder.0.head"]["kept"] = [0]
    Path("edited.mask.json").write_text(json.dumps(raw))
    Path("notes.json").write_text("{}")
    Path("broken.json").write_text("{")
    result = done("report", ".", "-o", "r.html")
    assert "Left out edited.mask.json" in result.err and result.err.count("Left out") == 1
    assert "bert-pruned" in page_of("r.html").text
    assert done("report", "bert-pruned", "-o", "q.html").err == "", "what lies beside is looked for in silence"


def test_single_files_give_a_report_without_a_pruned_model(work):
    root = report("--mask", "bert.mask.json", "--scores", "bert.scores.safetensors", "--eval", "bert-pruned.eval.json")
    assert "No cut model is part of this report" in root.text
    assert "accuracy" in root.text and "Refit" not in [node.text for node in root.all("h2")]
    kept = sum(len(g.kept) for n, g in read(Mask, "bert.mask.json").groups.items() if n.endswith("head"))
    assert f"{kept} of 12 heads are kept" in root.text


def test_default_name_json_and_python(work):
    assert done("report", "bert-pruned").out == "bert-pruned.report.html\n"
    facts = json.loads(done("report", "bert-pruned", "--force", "--json").out)
    manifest = read(Manifest, "bert-pruned/optin.json")
    assert facts["quantities"][0]["after"] == manifest.after.macs
    assert [line.split()[1] for line in facts["commands"]] == ["score", "search", "prune", "eval"]
    made = optin_cli.report("bert-pruned", "again.html", files={"eval": ["bert-pruned.eval.json"]})
    assert made.certificate == manifest.certificate
    assert Path("again.html").read_bytes() == Path("bert-pruned.report.html").read_bytes()


def test_an_evaluation_of_images_has_no_latency_length(work):
    result = read(Evaluation, "bert-pruned.eval.json")
    speed = Latency(
        batch_size=32, image=(3, 8, 8), runs=3, device="cpu", threads=1, median_ms=9.0, samples_per_second=3.0
    )
    line = commands._evaluate(result.model_copy(update={"latency": speed}), "e.json", Places(None, {}))
    assert "--latency-runs 3" in line and "--latency-length" not in line


def test_generation_and_drafts_are_shown(work):
    result = read(Evaluation, "bert-pruned.eval.json")
    fast, slow = (Quartiles(lower=rate - 1, median=rate, upper=rate + 1) for rate in (30.0, 20.0))
    shared = {"device": "cpu", "threads": 2, "new_tokens": 32}
    mine, theirs = (
        Generation(
            **shared,
            prompt_tokens=128,
            runs=5,
            warmup=1,
            cache_dtype="float32",
            cache_bytes_per_token=held,
            speeds={1: Speed(prefill_per_second=rate, decode_per_second=rate)},
        )
        for held, rate in ((384, fast), (512, slow))
    )
    counts = {
        "prompts": 2,
        "prompt_tokens": 8,
        "draft_tokens": 4,
        "passes": 16,
        "drafted": 60,
        "accepted": 48,
        "same": 2,
    }
    rates = {"tokens_per_second": fast, "alone_per_second": slow, "speedup": 1.5}
    draft = Draft(**shared, **counts, **rates, original="large", acceptance=0.8)
    other = result.against.model_copy(update={"generation": theirs})
    changed = result.model_copy(update={"generation": mine, "draft": draft, "against": other})
    before = Path("bert-pruned.eval.json").read_text()
    Path("bert-pruned.eval.json").write_text(changed.dump())
    try:
        text = report("bert-pruned").text
    finally:
        Path("bert-pruned.eval.json").write_text(before)
    for words in (
        "decode tokens/s, batch 1, 32 tokens after 128",
        "30 (29 to 31)",
        "20 (19 to 21)",
        "1.500",
        "KV-cache bytes/token, float32",
        "acceptance rate, drafts of 4 tokens for large",
        "0.8000",
        "4.00",
        "2 of 2",
    ):
        assert words in text, words
    card = _measured(changed.model_copy(update={"latency": None}))
    assert "| decode tokens/s, batch 1, 32 tokens after 128 |  | 20 (19 to 21) | 30 (29 to 31) | ratio 1.500 |" in card
    assert "Generation was timed on cpu, 2 threads." in card


def test_it_needs_no_torch(work):
    code = "import sys; sys.modules['torch'] = None\nfrom optin_cli.cli.main import main\nmain()"
    result = python(code, "report", "bert-pruned", cwd=work)
    assert result.returncode == 0, result.stderr


# Names that mean harm


HOSTILE = """<b onclick="alert(1)">&amp;'"</b>"""


def test_names_are_shown_as_they_are(work):
    name = HOSTILE.replace("/", "")
    Path("bert-pruned").rename(name)
    raw = json.loads(Path("bert-pruned.eval.json").read_text())
    raw["inputs"]["data"]["name"] = raw["task"] = HOSTILE
    raw["against"]["name"] = "</style><script>alert(1)</script>"
    raw["metrics"]["<i>"] = 0.5
    Path("bert-pruned.eval.json").write_text(json.dumps(raw))
    root = report(name)
    assert next(root.all("h1")).text == name
    assert not list(root.all("script"))
    assert all("onclick" not in node.attributes for node in root.all())
    assert "<i>" in root.text and "</style><script>alert(1)</script>" in root.text
    assert shlex.quote(HOSTILE) in root.text


# Sweeps


@pytest.fixture
def swept(work):
    evaluation = read(Evaluation, "bert-pruned.eval.json")
    points = [point("optin", 0.7, 0.89), point("optin", 0.5, 0.88), point("magnitude", 0.5, 0.7)]
    sweep = make_sweep(evaluation.inputs["against"], evaluation.inputs["data"], points)
    Path("sweep").mkdir()
    Path("sweep/sweep.json").write_text(sweep.dump())
    return sweep


def plots(root):
    return [svg for svg in root.all("svg") if " over " in next(svg.all("title"), svg).text]


def test_a_sweep_folder_shows_its_frontier(swept):
    root = report("sweep")
    assert next(root.all("h1")).text == "bert" and "No cut model" in root.text
    assert "0.9000 original" in root.text and "12 original" in root.text
    found = plots(root)
    assert [next(svg.all("title")).text for svg in found] == ["accuracy over MACs", "accuracy over latency"]
    told = [node.text for node in found[0].all("title")]
    assert "optin at 0.499: 0.8800 ± 0.0100" in told and "magnitude at 0.499: 0.7000 ± 0.0100" in told
    table = rows(root, "Frontier: accuracy, MACs and latency")
    assert table[1][0] == "original" and len(table) == 2 + len(swept.points)
    assert table[4][:6] == ["magnitude", "0.5", "0.4990", "0.8000", "0.7000 ± 0.0100", "+0.2000"]
    assert "optin sweep bert --calib train.jsonl --task sst2" in root.text
    assert "--recipe optin,magnitude --keep-flops 0.7,0.5" in root.text


def test_the_cut_model_in_the_frontier_of_its_sweep(swept):
    root = report(".")
    assert next(root.all("h1")).text == "bert-pruned"
    assert "this report's model" in plots(root)[0].text
    assert any("This report's model has" in node.text for node in root.all("figcaption"))


def timed_as(path, **changes):
    """Edit what the latency of an evaluation was measured with."""
    raw = json.loads(Path(path).read_text())
    raw["latency"].update(changes)
    Path(path).write_text(json.dumps(raw))


@pytest.mark.parametrize(
    ("device", "words"),
    [
        ("cpu", "64 tokens, cpu, 3 threads"),
        ("cpu (AMD EPYC 7763)", "64 tokens, cpu (AMD EPYC 7763), 3 threads"),
        ("cuda (NVIDIA H100)", "64 tokens, cuda (NVIDIA H100)"),
    ],
)
def test_latency_is_said_with_its_device_and_threads(work, device, words):
    timed_as("bert-pruned.eval.json", device=device, threads=3)
    text = report("bert-pruned").text
    assert words in text and ("3 threads" in text) == device.startswith("cpu")


@pytest.mark.parametrize(
    ("device", "threads", "joined"), [("cpu", 1, True), ("cpu (AMD EPYC 7763)", 1, False), ("cpu", 2, False)]
)
def test_latencies_are_drawn_together_if_they_were_measured_alike(swept, device, threads, joined):
    timed_as("bert-pruned.eval.json", device=device, threads=threads, batch_size=32, seq_len=64)
    over_macs, over_latency = plots(report("."))
    assert "this report's model" in over_macs.text
    assert ("this report's model" in over_latency.text) == joined


@pytest.mark.parametrize("timed", [True, False])
def test_sweeps_without_latency_and_with_a_choice(swept, timed):
    less = {} if timed else {"latency": None, "latency_ratio": None}
    points = [point.model_copy(update=less) for point in swept.points]
    base = swept.baseline if timed else swept.baseline.model_copy(update={"latency": None, "standard_error": None})
    options = {**swept.options, "keep_flops": None, "max_drop": 0.05}
    changed = swept.model_copy(update={"points": points, "baseline": base, "chosen": 1, "options": options})
    Path("sweep/sweep.json").write_text(changed.dump())
    root = report("--sweep", "sweep/sweep.json")
    assert len(plots(root)) == 1 + timed
    rings = [n for n in plots(root)[0].all("circle") if n.attributes["class"] == "ring"]
    assert len(rings) == 1 and "allowed 0.8500" in root.text and "(chosen)" in root.text
    assert "--max-drop 0.05" in root.text
    assert ("Latency was not measured for all points" in root.text) is not timed


# Other families


def made_scores(groups, workload, seed=0):
    draw = np.random.default_rng(seed)
    source = Source(name="model", sha256="0" * 64)
    header = ScoresHeader(
        optin_version="0.1.0",
        options={},
        inputs={"checkpoint": source},
        family="any",
        architecture="Any",
        criterion="magnitude",
        workload=workload,
        totals=Totals(macs=1_000_000, parameters=100_000, bytes=400_000),
        groups=groups,
    )
    return Scores(header, {name: draw.random(group.units, dtype=np.float32) for name, group in groups.items()})


def group(block, kind, units, **more):
    costs = {"unit_macs": 1000.0, "unit_parameters": 10}
    return GroupScores(kind=kind, block=block, units=units, estimator="none", samples=0, **(costs | more))


CNN = {
    "layer1.0.channel": group("layer1.0", "channel", 16),
    "layer2.0.first": group("layer2.0", "channel", 48, shared={"layer2.0.second": SharedCost(macs=10.0, parameters=1)}),
    "layer2.0.second": group("layer2.0", "channel", 96),
}

STAGES = {f"stages.{s}.{b}.head": group(f"stages.{s}.{b}", "head", 3 * 2**s) for s in range(4) for b in range(2)}

TOKENS = {"blocks.3.token": group("blocks.3", "token", 197), "blocks.3.head": group("blocks.3", "head", 1)}


@pytest.mark.parametrize("groups", [CNN, STAGES, TOKENS, CNN | STAGES | TOKENS], ids=["cnn", "stages", "tokens", "all"])
@pytest.mark.parametrize("cut", [True, False])
def test_groups_of_any_kind_are_drawn(here, groups, cut):
    scores = made_scores(groups, Workload(image=(3, 224, 224)))
    write_scores("s.safetensors", scores)
    files = ["--scores", "s.safetensors"]
    if cut:
        mask = search(scores, Limits(keep_macs=0.96), name="s.safetensors")
        Path("m.json").write_text(mask.dump())
        files += ["--mask", "m.json"]
    root = report(*files)
    *layers, whole = rows(root, "MACs by layer")[1:]
    for column in (1, 2)[: 1 + cut]:
        total = float(whole[column].replace(",", ""))
        assert sum(float(row[column].replace(",", "")) for row in layers) == pytest.approx(total, abs=len(layers))
    if cut:
        assert float(whole[2].replace(",", "")) == pytest.approx(mask.budget.reached["macs"] * 1e6, abs=1)
    for kind in {g.kind for g in groups.values()}:
        assert f"{kind.capitalize()}s by layer" in [node.text for node in root.all("h2")]


# What does not belong together


def other_evaluation(path):
    measured = Evaluation(
        optin_version="0.1.0",
        options={},
        inputs={"checkpoint": Source(name="stranger", sha256="1" * 64)},
        task=None,
        split="none",
        samples=0,
        metric=Measure(name="accuracy", value=0.5),
        metrics={"accuracy": 0.5},
        standard_error=None,
        workload=Workload(seq_len=128),
        totals=Totals(macs=1, parameters=1, bytes=1),
        latency=None,
        against=Comparison(
            name="x",
            metric=None,
            drop=None,
            agreement=None,
            kl=None,
            macs_ratio=1,
            parameters_ratio=1,
            bytes_ratio=1,
            latency_ratio=None,
        ),
    )
    Path(path).write_text(measured.dump())


def edited_mask(path):
    raw = json.loads(Path("bert.mask.json").read_text())
    raw["groups"]["encoder.0.head"]["kept"] = [0]
    Path(path).write_text(json.dumps(raw))


def edited_scores(path):
    scores = read_scores("bert.scores.safetensors")
    write_scores(path, Scores(scores.header, {n: v * 2 for n, v in scores.importance.items()}))


@pytest.mark.parametrize(
    ("prepare", "args", "code", "words"),
    [
        (
            edited_mask,
            ["bert-pruned", "--mask", "x"],
            1,
            ["bert-pruned was made from mask bert.mask.json", "x (sha256"],
        ),
        (
            edited_scores,
            ["bert-pruned", "--scores", "x.safetensors"],
            1,
            ["bert.mask.json was made from scores", "x.safe"],
        ),
        (
            other_evaluation,
            ["bert-pruned", "--eval", "x"],
            1,
            ["x was made from checkpoint stranger", "bert-pruned (sha"],
        ),
        (other_evaluation, ["bert-pruned", "--mask", "x"], 2, ["x is a eval file; expected a mask file", "--eval"]),
        (None, ["bert-pruned", "--scores", "bert-pruned/model.safetensors"], 1, ["holds no scores"]),
        (None, ["none"], 2, ["none does not exist", "expected a folder"]),
        (None, ["bert.mask.json"], 2, ["is a file; expected a folder", "--mask"]),
        (None, [], 2, ["There is nothing to report", "--sweep"]),
        (Path.mkdir, ["x"], 2, ["x holds nothing to report"]),
        (None, ["--mask", "none.json"], 1, ["none.json does not exist"]),
        (lambda path: shutil.copytree("bert-pruned", path), ["."], 2, ["2 cut models: bert-pruned, x"]),
        (lambda path: path.touch(), ["bert-pruned", "-o", "x"], 1, ["x already exists", "--force"]),
        (None, ["bert-pruned", "-o", "no/r.html"], 1, ["no does not exist"]),
        (lambda _p: Path("bert-pruned/model.safetensors").unlink(), ["bert-pruned"], 1, ["holds no weights"]),
        (lambda _p: Path("bert-pruned/optin.json").write_text("{"), ["bert-pruned"], 1, ["optin.json is neither"]),
    ],
)
def test_reports_that_cannot_be_are_refused(work, prepare, args, code, words):
    if prepare is not None:
        prepare(Path(args[-1] if args[-1].startswith("x") else "x"))
    before = tree(work)
    result = call("report", *args)
    assert result.code == code, result.err
    assert result.out == "" and all(word in result.err for word in words), result.err
    assert tree(work) == before


def test_files_of_two_checkpoints_are_refused(work):
    other_evaluation("x.json")
    result = call("report", "--mask", "bert.mask.json", "--eval", "x.json")
    assert result.code == 2 and "artifacts are of 2 checkpoints: bert" in result.err and "stranger" in result.err
