"""How many kernels a compiled step launches on CUDA, read off the code that inductor writes for it: needs no GPU.

python -m benchmarks.launches --networks A,B,C

A step of a small network takes as long as it has kernels, some 2.5 microseconds each, so this is what a change can be
judged by where there is no GPU. A product counts as one; cuBLAS may split it in two.
"""

from __future__ import annotations

import argparse
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.utils._python_dispatch import TorchDispatchMode

from pvae.replay import compiling
from pvae.replay.tracing import lifted
from pvae.svi import building

from . import common, step
from .common import NETWORKS

CUDA = torch.device("cuda", 0)
CALL = re.compile(r"^\s+(?:\w+ = )?(triton_\w+(?=\.run\()|extern_kernels\.\w+|torch\.ops\.\w+\.\w+)[\w.]*\(")
H100 = SimpleNamespace(
    name="NVIDIA H100",
    type="cuda",
    major=9,
    minor=0,
    multi_processor_count=132,
    warp_size=32,
    regs_per_multiprocessor=65536,
    max_threads_per_multi_processor=2048,
    max_threads_per_block=1024,
    shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448,
    shared_memory_per_multiprocessor=233472,
    L2_cache_size=50 * 2**20,
    total_memory=80 * 2**30,
)


def main() -> int:
    """Print a table, write it down."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.launches", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", type=common.some_of(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--list", action="store_true", help="name the kernels, in their order")
    parser.add_argument("--out", metavar="FILE", help="of the JSON")
    options = parser.parse_args()
    found = {name: kernels(name) for name in options.networks}
    rows = [[name, str(len(names)), *(str(count) for count in _kinds(names))] for name, names in found.items()]
    print(common.table(["network", "kernels", "products", "random numbers", "others"], rows))
    if options.list:
        for name, names in found.items():
            print(f"\n{name}", *names, sep="\n  ")
    record = {"environment": common.environment({"kind": "none", "code": "inductor's for an H100"}), "kernels": found}
    print(f"\nwritten to {common.save('launches', record, options.out)}")
    return 0


def _kinds(names: Sequence[str]) -> tuple[int, int, int]:
    products = sum(_products(name) for name in names)
    random = sum("rand" in name and not name.startswith("triton") for name in names)
    return products, random, len(names) - products - random


def _products(name: str) -> bool:
    return name.startswith("extern_kernels") or name.startswith("product")


def kernels(name: str) -> list[str]:
    """Those of one step of a network, update and all, in their order."""
    written: list[str] = []
    build = building.Build.__call__

    def compiled(graph: GraphModule, inputs: Sequence[Tensor]) -> GraphModule:
        written.extend(_named(code_for_cuda(graph, inputs)))
        return graph

    def as_on_cuda(made: building.Build) -> Any:
        made.device = CUDA
        with (
            patch.object(building, "placed", lambda graph, device: (graph, [])),
            patch.object(compiling, "compiled", compiled),
            patch.object(torch.cuda, "current_device", lambda: CUDA.index),
        ):
            return build(made)

    contestant = step.CONTESTANTS["pvae-full"](step._task(NETWORKS[name], "cpu", "float32"))
    with patch.object(building.Build, "__call__", as_on_cuda), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a head without a norm, which a CPU's steps compare
        contestant.run(0, 2)
    if not written:
        raise RuntimeError(f"{name}: inductor wrote no code: this process has compiled for another device before")
    return written


def _named(code: str) -> Iterator[str]:
    """The kernels that a compiled function launches."""
    for line in code.splitlines():
        if found := CALL.match(line):
            if found[1] == "torch.ops.pvae.linear_gradients":
                yield from ("product, of an input's gradient", "product beside it, of a weight's gradient")
            else:
                yield found[1]


def code_for_cuda(graph: GraphModule, inputs: Sequence[Tensor]) -> str:
    """What inductor writes for a traced graph of CPU tensors, were they on an H100."""
    import torch._inductor.config as inductor
    from torch._inductor.compile_fx import compile_fx
    from torch._inductor.graph import GraphLowering

    module, constants = lifted(graph)
    for node in module.graph.nodes:
        if "device" in node.kwargs:
            node.kwargs = {**node.kwargs, "device": CUDA}
    module.recompile()
    mode, written = FakeTensorMode(), []

    def fake(value: Tensor) -> Tensor:
        dtype = torch.float32 if value.dtype == torch.float64 else value.dtype  # learning rates are float64 on a CPU
        with mode:
            return torch.empty_strided(value.shape, value.stride(), dtype=dtype, device=CUDA)

    class Written(Exception):
        """The code is there; it is not to be run."""

    def stop(lowering: GraphLowering) -> None:
        written.append(lowering.codegen()[0].value)
        raise Written

    given = [fake(value) for value in (*constants, *inputs)]
    options = {
        "fallback_random": True,
        "reorder_for_locality": False,
        "reorder_for_peak_memory": False,
        "deterministic": True,
        "shape_padding": False,
    }
    with _pretended_cuda(), patch.object(GraphLowering, "compile_to_module", stop), torch.no_grad():
        try:
            with inductor.patch({**options, "compile_threads": 1, "fx_graph_cache": False}):
                compile_fx(module, given)
        except Exception:  # inductor wraps what it meets
            if not written:
                raise
    return written[0]


@contextmanager
def _pretended_cuda() -> Iterator[None]:
    """Torch as far as inductor asks it about a device; constants that it folds are folded on the CPU."""
    import torch._inductor.fx_passes.fuse_attention as attention
    import torch.utils._triton as triton
    from torch._dynamo.device_interface import CudaInterface
    from torch._inductor.constant_folding import ConstantFolder
    from torch._inductor.fx_passes.joint_graph import UniformValueConstantFolder

    nothing = {"synchronize": None, "set_device": None, "exchange_device": 0, "maybe_exchange_device": 0}
    common_answers = {"is_available": True, "device_count": 1, "current_device": 0, "get_device_properties": H100}
    interface = {**nothing, **common_answers, "get_compute_capability": 90, "get_raw_stream": 0}
    module = {
        **common_answers,
        **{f"_{name}": value for name, value in nothing.items() if "exchange" in name},
        "synchronize": None,
        "set_device": None,
        "get_device_capability": (9, 0),
        "get_device_name": H100.name,
        "is_initialized": False,
        "_lazy_init": None,
        "get_rng_state": torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": None,
    }

    def always(value: Any) -> Any:
        return lambda *_: value

    with ExitStack() as stack:
        for name, value in interface.items():
            stack.enter_context(patch.object(CudaInterface, name, staticmethod(always(value))))
        for name, value in module.items():
            stack.enter_context(patch.object(torch.cuda, name, always(value)))
        stack.enter_context(patch.object(torch.cuda, "_get_device_properties", always(H100), create=True))
        stack.enter_context(patch.object(triton, "triton_hash_with_backend", always("")))
        stack.enter_context(patch.object(attention, "_get_sfdp_patterns", always([])))
        for folder in (ConstantFolder, UniformValueConstantFolder):
            stack.enter_context(patch.object(folder, "_deduce_value", _on_the_cpu(folder._deduce_value)))
        yield


def _on_the_cpu(function: Any) -> Any:
    def run(*args: Any) -> Any:
        with _FactoriesOnTheCpu():
            return function(*args)

    return run


class _FactoriesOnTheCpu(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("device") is not None:
            kwargs["device"] = torch.device("cpu")
        return func(*args, **kwargs)


if __name__ == "__main__":
    sys.exit(main())
