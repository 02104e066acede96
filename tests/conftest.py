"""Tiny checkpoints, data and artifacts, made once a session by the real command line."""

import os
import random
import tempfile
from unittest.mock import patch

import pytest
from helpers.reloading import ReloadServer
from helpers.running import write_rows
from hypothesis import HealthCheck, settings

CACHE = tempfile.TemporaryDirectory(prefix="optin-tests-")
# Set before any library reads them: the tests use no network and leave nothing in the user's caches. Models so small
# gain nothing from threads, which only wait for each other when tests run side by side.
os.environ |= {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_HOME": CACHE.name,
    "HF_DATASETS_CACHE": f"{CACHE.name}/datasets",
    "HF_MODULES_CACHE": f"{CACHE.name}/modules",
}

# A machine that is busy with other work is slow, not wrong.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


def pytest_collection_modifyitems(items):
    """Begin with tests that fork: once a process has traced a model, or used a GPU, its forks have no gradients."""
    items.sort(key=lambda item: not hasattr(item.module, "in_processes"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Give every worker neighbouring tests, which share fixtures, instead of dealing them out."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log) if config.getvalue("dist") == "load" else None


@pytest.fixture(scope="session", autouse=True)
def processor():
    """Without a device by name the CPU computes, where the inputs that tests make lie."""
    with patch("optin_cli.checkpoints.checkpoint.default_device", lambda: "cpu"):
        yield


@pytest.fixture(scope="session")
def fresh_process():
    """What starts the processes of certificates for users."""
    from optin_cli.checkpoints.fresh import fresh_process

    return fresh_process


@pytest.fixture(scope="session", autouse=True)
def reload_server(fresh_process):
    """Forks of one process in place of the fresh processes of certificates; `fresh_processes` brings those back."""
    with ReloadServer() as server, patch("optin_cli.checkpoints.fresh.fresh_process", server.run):
        yield server


@pytest.fixture
def fresh_processes(fresh_process, monkeypatch):
    """Certificates start processes of their own, as they do for users."""
    monkeypatch.setattr("optin_cli.checkpoints.fresh.fresh_process", fresh_process)


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A folder with two checkpoints, data, and every artifact of one run of the pipeline. To be read only.

    texts.jsonl holds the sentences of train.jsonl without labels; other/ has other weights than bert/.
    """
    from helpers.pipeline import make

    return make(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="session")
def texts(tmp_path_factory):
    """Six short texts without labels."""
    draw = random.Random(1)
    rows = [{"text": " ".join(draw.choices("abcdefghijklmnopqrst", k=draw.randint(3, 9)))} for _ in range(6)]
    return write_rows(tmp_path_factory.mktemp("texts") / "texts.jsonl", rows)


@pytest.fixture(scope="session")
def bert(tmp_path_factory):
    """A tiny BERT that classifies texts. To be read only."""
    from helpers.models import save_checkpoint

    from optin_cli.checkpoints.checkpoint import load

    return load(save_checkpoint(tmp_path_factory.mktemp("bert") / "bert"))


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory):
    """A tiny BERT without a head, for sentence embeddings. To be read only."""
    from helpers.models import save_checkpoint

    return save_checkpoint(tmp_path_factory.mktemp("encoder") / "base", head="base")


@pytest.fixture(scope="session")
def encoder(encoder_folder):
    from optin_cli.checkpoints.checkpoint import load

    return load(encoder_folder)


@pytest.fixture(scope="session")
def pets(tmp_path_factory):
    """A folder of images, eight of each class. To be read only."""
    from helpers.pictures import image_folder

    return image_folder(tmp_path_factory.mktemp("images") / "pets", 8)


@pytest.fixture(scope="session")
def image_checkpoint(tmp_path_factory):
    """Tiny checkpoints by image family, each written once. To be read only."""
    from helpers.models import save_images

    from optin_cli.checkpoints.checkpoint import load

    root, made = tmp_path_factory.mktemp("checkpoints"), {}

    def of(family):
        if family not in made:
            made[family] = load(save_images(root / family, family))
        return made[family]

    return of


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path
