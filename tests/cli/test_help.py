"""Help: complete, in the README, and shown without importing heavy libraries."""

import re

import pytest
import typer
from helpers.paths import ROOT
from helpers.running import call, done, python

import optin_cli
from optin_cli.cli.main import app

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
    assert result.stdout.strip() == optin_cli.__version__


def test_search_and_inspect_need_no_torch(here, made):
    code = (
        "import sys; sys.modules['torch'] = sys.modules['transformers'] = None\n"
        "from optin_cli.cli.main import main\nmain()"
    )
    for args in (["search", made.scores, "--keep-flops", "0.6"], ["inspect", made.scores], ["inspect", made.pruned]):
        result = python(code, *args, cwd=here)
        assert result.returncode == 0, result.stderr


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
