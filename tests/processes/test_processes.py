"""Processes that share work: who takes what, and what all of them have afterwards."""

import pytest
import torch
from helpers.sharing import in_processes

from optin_cli.errors import ProcessError, UsageError
from optin_cli.processes.launch import BOTH, GLOO, backend, joined
from optin_cli.processes.portions import cut_portions, sum_portions
from optin_cli.processes.processes import ALONE, Processes, deal, talking


@pytest.mark.parametrize(
    ("weights", "count", "owners"),
    [
        ([1, 1, 1, 1], 2, [0, 1, 0, 1]),
        ([1, 8, 1, 8], 2, [0, 0, 1, 1]),
        ([5, 1, 1, 1, 1, 1], 2, [0, 1, 1, 1, 1, 1]),
        ([1, 1], 3, [0, 1]),
        ([], 2, []),
    ],
)
def test_items_are_dealt_so_that_all_take_about_as_long(weights, count, owners):
    assert deal(weights, count) == owners


def everything(processes):
    """Whatever processes do together, in one go."""
    mine = [f"{processes.rank}.{item}" for item in range(5)[processes.rank :: processes.count]]
    tensors = [torch.full((3,), float(processes.rank)), torch.zeros(0), torch.tensor([processes.rank])]
    processes.copy(tensors, owner=1)
    passed = [torch.zeros(2, dtype=torch.float64), torch.zeros(0)]
    content = None
    if processes.rank == 0:
        processes.send({"name": torch.tensor([4.0])}, [torch.tensor([1.0, 2.0], dtype=torch.float64)], 2).wait()
    if processes.rank == 2:
        content = processes.receive(passed, 0)
    return {
        "map": processes.map(lambda item: item * 10, range(7), [1, 1, 1, 9, 1, 1, 1]),
        "gather": processes.gather(mine),
        "share": processes.share(f"of {processes.rank}", owner=2),
        "copy": [tensor.tolist() for tensor in tensors],
        "passed": (content, passed[0].tolist()),
        "first": processes.fails_first(),
    }


def test_three_processes_have_the_same_results_in_order(tmp_path):
    found = in_processes(3, everything, tmp_path)
    for each in found:
        assert each["map"] == [0, 10, 20, 30, 40, 50, 60]
        assert each["gather"] == ["0.0", "1.1", "2.2", "0.3", "1.4"]
        assert each["share"] == "of 2"
        assert each["copy"] == [[1.0] * 3, [], [1]]
    assert found[2]["passed"] == ({"name": torch.tensor([4.0])}, [1.0, 2.0])
    assert sorted(each["first"] for each in found) == [False, False, True]


def test_one_process_does_everything_itself():
    assert ALONE.leads and ALONE.fails_first()
    assert ALONE.map(str, [1, 2]) == ["1", "2"]
    assert ALONE.gather(["a"]) == ["a"]
    assert ALONE.share("mine") == "mine"
    assert ALONE.device("cuda") == "cuda" and ALONE.device(None) is None


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UsageError, match="this is number 3 on a machine with 2"):
        Processes(rank=6, count=8, local=2).device(None)
    processes = Processes(rank=5, count=8, local=1)
    assert [processes.device(asked) for asked in (None, "cuda", "cpu", "cuda:0")] == [
        "cuda:1",
        "cuda:1",
        "cpu",
        "cuda:0",
    ]


@pytest.mark.parametrize(("gpus", "processes", "chosen"), [(0, 2, GLOO), (1, 2, GLOO), (2, 2, BOTH), (8, 2, BOTH)])
def test_tensors_on_gpus_travel_by_nccl_where_each_process_has_one(monkeypatch, gpus, processes, chosen):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    assert backend(processes) == chosen


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_one_process_joins_with_nccl(monkeypatch):
    free = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "localhost"}
    for name, value in (free | {"MASTER_PORT": "29533"}).items():
        monkeypatch.setenv(name, value)
    with joined() as processes:
        assert processes.direct and processes.device("cuda") == "cuda"
        tensor = torch.ones(3, dtype=torch.float64, device="cuda")
        torch.distributed.broadcast(tensor, src=0)
        assert tensor.tolist() == [1.0] * 3


@pytest.mark.parametrize(("items", "count"), [(9, 2), (9, 3), (2, 3), (1, 2)])
def test_sums_over_portions_are_the_same_bits_in_any_number_of_processes(items, count, tmp_path):
    drawn = torch.randn(items, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1e3
    portions = cut_portions([float(1 + item % 3) for item in range(items)])

    def summed(processes):
        def measure(portion):
            rows = drawn[portion.start : portion.stop]
            return [rows.sum(dim=0), torch.tensor(len(rows)), torch.zeros(0)]

        return sum_portions(processes, portions, measure)

    alone = summed(ALONE)
    assert int(alone[1]) == items
    for each in in_processes(count, summed, tmp_path):
        assert all(torch.equal(mine, other) for mine, other in zip(each, alone, strict=True))


def test_what_torch_says_of_a_process_that_is_gone_is_explained():
    with pytest.raises(ProcessError, match=r"Another process of this run has ended"), talking():
        raise RuntimeError("Connection closed by peer")
