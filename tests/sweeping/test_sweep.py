"""`optin sweep`: its artifact, resumption, the smallest model, refusals."""

import json
import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest
from helpers.running import QUICK, call, done, tree, write_rows

from optin_cli.artifacts.base import parse
from optin_cli.artifacts.evaluation import Evaluation
from optin_cli.artifacts.scores import read_scores
from optin_cli.artifacts.sweep import Sweep
from optin_cli.recipes import scored
from optin_cli.sweeping.plots import PICTURE

TIMED = {"latency", "latency_ratio", "prepare_seconds", "prune_seconds"}

BUDGETS = ("--keep-flops", "0.9,0.7")


def arguments(made, *more, recipe="no-refit", latency="1"):
    """A quick sweep of the session's checkpoint."""
    fixed = ("--calib", made.train, "--task", "sst2", "--data", made.train, "--samples", "16", "--batch-size", "8")
    return ("sweep", made.bert, *fixed, "--latency-runs", latency, "--recipe", recipe, *more)


def read(path):
    return parse(Sweep, Path(path).read_bytes(), str(path))


def untimed(sweep):
    """What two equal sweeps have in common."""
    raw = sweep.model_dump()
    raw["baseline"].pop("latency")
    raw["points"] = [{k: v for k, v in point.items() if k not in TIMED} for point in raw["points"]]
    return raw


@pytest.fixture(scope="module")
def swept(made, tmp_path_factory):
    """A finished sweep of two recipes, its run and its folder."""
    folder = tmp_path_factory.mktemp("swept") / "out"
    run = done(*arguments(made, *BUDGETS, "-o", folder, recipe="optin,magnitude"))
    return run, folder


def test_every_recipe_at_every_budget_is_recorded(swept, made):
    run, folder = swept
    sweep = read(folder / "sweep.json")
    assert [(p.recipe, p.asked) for p in sweep.points] == [
        ("optin", 0.9),
        ("optin", 0.7),
        ("magnitude", 0.9),
        ("magnitude", 0.7),
    ]
    for point in sweep.points:
        assert 0 < point.macs_ratio <= point.asked
        assert point.drop == pytest.approx(sweep.baseline.value - point.value)
        assert 0 <= point.agreement <= 1
        assert point.latency.median_ms > 0
        assert point.latency_ratio > 0
        assert point.prepare_seconds > 0
        assert point.prune_seconds > 0
    assert set(sweep.inputs) == {"checkpoint", "calibration", "data"}
    assert sweep.options["keep_flops"] == [0.9, 0.7]
    assert sweep.options["samples"] == 16
    assert sweep.options["eval_latency_runs"] == 1
    assert (sweep.metric, sweep.task, sweep.samples, sweep.chosen) == ("accuracy", "sst2", 24, None)
    assert run.out == f"{folder / 'sweep.json'}\n"
    assert "● optin  ▲ magnitude" in run.err
    kept = {"optin.scores.safetensors", "magnitude.scores.safetensors", "masks"}
    assert {path.name for path in folder.iterdir()} == {"sweep.json", PICTURE, *kept}
    assert {path.name for path in (folder / "masks").iterdir()} == {
        f"{recipe}-{share}.json" for recipe in ("optin", "magnitude") for share in (0.9, 0.7)
    }


def test_a_point_is_what_the_stages_give(swept, made, here):
    point = next(p for p in read(swept[1] / "sweep.json").points if p.recipe == "magnitude")
    data = ("--task", "sst2", "--data", made.train, "--latency-runs", "0")
    done("score", made.bert, "--criterion", "magnitude", "-o", "m.safetensors")
    done("search", "m.safetensors", "--keep-flops", point.asked, "-o", "mask.json")
    done("prune", made.bert, "--mask", "mask.json", "--no-refit", "-o", "pruned")
    done("eval", "pruned", *data, "--against", made.bert, "-o", "eval.json")
    result = parse(Evaluation, Path("eval.json").read_bytes(), "eval.json")
    assert result.metric.value == point.value
    assert result.standard_error == point.standard_error
    assert result.against.macs_ratio == point.macs_ratio
    assert result.against.agreement == point.agreement


def test_inspect_shows_it_as_a_table(swept):
    shown = done("inspect", swept[1] / "sweep.json").out
    assert "optin.sweep/1" in shown
    assert "original" in shown
    assert "magnitude" in shown
    assert json.loads(done("inspect", "--json", swept[1] / "sweep.json").out)["schema"] == "optin.sweep/1"


