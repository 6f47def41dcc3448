"""Runs the Triton programs of `pvae.kernels` on a CPU, in Triton's interpreter: prints their errors as JSON.

Apart from the tests, as what is interpreted is settled when Triton is first imported. Bfloat16 cannot be multiplied
there: float16 stands in for it.
"""

import json
import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import torch
from torch.nn.functional import softplus

SIZES = {  # rows, data, hidden, outputs
    "images": (10, 5, 200, 500),
    "odd": (57, 19, 37, 65),
    "one hidden unit": (9, 3, 1, 5),
    "one datum": (33, 1, 64, 16),
    "one row": (1, 1, 16, 7),
    "wide": (5, 5, 400, 40),
}
SMALL = (16, 16, 256, 1)
"""Blocks of which there are few at once, so that one goes through several tiles."""


def main():
    patch_index()
    from pvae.kernels import launch

    found = {"odd, tf32": errors(launch, SIZES["odd"], "tf32", torch.float32), "not a number": propagated(launch)}
    launch.DOTS["tf32"] = "ieee"  # exact, but for float32
    for name, sizes in SIZES.items():
        found[f"{name}, float32"] = errors(launch, sizes, "tf32", torch.float32)
    found["blocks of its own, float32"] = errors(launch, (70, 10, 37, 30), "tf32", torch.float32, block=None)
    for name in ("odd", "wide"):
        found[f"{name}, half"] = errors(launch, SIZES[name], "bf16", torch.float16)
    found["large, float32"] = errors(launch, SIZES["odd"], "tf32", torch.float32, scale=100.0)
    found["extremes"] = extremes(launch)
    json.dump(found, sys.stdout)


def patch_index():
    """Triton reads bounds of loops in a way that NumPy has given up."""
    from triton.runtime import interpreter

    own = interpreter._patch_lang_tensor

    def patched(tensor, scope):
        own(tensor, scope)
        tensor.__index__ = lambda self: self.handle.data.item()

    interpreter._patch_lang_tensor = patched


def numbers(sizes, dtype, scale):
    """g, h, w, b, x; logits are as large as `scale`, x is 0 or 1 for a third each."""
    rows, data, hidden, outputs = sizes
    random = torch.Generator().manual_seed(1)
    shapes = (rows,), (rows, hidden), (outputs, hidden), (outputs,), (data, outputs)
    g, h, w, b, x = (torch.randn(shape, generator=random) for shape in shapes)
    return g, h.to(dtype), (w * scale / hidden**0.5).to(dtype), b * scale, (x + 0.5).clamp(0, 1)


def errors(launch, sizes, precision, dtype, scale=1.0, block=SMALL):
    """Relative errors of score and gradients against float64; of a score that is asked for alone."""
    g, h, w, b, x = numbers(sizes, dtype, scale)
    wanted = right(*(value.double() for value in (g, h, w, b, x)))
    block = block and launch.Blocks(*block)
    s, u = launch.scores(h, w, b, x, True, precision, block)
    dw, db = launch.slopes(g, h, w, b, x, precision, block)
    found = {"score": s, "h": g[:, None] * u, "w": dw, "b": db}
    found["score alone"] = launch.scores(h, w, b, x, False, precision, block)[0]
    return {
        name: ((value.double() - wanted[name]).norm() / wanted[name].norm()).item() for name, value in found.items()
    }


def right(g, h, w, b, x):
    for value in (h, w, b):
        value.requires_grad_()
    logits, value = h @ w.T + b, x.repeat(len(h) // len(x), 1)
    score = (value * logits - softplus(logits)).sum(-1)
    slopes = torch.autograd.grad((score * g).sum(), (h, w, b))
    return {"score": score.detach(), "score alone": score.detach(), **dict(zip("hwb", slopes, strict=True))}


def extremes(launch):
    """Scores and residuals of x = 0, 1, 1/2 at logits of 100 and -100."""
    x = torch.tensor([[0.0], [1.0], [0.5]])
    found = []
    for bias in (100.0, -100.0):
        s, u = launch.scores(torch.zeros(3, 4), torch.ones(1, 4), torch.tensor([bias]), x, True, "tf32")
        found += [s.tolist(), u[:, 0].tolist()]
    return found


def propagated(launch):
    """How many rows are not numbers, where a hidden unit of one is not, in any of the ways that it can be."""
    _g, h, w, b, x = numbers((20, 5, 10, 15), torch.float32, 1.0)
    counts = []
    for bits in (0x7FC00000, 0x7FFFFFFF, -1):
        h[3, 4] = torch.tensor(bits, dtype=torch.int64).to(torch.int32).view(torch.float32)
        s, u = launch.scores(h, w, b, x, True, "tf32")
        counts += [s.isnan().sum().item(), u.isnan().any(1).sum().item()]
    return counts


if __name__ == "__main__":
    main()
