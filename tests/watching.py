"""What tests watch while something runs: how much it holds, and whether it waits for the device."""

from contextlib import contextmanager

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class Largest(TorchDispatchMode):
    """Notes the most numbers that any operation gave."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for value in tree_iter(out):
            if isinstance(value, torch.Tensor):
                stored = value.untyped_storage().nbytes() // value.element_size()  # an expanded view is not memory
                self.numel = max(self.numel, min(value.numel(), stored))
        return out


@contextmanager
def never_waiting():
    """Within it to wait for a CUDA device is an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