def test_json_goes_to_stdout_and_equal_runs_give_equal_points(made, here, swept):
    run = done(*arguments(made, *BUDGETS, "--json", recipe="optin,magnitude"))
    printed = parse(Sweep, run.out, "stdout")
    assert printed.took.seconds > 0
    printed = printed.model_copy(update={"took": None})
    assert printed == read("bert-sweep/sweep.json")
    assert untimed(printed) == untimed(read(swept[1] / "sweep.json"))


class Stop:
    """Interrupts the sweep at a given measurement, as Ctrl-C does."""

    def __init__(self, monkeypatch, at):
        from optin_cli.sweeping import sweep as sweeping

        self.real, self.left, self.calls = sweeping.measure_candidate, at, 0
        monkeypatch.setattr(sweeping, "measure_candidate", self)

    def __call__(self, *args):
        self.calls += 1
        if self.calls == self.left:
            raise KeyboardInterrupt
        return self.real(*args)


def test_resumed_equals_uninterrupted(made, here, swept, monkeypatch):
    command = arguments(made, *BUDGETS, "-o", "out", recipe="optin,magnitude")
    with monkeypatch.context() as patch:
        Stop(patch, 4)
        stopped = call(*command)
    assert stopped.code == 130
    assert "--resume" in stopped.err
    whole = tree(swept[1])
    assert {name for name in whole if name.startswith("masks/")} - set(tree(Path("out"))) == {
        "masks/magnitude-0.7.json"
    }
    assert not Path("out/sweep.json").exists()
    assert len(read("out/sweep.partial.json").points) == 3
    refused = call(*command)
    assert refused.code == 2
    assert "--resume" in refused.err
    counter = Stop(monkeypatch, -1)
    done(*command, "--resume")
    assert counter.calls == 1
    assert untimed(read("out/sweep.json")) == untimed(read(swept[1] / "sweep.json"))
    kept = tree(Path("out"))
    assert all(kept[name] == content for name, content in whole.items() if not name.startswith("sweep."))
    assert not Path("out/sweep.partial.json").exists()


def test_interrupted_before_the_first_point_leaves_nothing(made, here, monkeypatch):
    Stop(monkeypatch, 1)
    assert call(*arguments(made, *BUDGETS, "-o", "out")).code == 130
    assert tree(here) == {}


