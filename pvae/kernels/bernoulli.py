"""The Bernoulli log-likelihood of a linear layer's outputs in one pass, which writes none of them.

    s_n = sum_d x_nd l_nd - softplus(l_nd),  l_n = W h_n + b,  ds_n / dh_n = u_n = sum_d (x_nd - sigmoid(l_nd)) W_d

`scores` finds s and u together, `slopes` the gradients of W and b, from logits that it makes again. Both are torch
operations, which a graph records as such. On CUDA they are Triton programs, anywhere else, and where those fail, the
plain computation.
"""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from . import launch

HOPPER = (9, 0)
"""The CUDA capability that the programs' blocks are chosen for."""
LOGITS = {False: 2**21, True: 2**23}
"""So many logits, without and with a gradient, are worth it. Plainly they are written once and read up to four times,
at 3 TB/s some 7 ns for a thousand; to make a thousand once more takes a tensor core 2 ns at 200 hidden units, 5 at 512.
Fewer stay in the L2 cache (50 MB), and leave too few programs for 132 multiprocessors. Never by a clock: a fit that is
resumed is to take the same way. All of this is reckoned; nothing was timed."""
INDEXED = 2**31
"""No array has more numbers: Triton counts in 32 bits."""
TOLERANCE = {"tf32": 2e-3, "bf16": 1e-2}
"""By how much a first result may differ from the plain computation's in float64, relative to its norm: some times what
a number rounded to 11 or 8 bits differs by."""
_trusted: dict[tuple[Any, ...], bool] = {}
"""By device and sizes: whether the programs' results were right there."""


@torch.library.custom_op("pvae::bernoulli_scores", mutates_args=())
def scores(h: Tensor, w: Tensor, b: Tensor, x: Tensor, gradient: bool, precision: str) -> tuple[Tensor, Tensor]:
    """Scores s (N,), and u (N, H) or nothing, of h (N, H), w (D, H), b (D,) and x (B, D): row n takes datum n % B."""
    if h.is_cuda:
        try:
            return launch.scores(h, w, b, x, gradient, precision)
        except Exception as error:
            _fall_back(h, w, precision, error)
    return _plain_scores(h, w, b, x, gradient)


@torch.library.custom_op("pvae::bernoulli_slopes", mutates_args=())
def slopes(g: Tensor, h: Tensor, w: Tensor, b: Tensor, x: Tensor, precision: str) -> tuple[Tensor, Tensor]:
    """The gradients of w and b, float32, where that of s is g (N,)."""
    if h.is_cuda:
        try:
            return launch.slopes(g, h, w, b, x, precision)
        except Exception as error:
            _fall_back(h, w, precision, error)
    return _plain_slopes(g, h, w, b, x)


@scores.register_fake
def _(h: Tensor, w: Tensor, b: Tensor, x: Tensor, gradient: bool, precision: str) -> tuple[Tensor, Tensor]:
    return h.new_empty(len(h), dtype=torch.float32), h.new_empty(h.shape if gradient else 0)


@slopes.register_fake
def _(g: Tensor, h: Tensor, w: Tensor, b: Tensor, x: Tensor, precision: str) -> tuple[Tensor, Tensor]:
    return w.new_empty(w.shape, dtype=torch.float32), b.new_empty(b.shape)


def _plain_scores(h: Tensor, w: Tensor, b: Tensor, x: Tensor, gradient: bool) -> tuple[Tensor, Tensor]:
    logits, value = _logits(h, w, b, x)
    s = (value * logits - nn.functional.softplus(logits)).sum(-1)
    return s, (value - logits.sigmoid()).to(h.dtype) @ w if gradient else h.new_empty(0)


