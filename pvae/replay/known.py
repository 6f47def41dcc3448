"""What the tensors of a trace are made of: which have the same values in every later step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .simplify import TORCHS, memory, written
from .supposed import READ, Untraceable

SHAPE = "the shape of what torch's '{}' returns depends on values"
ADVICE = {"_pack_padded_sequence": ": give the same lengths at each step, or run over padded sequences and mask them"}


def recording() -> bool:
    """Whether what is done now is written down as a graph: then values are not to be looked at."""
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None


class Known(TorchDispatchMode):
    """Follows what the tensors of a trace are made of, and refuses shapes that depend on values of later steps.

    Known are those made of Python's numbers alone; and, if `outside`, of tensors that are there before the trace and
    that nothing changes in it: what has been read of these is in `read`, for those who replay the graph to look at.

    Args:
        varying: tensors that change from step to step.
        outside: whether other tensors that are there before the trace may be read.
    """

    def __init__(self, varying: Sequence[Tensor], outside: bool) -> None:
        super().__init__()
        self.outside = outside
        self.read: dict[int, Tensor] = {}
        self.drawn = 0
        """How often random numbers have been drawn."""
        self._varying = {memory(tensor) for tensor in varying}
        self._sources: dict[int, tuple[torch.UntypedStorage, dict[int, Tensor]]] = {}
        """By storage, of what is known of those made within: the tensors from outside in it."""
        self._within: dict[int, tuple[StorageWeakRef, bool]] = {}
        """The storages of tensors made within, and whether that was written down: others are meant to be constants.

        While there is a reference no other storage has that name.
        """
        self._written: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = tensors_of((args, kwargs))
        if recording() and self._reads(func, args):
            return self._aside(func, args, kwargs)
        if func.overloadpacket.__name__ in _MAKING:
            sources: dict[int, Tensor] | None = {}
        else:
            draws = torch.Tag.nondeterministic_seeded in func.tags
            self.drawn += draws
            sources = None if draws or func.namespace not in TORCHS else self._of_all(given)
        for tensor in written(func, args, kwargs):
            self._changed(tensor, sources)
        try:
            result = func(*args, **kwargs)
        except torch.linalg.LinAlgError as error:  # which a program may catch, and do otherwise
            raise Untraceable(f"{READ}: {str(error).splitlines()[0]}") from error
        inputs = {memory(tensor) for tensor in given}
        for made in tensors_of(result):
            if (key := memory(made)) not in inputs:
                self._made(made, sources)
                if key:
                    self._within[key] = StorageWeakRef(made.untyped_storage()), recording()
        if func.overloadpacket.__name__ == "_pack_padded_sequence":
            self._made(result[1], self._of_all(args[1:2]))  # the sizes come of the lengths alone
        return result

    def knows(self, *tensors: Tensor) -> bool:
        """Whether all of these are known; they are then taken as read."""
        sources = self._of_all(tensors)
        self.read.update(sources or {})
        return sources is not None

    def constant(self, tensor: Tensor) -> bool:
        """Whether a tensor that a trace has taken for a constant is one: not where it was made in a way not traced."""
        key = memory(tensor)
        if key not in self._within:
            return True
        return key not in self._written and (not self._within[key][1] or self.knows(tensor))

    def _reads(self, func: Any, args: Sequence[Any]) -> bool:
        """Whether torch itself reads values in an operation: for the shape of what it returns, or for a number."""
        name = func.overloadpacket.__name__
        if name == "index":
            return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
        if name == "_pack_padded_sequence":
            return not self.knows(args[1])
        return not _READING.isdisjoint(func.tags)

    def _aside(self, func: Any, args: Sequence[Any], kwargs: Any) -> Any:
        """What an operation that reads values makes of what is known, beside the trace."""
        given = tensors_of((args, kwargs))
        if not self.knows(*given):
            name, shape = func.overloadpacket.__name__, torch.Tag.data_dependent_output not in func.tags
            raise Untraceable(SHAPE.format(name) + ADVICE.get(name, "") if shape else READ)
        with disable_proxy_modes_tracing():
            result = func(*args, **kwargs)
        for made in tensors_of(result):
            self._made(made, self._of_all(given))
        return result

    def _of_all(self, tensors: Sequence[Tensor]) -> dict[int, Tensor] | None:
        """The tensors from outside that these are made of; None where one varies."""
        found: dict[int, Tensor] = {}
        for tensor in tensors:
            key = memory(tensor)
            if key in self._sources:
                found.update(self._sources[key][1])
            elif key in self._varying or not self.outside or tensor.requires_grad or tensor.is_inference():
                return None
            else:
                found[key] = tensor
        return found

    def _made(self, tensor: Tensor, sources: dict[int, Tensor] | None) -> None:
        key = memory(tensor)
        if sources is None or key == 0:
            self._sources.pop(key, None)
            self._varying.add(key)
        else:
            self._varying.discard(key)
            self._sources[key] = (tensor.untyped_storage(), sources)

    def _changed(self, tensor: Tensor, sources: dict[int, Tensor] | None) -> None:
        key = memory(tensor)
        if key in self.read:
            raise Untraceable(f"{READ}: the step changes that tensor")
        if recording():
            self._written.add(key)
        self._made(tensor, sources if key in self._sources else None)


_READING = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
"""Of operations that read values."""
_MAKING = {
    "lift_fresh",
    "new_ones",
    "new_zeros",
    "new_full",
    "new_empty",
    "ones_like",
    "zeros_like",
    "full_like",
    "empty_like",
}
"""Operations that ask a tensor for its kind, not for its values; the first gives a tensor of Python's numbers."""


def tensors_of(tree: Any) -> list[Tensor]:
    """Those in a tree of lists, tuples and dicts."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