@pytest.mark.parametrize("stale", [False, True])
def test_a_finished_sweep_grows_and_nothing_is_measured_or_scored_twice(made, here, monkeypatch, stale):
    """Scores that other options gave, or that cannot be read, do not serve."""
    done(*arguments(made, "--keep-flops", "0.9", "-o", "out"))
    first, scores = read("out/sweep.json").points, Path("out/no-refit.scores.safetensors")
    whole, others = scores.read_bytes(), []
    if stale:
        done("score", made.bert, "--calib", made.texts, *QUICK, "--seed", "5", "-o", scores, "--force")
        others = [scores.read_bytes(), b"damaged"]
    for budget, content in zip((0.8, 0.7), others or [whole, whole], strict=True):
        scores.write_bytes(content)
        with monkeypatch.context() as patch:
            counter, scorer = Stop(patch, -1), Mock(wraps=scored.score_checkpoint)
            patch.setattr(scored, "score_checkpoint", scorer)
            done(*arguments(made, "--keep-flops", f"{budget},0.9", "-o", "out", "--resume"))
        assert counter.calls == 1 and scorer.call_count == stale
        points = read("out/sweep.json").points
        assert points[1:] == first and stale == (points[0].prepare_seconds != first[0].prepare_seconds)
        assert scores.read_bytes() == whole


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (("--samples", "12"), "--samples"),
        (("--refit-ridge", "0.5"), "--refit-ridge"),
        (("--eval-samples", "20"), "another data"),
        (("--seq-len", "16"), "another --seq-len, another workload"),
        (("--latency-length", "16"), "another --latency-length."),
    ],
)
def test_resume_refuses_points_that_were_measured_otherwise(made, here, swept, more, named):
    shutil.copytree(swept[1], "out")
    before = tree(Path("out"))
    run = call(*arguments(made, *BUDGETS, "-o", "out", "--resume", *more))
    assert run.code == 1
    assert named in run.err
    assert tree(Path("out")) == before


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("workload", {"batch_size": 1, "seq_len": 64}, "another workload"),
        ("split", "test", "another split"),
        ("metric", "f1", "another metric"),
        ("optin_version", "0", "another optin version"),
    ],
)
def test_resume_refuses_points_of_a_record_that_says_otherwise(made, here, swept, key, value, named):
    shutil.copytree(swept[1], "out")
    path = Path("out/sweep.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    before = tree(Path("out"))
    run = call(*arguments(made, *BUDGETS, "-o", "out", "--resume"))
    assert run.code == 1
    assert named in run.err
    assert tree(Path("out")) == before


def test_resume_refuses_points_of_another_description(made, here, swept):
    from optin_cli.architectures.registry import FOLDER

    shutil.copyfile(FOLDER / "bert.json", "mine.json")
    shutil.copytree(swept[1], "out")
    run = call(*arguments(made, *BUDGETS, "-o", "out", "--resume", "--architecture", "mine.json"))
    assert run.code == 1
    assert "another architecture" in run.err
    path = Path("out/sweep.json")
    raw = json.loads(path.read_text())
    raw["inputs"]["architecture"] = {"name": "mine.json", "sha256": "0" * 64}
    path.write_text(json.dumps(raw))
    before = tree(Path("out"))
    for own in ((), ("--architecture", "mine.json")):
        run = call(*arguments(made, *BUDGETS, "-o", "out", "--resume", *own))
        assert run.code == 1
        assert "another architecture" in run.err
    assert tree(Path("out")) == before


# --- the smallest model within a drop ---------------------------------------------------------------------------


def test_the_smallest_model_is_written_and_is_the_one_measured(made, here):
    run = done(*arguments(made, "--max-drop", "1", "--evaluations", "2", "-o", "out", recipe="optin"))
    assert run.out == "out/model/\n"
    sweep = read("out/sweep.json")
    chosen = sweep.points[sweep.chosen]
    assert sweep.points[0].asked == 0.5
    assert chosen.asked == min(p.asked for p in sweep.points)
    done("eval", "out/model", "--task", "sst2", "--data", made.train, "--against", made.bert, "--latency-runs", "0")
    result = json.loads(Path("model.eval.json").read_text())
    assert result["metric"]["value"] == chosen.value
    assert result["against"]["agreement"] == chosen.agreement
    manifest = json.loads(Path("out/model/optin.json").read_text())
    assert manifest["refit"]
    assert manifest["inputs"]["mask"]["name"] == "mask.json"
    assert manifest["budget"]["reached"]["macs"] == pytest.approx(chosen.macs_ratio)
    shutil.copyfile(made.train, made.train.name)
    done("prune", made.bert, "--mask", "out/mask.json", "--samples", "16", "-o", "again")
    again = json.loads(Path("again/optin.json").read_text())
    assert again["groups"] == manifest["groups"] and again["refit"].keys() == manifest["refit"].keys()
    for name in ("mask.json", "masks/optin-0.5.json"):
        scores = json.loads(Path("out", name).read_text())["inputs"]["scores"]
        assert read_scores("out/optin.scores.safetensors").source(scores["name"]).sha256 == scores["sha256"]


def test_models_are_kept_where_asked_for(made, here):
    fixed = arguments(made, "--keep-models", "-o", "out", recipe="magnitude", latency="0")
    done(*fixed, "--keep-flops", "0.8,0.6")
    models = sorted(path.name for path in Path("out/models").iterdir())
    assert models == ["magnitude-0.6", "magnitude-0.8"]
    data = ("--task", "sst2", "--data", made.train, "--latency-runs", "0")
    done("eval", "out/models/magnitude-0.6", *data, "-o", "e.json")
    points = {point.asked: point for point in read("out/sweep.json").points}
    assert json.loads(Path("e.json").read_text())["metric"]["value"] == points[0.6].value
    shutil.rmtree("out/models/magnitude-0.8")
    done(*fixed, "--keep-flops", "0.8", "--resume")
    assert [path.name for path in Path("out/models").iterdir()] == ["magnitude-0.8"], "of the points of this sweep"
    assert [path.name for path in Path("out/masks").iterdir()] == ["magnitude-0.8.json"]


def test_confidence_decides_which_model_is_small_enough(made, here, monkeypatch):
    from optin_cli.sweeping import sweep as sweeping

    real = sweeping.measure_candidate

    def measure(candidate, *args):
        point = real(candidate, *args)
        return point.model_copy(update={"drop": 0.8 * (1 - candidate.share), "drop_error": 0.1})

    monkeypatch.setattr(sweeping, "measure_candidate", measure)
    command = arguments(made, "--max-drop", "0.5", "--evaluations", "4", latency="0", recipe="magnitude")
    lax = done(*command, "-o", "lax")
    strict = done(*command, "--confidence", "0.95", "-o", "strict")
    sweeps = [read(f"{name}/sweep.json") for name in ("lax", "strict")]
    chosen = [sweep.points[sweep.chosen] for sweep in sweeps]
    assert chosen[0].drop <= 0.5 and chosen[1].drop + 1.645 * 0.1 <= 0.5 + 1e-3
    assert chosen[1].asked > chosen[0].asked
    assert "(paired standard error), within 0.5 at a confidence of" in lax.err
    assert "samples do not tell at 0.95" in lax.err and "do not tell" not in strict.err


def drops(monkeypatch, of_share):
    """Points whose drop is a function of the share, in place of measured ones."""
    from optin_cli.sweeping import sweep as sweeping

    real = sweeping.measure_candidate

    def measure(candidate, *args):
        return real(candidate, *args).model_copy(update={"drop": of_share(candidate.share)})

    monkeypatch.setattr(sweeping, "measure_candidate", measure)


def test_no_model_within_the_drop_exits_3_and_leaves_none(made, here, monkeypatch):
    command = arguments(made, "--evaluations", "2", "-o", "out", latency="0")
    drops(monkeypatch, lambda share: 1 - share)
    done(*command, "--max-drop", "0.6")
    assert Path("out/model/optin.json").is_file()
    run = call(*command, "--max-drop", "0.1", "--force")
    assert run.code == 3
    assert "the best of 2 lost 0.25" in run.err
    assert run.out == ""
    assert [p.asked for p in read("out/sweep.json").points] == [0.5, 0.75]
    assert not Path("out/model").exists()
    assert not Path("out/mask.json").exists()


def test_a_resumed_search_writes_the_same_model(made, here, monkeypatch):
    command = arguments(made, "--evaluations", "3", "--max-drop", "0.4", latency="0", recipe="optin")
    drops(monkeypatch, lambda share: 1 - share)
    done(*command, "-o", "whole")
    with monkeypatch.context() as patch:
        from optin_cli.sweeping import keeping

        def stop(*_args):
            raise KeyboardInterrupt

        patch.setattr(keeping, "save_candidate", stop)
        assert call(*command, "-o", "out").code == 130
    assert Path("out/sweep.partial.json").exists()
    assert not {"sweep.json", "mask.json", "model"} & {path.name for path in Path("out").iterdir()}
    done(*command, "-o", "out", "--resume")
    assert untimed(read("out/sweep.json")) == untimed(read("whole/sweep.json"))
    weights = [Path(f"{folder}/model/model.safetensors").read_bytes() for folder in ("whole", "out")]
    assert weights[0] == weights[1]


def test_drops_that_rise_with_the_share_still_give_a_model_within_the_limit(made, here, monkeypatch):
    drops(monkeypatch, lambda share: abs(share - 0.75))
    done(*arguments(made, "--evaluations", "3", "--max-drop", "0.05", "-o", "out", latency="0"))
    sweep = read("out/sweep.json")
    within = [p.asked for p in sweep.points if p.drop <= 0.05]
    assert sweep.points[sweep.chosen].asked == min(within)


# --- the Python API ---------------------------------------------------------------------------------------------


def test_the_api_sweeps(made, here):
    import optin_cli
    from optin_cli.options.evaluation import EvalOptions
    from optin_cli.options.scoring import ScoreOptions
    from optin_cli.options.sweep import SweepOptions

    told = []
    sweep = optin_cli.sweep(
        made.bert,
        "sst2",
        made.texts,
        "out",
        SweepOptions(
            ("magnitude",),
            keep_flops=(0.8,),
            scoring=ScoreOptions(samples=8),
            evaluation=EvalOptions(latency_runs=0),
        ),
        data=made.train,
        report=told.append,
    )
    assert sweep.points == told
    assert sweep == read("out/sweep.json")
    assert sweep.baseline.latency is None


def test_a_data_folder_serves_evaluation_and_calibration(made, here):
    Path("data").mkdir()
    rows = [json.loads(line) for line in made.train.read_text().splitlines()]
    write_rows(Path("data/train.jsonl"), rows[:16])
    write_rows(Path("data/validation.jsonl"), rows[16:])
    fixed = ("--task", "sst2", "--data", "data", "--latency-runs", "0", "--recipe", "magnitude,fisher")
    done("sweep", made.bert, "--calib", "sst2", *fixed, "--keep-flops", "0.8", "-o", "out")
    sweep = read("out/sweep.json")
    assert (sweep.split, sweep.samples) == ("validation", 8)
    assert sweep.inputs["calibration"].sha256 != sweep.inputs["data"].sha256


# --- refusals ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "code", "says"),
    [
        ((), 2, "No budget was given"),
        (("--keep-flops", "0.5", "--max-drop", "0.1"), 2, "Both --keep-flops and --max-drop"),
        (("--keep-flops", "0.5,1.5"), 2, "1.5"),
        (("--keep-flops", "0"), 2, "above 0"),
        (("--keep-flops", "nan"), 2, "nan"),
        (("--keep-flops", "half"), 2, "not a number"),
        (("--keep-flops", ""), 2, "not a number"),
        (("--keep-flops", "0.5,0.5"), 2, "twice"),
        (("--keep-flops", "0.0001"), 1, "smallest reachable share"),
        (("--max-drop", "-0.1"), 2, "-0.1"),
        (("--max-drop", "nan"), 2, "nan"),
        (("--max-drop", "0.1", "--evaluations", "0"), 2, "at least 1"),
        (("--max-drop", "0.1", "--recipe", "optin,magnitude"), 2, "one recipe"),
        (("--keep-flops", "0.5", "--recipe", "magnitud"), 2, "Did you mean magnitude"),
        (("--keep-flops", "0.5", "--recipe", "optin,"), 2, "Unknown recipe ''"),
        (("--keep-flops", "0.5", "--recipe", "optin,optin"), 2, "twice"),
        (("--keep-flops", "0.5", "--task", "sst3"), 1, "Did you mean sst2"),
        (("--keep-flops", "0.5", "--refit-ridge", "0"), 2, "ridge"),
        (("--keep-flops", "0.5", "-o", "-"), 2, "stdout"),
        (("--keep-flops", "0.5", "-o", "missing/out"), 1, "does not exist"),
        (("--keep-flops", "0.5", "--samples", "0"), 2, "samples"),
    ],
)
def test_bad_options_are_refused_and_leave_nothing(made, here, more, code, says):
    run = call(*arguments(made, *more))
    assert (run.code, run.out) == (code, "")
    assert says in run.err
    assert tree(here) == {}


