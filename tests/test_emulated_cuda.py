"""The emulated CUDA device does what a real one does, and refuses what that refuses."""

import copy

import pytest
import torch
from emulated_cuda import emulated
from torch import nn

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")


@pytest.fixture
def device():
    with emulated() as device:
        yield device


def captured(body):
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        body()
    return graph


def test_tensors_say_where_they_are(device):
    x = torch.ones(2, 3).cuda()
    for there in (x, x[0].t(), x.new_zeros(2), torch.tensor(1.0, device="cuda"), torch.zeros_like(x), x.detach()):
        assert there.is_cuda
        assert there.device == torch.device("cuda", 0)
    for here in (x.cpu(), torch.ones(2), x.new_zeros(2, device="cpu"), torch.ones(2).new_ones(2)):
        assert not here.is_cuda


def test_a_module_that_moves_keeps_its_parameters(device):
    layer = nn.Linear(3, 2)
    expected, weight = layer(torch.ones(3)), layer.weight
    layer.cuda()
    assert layer.weight is weight
    assert weight.is_cuda
    assert isinstance(weight, nn.Parameter)
    layer(torch.ones(3, device="cuda")).sum().backward()
    assert weight.grad.is_cuda
    assert torch.equal(layer(torch.ones(3).cuda()).cpu(), expected)
    twin = copy.deepcopy(layer)
    assert twin.weight is not weight
    assert twin.weight.tolist() == weight.tolist()


@pytest.mark.parametrize("operation", [torch.add, torch.mm, lambda a, b: torch.stack([a, b]), torch.where])
def test_two_devices_do_not_mix(device, operation):
    given = (torch.ones(2, 2, device="cuda"), torch.ones(2, 2))
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        operation(*(given if operation is not torch.where else (given[0] > 0, *given)))


def test_a_number_on_the_cpu_goes_with_what_is_on_the_device(device):
    assert (torch.ones(2, device="cuda") * torch.tensor(3.0)).tolist() == [3.0, 3.0]
    with pytest.raises(RuntimeError, match="same device"):
        torch.stack([torch.ones((), device="cuda"), torch.tensor(3.0)])


WAITS = {
    "a number": lambda x: x.sum().item(),
    "a truth": lambda x: bool(x.sum()),
    "a list": lambda x: x.tolist(),
    "to the CPU": lambda x: x.cpu(),
    "from the CPU": lambda x: torch.ones(3).to(x),
    "made of numbers": lambda x: torch.tensor([1.0, 2.0], device="cuda"),
    "what is not zero": lambda x: x.nonzero(),
    "a mask": lambda x: x[x > 0],
    "an index on the CPU": lambda x: x[torch.tensor([0, 1])],
    "a draw of one of several": lambda x: torch.multinomial(x, 1, True),
    "draws of several, all different": lambda x: torch.multinomial(x, 2),
    "normal draws": lambda x: torch.normal(x, x),
    "a factor": lambda x: torch.linalg.cholesky(x.diag()),
}


@pytest.mark.parametrize("what", WAITS)
def test_what_waits_is_refused_in_a_capture_and_where_nothing_may_wait(device, what):
    x = torch.ones(3, device="cuda")
    WAITS[what](x)
    torch.cuda.set_sync_debug_mode("error")
    with pytest.raises(RuntimeError, match="called a synchronizing CUDA operation"):
        WAITS[what](x)
    torch.cuda.set_sync_debug_mode("default")
    with pytest.raises(RuntimeError, match="CUDA error: operation failed due to a previous error during capture"):
        captured(lambda: WAITS[what](x))


def test_a_failed_capture_leaves_the_generator_stuck_until_one_ends_well(device):
    out = []
    graph = captured(lambda: out.append(torch.rand(2, device="cuda")))
    with pytest.raises(RuntimeError, match="CUDA error"):
        captured(lambda: torch.ones((), device="cuda").item())
    for draw in (graph.replay, lambda: torch.rand(2, device="cuda")):
        with pytest.raises(RuntimeError, match="outside graph capture"):
            draw()
    assert len(device.underway) == 1
    captured(lambda: torch.ones((), device="cuda"))
    graph.replay()
    torch.rand(2, device="cuda")


def test_a_capture_changes_nothing_and_a_replay_does_it_again(device):
    x, out = torch.zeros(3, device="cuda"), []
    state = torch.cuda.get_rng_state()

    def body():
        x.add_(1)
        out[:] = [x * 2, x[1:], torch.rand(2, device="cuda"), x.clone().view(3, 1).t_()]

    graph = captured(body)
    doubled, part, noise, row = out
    assert x.tolist() == [0, 0, 0]
    assert torch.equal(torch.cuda.get_rng_state(), state)
    assert doubled.isnan().all()
    seen = set()
    for step in (1, 2, 3):
        graph.replay()
        assert x.tolist() == [step] * 3
        assert doubled.tolist() == [2 * step] * 3
        assert part.tolist() == [step] * 2
        assert row.tolist() == [[step] * 3]
        seen.add(tuple(noise.tolist()))
    assert len(seen) == 3


def test_random_numbers_are_the_devices_own(device):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    first = torch.randn(4, device="cuda").tolist()
    assert torch.equal(torch.get_rng_state(), before)
    torch.cuda.manual_seed(3)
    assert torch.randn(4, device="cuda").tolist() == first


def test_a_number_on_the_cpu_is_fixed_when_it_is_captured(device):
    x, number, out = torch.ones(2, device="cuda"), torch.tensor(3.0), []
    graph = captured(lambda: out.append(x * number))
    number.fill_(5.0)
    graph.replay()
    assert out[0].tolist() == [3.0, 3.0]


def test_memory_that_a_graph_reads_must_stay(device):
    held, out = [torch.ones(2, device="cuda")], []
    graph = captured(lambda: out.append(held[0] + 1))
    graph.replay()
    before = torch.cuda.memory_allocated()
    held.clear()
    assert torch.cuda.memory_allocated() == before - 8
    with pytest.raises(RuntimeError, match="the graph reads memory that is gone"):
        graph.replay()


def test_memory_may_be_out(device):
    device.room = 2
    x = torch.ones(2, device="cuda")
    with pytest.raises(torch.OutOfMemoryError):
        captured(lambda: x.add_(1).add_(1).add_(1))
    assert x.tolist() == [1, 1]


def test_launches_are_counted(device):
    x = torch.ones(2, device="cuda")
    graph = captured(lambda: x.add_(1))
    device.launches.clear()
    x[:1].view(1).mul_(2)
    torch.empty(3, device="cuda")
    graph.replay()
    assert device.launches == ["mul_", "replay"]


def test_it_leaves_torch_as_it_was():
    with emulated():
        assert torch.cuda.is_available()
        kept = torch.ones(2, device="cuda")
    assert not torch.cuda.is_available()
    assert kept.device.type == "cuda"
    assert torch.ones(2).sum() == 2
