"""Compiles the Triton programs of `pvae.kernels` for an H100, which takes none: what they need of it."""

import os
import re
import subprocess
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pvae.kernels import launch, programs

SHARED = 227 * 1024
"""Bytes of shared memory that a program may have."""


def compiled(name, precision, hidden, gradient, outputs=784, block=None):
    """Registers of a thread, how often one is spilled, shared memory, and products on tensor cores; None: no blocks."""
    block = block or launch.blocks(precision, hidden, gradient)
    if block is None:
        return None
    program = getattr(programs, name)
    constants = dict(launch.constants((hidden, outputs), block, precision))
    if name == "scores":
        constants["GRADIENT"] = gradient
    factor = {"tf32": "*fp32", "bf16": "*bf16"}[precision]
    types = dict.fromkeys(("n", "data", "tiles"), "i32") | dict.fromkeys(("h", "w", "u"), factor)
    names = program.arg_names
    signature = {key: "constexpr" if key in constants else types.get(key, "*fp32") for key in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, key in enumerate(names) if signature[key].startswith("*")}
    source = ASTSource(
        program,
        signature,
        constexprs={(names.index(key),): value for key, value in constants.items()},
        attrs=aligned,
    )
    options = {"num_warps": block.warps, "num_stages": block.stages, "enable_fp_fusion": True}
    found = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    return {"block": tuple(block), "shared": found.metadata.shared, **_inspected(found.asm)}


def _inspected(asm):
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    path = Path(os.environ["TRITON_CACHE_DIR"]) / "program.cubin"
    path.write_bytes(asm["cubin"])
    shown = subprocess.run([tool, "-res-usage", "-sass", path], capture_output=True, text=True, check=True).stdout
    return {
        "registers": int(re.search(r"REG:(\d+)", shown)[1]),
        "spilled": len(re.findall(r"\bSTL\b", shown)),
        "wgmma": asm["ptx"].count("wgmma.mma_async"),
        "tensor cores": shown.count("HGMMA"),
    }