def test_labels_are_asked_for_before_any_time_is_spent(made, here, monkeypatch):
    from optin_cli.sweeping import sweep as sweeping

    monkeypatch.setattr(sweeping, "measure_costs", lambda *_args: pytest.fail("work was begun"))
    unlabelled = ("sweep", made.bert, "--task", "sst2", "--keep-flops", "0.5", "-o", "out")
    run = call(*unlabelled, "--calib", made.texts, "--data", made.train, "--recipe", "optin,fisher")
    assert run.code == 1
    assert "The recipe fisher needs labels" in run.err
    run = call(*unlabelled, "--calib", made.texts, "--data", made.texts)
    assert run.code == 1
    assert "no labels to measure accuracy by" in run.err
    assert tree(here) == {}


def test_existing_outputs_are_safe(made, here):
    Path("out").mkdir()
    Path("out/mine").write_text("keep")
    assert call(*arguments(made, *BUDGETS, "-o", "out")).code == 1
    Path("file").write_text("keep")
    run = call(*arguments(made, *BUDGETS, "-o", "file", "--force"))
    assert (run.code, Path("file").read_text()) == (2, "keep")
    done(*arguments(made, "--keep-flops", "0.9", "-o", "out", "--force", latency="0"))
    assert Path("out/mine").read_text() == "keep"


# --- pictures ---------------------------------------------------------------------------------------------------


def test_a_sweep_draws_its_frontier(swept):
    drawn = (swept[1] / PICTURE).read_text(encoding="utf-8")
    assert drawn.lstrip().startswith("<svg") and "magnitude" in drawn