def _plain_slopes(g: Tensor, h: Tensor, w: Tensor, b: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    logits, value = _logits(h, w, b, x)
    residual = g.unsqueeze(-1) * (value - logits.sigmoid())
    return (residual.to(h.dtype).T @ h).to(g.dtype), residual.sum(0)


def _logits(h: Tensor, w: Tensor, b: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    return nn.functional.linear(h, w).to(b.dtype) + b, x.repeat(len(h) // len(x), 1)


class _LogProb(torch.autograd.Function):
    """The scores, with gradients of h, w and b, which can be differentiated."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, w: Tensor, b: Tensor, x: Tensor, precision: str) -> Tensor:
        s, u = scores(h, w.to(h.dtype), b, x, True, precision)
        ctx.save_for_backward(h, w, b, x, u)
        ctx.precision = precision
        return s

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        h, w, b, x, u = ctx.saved_tensors
        same, again = w.to(h.dtype), torch.is_grad_enabled()  # again: the gradients are to be differentiated
        of_h, of_w, of_b = (_asked_for(node) for node, _ in ctx.next_functions[:3])
        dh = dw = db = None
        if of_h:
            u = _plain_scores(h, same, b, x, True)[1] if again else u
            dh = (g.unsqueeze(-1) * u).to(h.dtype)
        if of_w or of_b:
            dw, db = _plain_slopes(g, h, same, b, x) if again else slopes(g.contiguous(), h, same, b, x, ctx.precision)
        return dh, dw, db, None, None


def _asked_for(node: Any) -> bool:
    """Whether the gradient that goes to a node is wanted: that of a layer is much work, and not all ask for it."""
    try:
        return node is not None and torch._C._will_engine_execute_node(node)
    except RuntimeError:  # a leaf that `autograd.grad` was given
        return True


def log_prob(h: Tensor, w: Tensor, b: Tensor, x: Tensor, precision: str) -> Tensor:
    """Log p(x_n | l_n), (N,), nats, of Bernoullis of logits l_n = w h_n + b.

    Args:
        h: (N, H).
        w: (D, H), float32.
        b: (D,), float32.
        x: (B, D), float32, in [0, 1]; row n of h goes with n % B. It gets no gradient.
        precision: of the products, 'tf32' or 'bf16'; all else is float32.

    >>> log_prob(torch.zeros(6, 4), torch.zeros(2, 4), torch.zeros(2), torch.ones(3, 2), "tf32")
    tensor([-1.3863, -1.3863, -1.3863, -1.3863, -1.3863, -1.3863])
    """
    h = h.to(launch.DTYPES[precision]).contiguous()
    w, b, x = w.contiguous(), b.contiguous(), x.contiguous()
    if not torch.is_grad_enabled():
        return scores(h, w.to(h.dtype), b, x, False, precision)[0]
    return _LogProb.apply(h, w, b, x, precision)


def run_on(device: torch.device) -> bool:
    """Whether there are programs for such a device at all."""
    return device.type == "cuda"


def choose(rows: int, layer: nn.Linear, device: torch.device) -> str | None:
    """The precision to call `log_prob` with for so many rows; None where the plain computation is to be taken.

    Where products are to be float32 it is: of three products for one, which that takes on a tensor core, the programs'
    registers hold not half. Where values are validated it is, too: logits are to be looked at.
    """
    outputs, hidden = layer.weight.shape
    gradient = torch.is_grad_enabled()
    if not run_on(device) or rows * outputs < LOGITS[gradient]:
        return None
    if layer.bias is None or {layer.weight.dtype, layer.bias.dtype} != {torch.float32}:
        return None
    if rows * hidden >= INDEXED or torch.compiler.is_compiling() or _transformed():
        return None
    precision = _precision()
    if precision is None or launch.blocks(precision, hidden, gradient) is None:
        return None
    # found out in any case: a graph, in which nothing is validated, is recorded after such a call
    trusted = _trust(device, hidden, outputs, precision, gradient)
    return precision if trusted and not torch.distributions.Distribution._validate_args else None


def _transformed() -> bool:
    return torch._C._functorch.peek_interpreter_stack() is not None


def _precision() -> str | None:
    if torch.is_autocast_enabled("cuda"):
        return "bf16" if torch.get_autocast_dtype("cuda") == torch.bfloat16 else None
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else None


def _trust(device: torch.device, hidden: int, outputs: int, precision: str, gradient: bool) -> bool:
    """Whether the programs' results are right, found out at their first use; CUDA cannot do it while it captures."""
    key = (device.index or 0, hidden, outputs, precision, gradient)
    if key not in _trusted:
        if torch.cuda.is_current_stream_capturing():
            return False
        usable = find_spec("triton") is not None and torch.cuda.get_device_capability(device) == HOPPER
        with _disable_current_modes(), torch._C.DisableTorchFunction():  # such as record a graph
            _trusted[key] = usable and _right(device, hidden, outputs, precision, gradient)
    return _trusted[key]


def _right(device: torch.device, hidden: int, outputs: int, precision: str, gradient: bool) -> bool:
    """Whether the programs agree with the plain computation in float64, on numbers from a generator of their own."""
    random = torch.Generator().manual_seed(0)
    shapes = (300,), (300, hidden), (outputs, hidden), (outputs,), (100, outputs)
    g, h, w, b, x = (torch.randn(shape, generator=random).to(device) for shape in shapes)
    dtype = launch.DTYPES[precision]
    h, w, x = h.to(dtype), (w / hidden**0.5).to(dtype), x.sigmoid()
    try:
        with torch.no_grad(), torch.autocast("cuda", enabled=False):
            found = [*launch.scores(h, w, b, x, gradient, precision)]
            found += launch.slopes(g, h, w, b, x, precision) if gradient else []
            h, w, b, x, g = (value.double() for value in (h, w, b, x, g))
            right = [*_plain_scores(h, w, b, x, True), *_plain_slopes(g, h, w, b, x)]
        pairs = zip(found if gradient else found[:1], right, strict=False)
        differences = ((a.double() - c).norm() / c.norm() for a, c in pairs)
        error = max(difference.nan_to_num(torch.inf).item() for difference in differences)
    except torch.OutOfMemoryError:
        raise
    except Exception as failure:  # of whatever kind: the plain computation needs none of it
        return _refuse(f"does not run here: {type(failure).__name__}: {_first_line(failure)}")
    if error > TOLERANCE[precision]:
        return _refuse(f"is wrong here: found a relative error of {error:.1e}, expected at most {TOLERANCE[precision]}")
    return True


def _fall_back(h: Tensor, w: Tensor, precision: str, error: Exception) -> None:
    """Take the plain computation for such sizes from here on."""
    if isinstance(error, torch.OutOfMemoryError):
        raise error
    trusted = _refuse(f"failed: {type(error).__name__}: {_first_line(error)}")
    for gradient in (False, True):
        _trusted[h.device.index, w.shape[1], w.shape[0], precision, gradient] = trusted


def _refuse(reason: str) -> bool:
    warnings.warn(f"the fused Bernoulli kernel {reason}: the plain computation is used", stacklevel=2)
    return False


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]
