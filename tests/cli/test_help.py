"""Help: complete, in the README, and shown without importing heavy libraries."""

import re

import pytest
import typer
from helpers.paths import ROOT
from helpers.running import call, done, python
from rich.cells import cell_len

import optin_cli
from optin_cli.cli.main import app
from optin_cli.options.declare import PANELS

COMMANDS = typer.main.get_command(app).commands


def options(name):
    return [p for p in COMMANDS[name].params if p.name != "help"]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_has_help(name):
    assert COMMANDS[name].help.endswith(".")
    for parameter in options(name):
        assert parameter.help, f"{name} {parameter.name}"
    shown = re.sub(r"[│\s]+", " ", done(name, "--help").out)
    for parameter in options(name):
        assert parameter.param_type_name == "argument" or parameter.opts[0][:20] in shown
        assert not [word for word in parameter.help.split() if word not in shown]


@pytest.mark.parametrize("name", COMMANDS)
def test_no_count_is_called_a_share(name):
    counts = [parameter for parameter in options(name) if type(parameter.default) is int]
    assert not [parameter.name for parameter in counts if re.search(r"\bshares? of\b", parameter.help, re.IGNORECASE)]


def test_help_loads_nothing_heavy(here):
    code = (
        "import sys; from optin_cli.cli.main import main\n"
        "sys.argv[0] = 'optin'\n"
        "try: main()\n"
        "except SystemExit as stop: status = stop.code\n"
        "heavy = {'torch', 'transformers', 'datasets', 'scipy', 'numpy'} & set(sys.modules)\n"
        "print(status, sorted(heavy), file=sys.stderr)"
    )
    for args in (["--help"], ["score", "--help"], ["--version"]):
        result = python(code, *args, cwd=here)
        assert result.stderr.strip() == "0 []", result.stderr
    assert result.stdout.strip() == f"optin {optin_cli.__version__}"


def test_search_and_inspect_need_no_torch(here, made):
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from optin_cli.cli.main import main\nmain()"
    )
    for args in (["search", made.scores, "--keep-flops", "0.6"], ["inspect", made.scores], ["inspect", made.pruned]):
        result = python(code, *args, cwd=here)
        assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_options_are_in_panels_and_help_ends_in_an_example(name):
    panels = [parameter.rich_help_panel for parameter in options(name) if parameter.param_type_name == "option"]
    places = [PANELS.index(panel) for panel in panels]
    assert places == sorted(places)
    shown = re.sub(r"[│\s]+", " ", done(name, "--help").out)
    assert f"Example: optin {name}" in shown
    assert "(default" not in shown and "<bool>" not in shown
    assert not [panel for panel in panels if f"─ {panel} ─" not in shown]


@pytest.mark.parametrize("name", COMMANDS)
def test_examples_name_options_that_exist(name):
    words = COMMANDS[name].epilog.removeprefix(f"Example: optin {name}").split()
    known = {flag for parameter in COMMANDS[name].params for flag in parameter.opts}
    assert {word for word in words if word.startswith("-")} <= known


def test_closed_lists_are_shown_as_choices():
    for name, flag, choices in (
        ("search", "--layout", "per-layer|uniform|deci"),
        ("search", "--algorithm", "exact|paper"),
        ("export", "--gguf-type", "f16|f32|q8_0"),
    ):
        (found,) = [parameter for parameter in options(name) if flag in parameter.opts]
        assert found.metavar == choices


def test_help_pages_fit_80_columns(here):
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from optin_cli.cli.main import app\n"
        "for name in sys.argv[1:]: print(CliRunner().invoke(app, [name, '--help']).output)"
    )
    result = python(code, *COMMANDS, cwd=here, COLUMNS="80", TERMINAL_WIDTH="80")
    assert result.stdout.count("Example: optin") == len(COMMANDS)
    assert max(map(cell_len, result.stdout.splitlines())) <= 80


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("profile", "bert", "--batch", "2"), 2, "--latency-batch says how time is measured"),
        (("score", "bert", "--token-exchange", "2"), 2, "expected a number"),
        (("score", "bert", "--calib", "texts.jsonl", "--data", "."), 2, "name data; expected one"),
        (("eval", "bert", "--eval-data", "nowhere.jsonl"), 1, "nowhere.jsonl"),
        (("sweep", "bert", "--calib", "a", "--data", "b"), 2, "No budget was given"),
        (("search", "{scores}", "--keep-flops", "0.6", "--layout", "ragged", "-o", "a.json"), 0, "next: optin prune"),
        (("search", "{scores}", "--keep-flops", "0.6", "--algorithm", "optin", "-o", "b.json"), 0, "next: optin prune"),
    ],
)
def test_names_of_earlier_versions_are_still_taken(work, made, args, code, words):
    result = call(*(arg.format(scores=made.scores) for arg in args))
    assert result.code == code and words in result.err
    assert "No such option" not in result.err


def test_no_arguments_print_help():
    result = call()
    assert result.code == 2
    assert all(name in result.out + result.err for name in COMMANDS)


def test_readme_documents_every_command():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not [name for name in COMMANDS if f"optin {name}" not in text]


def test_help_loads_neither_torch_nor_matplotlib(tmp_path):
    code = "import sys, optin_cli.cli; print({'torch', 'matplotlib', 'pydantic'} & set(sys.modules))"
    assert python(code, cwd=tmp_path).stdout.strip() == "set()"
