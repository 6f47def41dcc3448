"""Which tensors' values Python may read while a step is traced: those that every later step will have, too."""

from __future__ import annotations

import dis
import operator
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from pyro.distributions.stable import _standard_stable
from pyro.infer.reparam.stable import _safe_shift
from pyro.infer.util import Dice
from torch import Tensor
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing
from torch.nn.functional import one_hot
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from . import instead
from .known import SHAPE, Known, tensors_of
from .supposed import READ, Supposed, Untraceable

WITHIN = "{} changes within a step, which a graph cannot do: change a tensor in place"
SMALL = 10_000
"""Numbers in a tensor whose values are compared at each step; of larger ones it is known how often they changed."""


class HostReads(TorchFunctionMode):
    """What Python does with values: it reads those that are known. A number read of another stays a tensor.

    So it can be computed with, where all that is done is arithmetic. To decide what to do, or how often, Python may
    read others too where that is noted, in `supposed`: by comparing them, looking them up, or as text.

    Args:
        known: what tensors are made of.
        supposed: where such values are noted; None: they are refused.
        numbers: tensors that stand for numbers, as those read of others do.
    """

    def __init__(self, known: Known, supposed: Supposed | None, numbers: Sequence[Tensor]) -> None:
        super().__init__()
        self.known, self.supposed = known, supposed
        self._numbers = {id(number): number for number in numbers}
        self._chosen: dict[int, tuple[Tensor, Tensor]] = {}
        """What was chosen by a mask, at its place in all there was, until it is put where that mask is; the mask."""

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        result = self._done(func, args, kwargs or {})
        if func is Tensor.item or (self._numbers and isinstance(result, Tensor) and result.dim() == 0):
            given = tensors_of((args, kwargs))
            if isinstance(result, Tensor) and (func is Tensor.item or (given and all(map(self._stands, given)))):
                self._numbers[id(result)] = result
        return result

    def looked_up(self, tensor: Tensor) -> int:
        """What a dict or a set looks for: where a tensor stands for a number, that."""
        if not self._stands(tensor):
            return id(tensor)
        with torch._C.DisableTorchFunction():
            return hash(self._number(tensor))

    def _stands(self, tensor: Tensor) -> bool:
        """Whether it stands for a number of Python's."""
        return id(tensor) in self._numbers

    def _number(self, tensor: Tensor) -> float:
        if self.supposed is None:
            raise Untraceable(READ)
        whole = bool if tensor.dtype == torch.bool else int
        return self.supposed.read(tensor, float if tensor.is_floating_point() else whole)

    def _done(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        if self._chosen and any(id(tensor) in self._chosen for tensor in tensors_of((args, kwargs))):
            if self._puts(func, args):
                return self._put(*args)
            args, kwargs = tree_map(self._taken, (args, kwargs))
        values = instead.listed(func, args, kwargs)
        listed = tensors_of(values)
        if listed and not self.known.knows(*listed):
            return instead.of_list(func, values, args, kwargs)
        if (listed or func in _ASIDE) and self.known.knows(*tensors_of((args, kwargs))):
            with disable_proxy_modes_tracing():
                return func(*args, **kwargs)
        if func is Tensor.item:
            return args[0].detach().clone()  # a number stays what it is
        if func in _ANEW and self._stands(args[0]):
            return _ANEW[func](*args)
        if func in _SEQUENCES and (self.known.knows(args[1]) or self._whole(args[1])):
            return _SEQUENCES[func](*args)
        for counts in instead.counts(func, args, kwargs):
            if not (self.known.knows(counts) or self._whole(counts)):
                raise Untraceable(READ)
        if func is one_hot and args[1:2] != (-1,) and (args[1:] or kwargs.get("num_classes", -1) > 0):
            return instead.one_hot(*args, **kwargs)
        if func is Tensor.__bool__ and _asking().f_code in _SPARING:
            return True
        if self.supposed is not None and func in _DECIDING:
            return self.supposed.read(args[0], _DECIDING[func], _asserted())
        if self.supposed is not None and func in _COMPARING:
            return self.supposed.equal(*args)
        if func is Tensor.tolist and self._whole(args[0]):
            with disable_proxy_modes_tracing():
                return args[0].tolist()
        if func is Tensor.__bool__ and _asserted():
            return True
        if func in _SAYING and self._stands(args[0]):
            return _SAYING[func](self._number(args[0]), *args[1:])
        if func in _READS:
            raise Untraceable(READ)
        if func == _SET_DATA:
            raise Untraceable(WITHIN.format("the `data` of a tensor"))
        if func is Tensor.__deepcopy__ and args[0].is_leaf:  # torch's copies memory, of which no graph knows
            return args[1].setdefault(id(args[0]), args[0].detach().clone().requires_grad_(args[0].requires_grad))
        if func in _SIZED:
            own = func not in _MADE  # a tensor's own, which is no size
            return func(*args[:own], *tree_map(self._size, args[own:]), **kwargs)
        if func is Tensor.__setitem__ and _is_flags(args[1]) and (_is_one(args[2]) or args[1].dim() == 0):
            full = args[1].bool().reshape(args[1].shape + (1,) * (args[0].dim() - args[1].dim()))
            return args[0].copy_(torch.where(full, args[2], args[0]))
        if func in (Tensor.__getitem__, Tensor.__setitem__) and any(
            _is_mask(i) or _numbers(i) for i in _indices(args[1])
        ):
            return self._indexed(func, *args)
        return func(*args, **kwargs)

    def _whole(self, value: Tensor) -> bool:
        """Whether it may be read as it has few whole numbers, which other steps may well have too."""
        if self.supposed is None or value.is_floating_point() or value.numel() > SMALL:
            return False
        self.supposed.stays(value)
        return True

    def _size(self, value: Any) -> Any:
        """A number of a shape, where it is known; torch would read it."""
        if not _is_number(value):
            return value
        if self.known.knows(value):
            with disable_proxy_modes_tracing():
                return value.item()
        return value if self.supposed is None else self.supposed.read(value, int)

    def _slice(self, index: Any) -> Any:
        """An index, with the ends of a slice as numbers."""
        return slice(*map(self._size, (index.start, index.stop, index.step))) if isinstance(index, slice) else index

    def _indexed(self, func: Any, tensor: Tensor, index: Any, *value: Any) -> Any:
        """An index with masks or numbers that are tensors: those that are known as positions."""
        index = tuple(map(self._slice, index)) if isinstance(index, tuple) else self._slice(index)
        masks = [mask for mask in _indices(index) if _is_mask(mask)]
        numbers = [number for each in _indices(index) for number in _numbers(each)]
        if self.known.knows(*masks, *numbers):
            with disable_proxy_modes_tracing():
                index = tuple(part for each in _indices(index) for part in _positions(each))
        elif func is Tensor.__getitem__ and not masks and all(_is_number(i) or _is_whole(i) for i in _indices(index)):
            return torch.ops.aten.index.Tensor(tensor, _one_each(index, tensor.dim()))
        elif func is Tensor.__getitem__ and index is next(iter(masks), None):
            chosen = tensor.masked_fill(~index.reshape(index.shape + (1,) * (tensor.dim() - index.dim())), 0)
            self._chosen[id(chosen)] = (chosen, index)
            return chosen
        return func(tensor, index, *value)

    def _puts(self, func: Any, args: Sequence[Any]) -> bool:
        """Whether what a mask chose is put where that mask is."""
        chosen, mask = self._chosen.get(id(args[-1]) if args else 0, (None, None))
        return func is Tensor.__setitem__ and args[1] is mask and args[0].shape == chosen.shape

    def _put(self, tensor: Tensor, mask: Tensor, chosen: Tensor) -> None:
        full = mask.reshape(mask.shape + (1,) * (chosen.dim() - mask.dim()))
        tensor.copy_(torch.where(full, chosen, tensor))

    def _taken(self, value: Any) -> Any:
        """What a mask chose, one after another, where other steps may well choose as many."""
        if not isinstance(value, Tensor) or id(value) not in self._chosen:
            return value
        if self.supposed is None:
            raise Untraceable(SHAPE.format("index"))
        chosen, mask = self._chosen[id(value)]
        count = self.supposed.read(mask.sum(), int)
        places = mask.flatten().logical_not().to(torch.uint8).sort(stable=True).indices[:count]
        return chosen.flatten(0, mask.dim() - 1).index_select(0, places)


_SET_DATA = Tensor.data.__set__
_READS = {
    *{Tensor.__bool__, Tensor.__float__, Tensor.__int__, Tensor.__index__, Tensor.tolist, Tensor.numpy},
    *{
        Tensor.__format__,
        Tensor.__repr__,
        Tensor.__array__,
        Tensor.__dlpack__,
        Tensor.apply_,
        Tensor.map_,
        Tensor.map2_,
    },
}
_DECIDING = {Tensor.__bool__: bool, Tensor.__int__: int, Tensor.__index__: int}
_COMPARING = {torch.equal, Tensor.equal}
_SHAPING = {
    Tensor.nonzero,
    torch.nonzero,
    Tensor.unique,
    torch.unique,
    Tensor.repeat_interleave,
    torch.repeat_interleave,
}
_MADE = {torch.zeros, torch.ones, torch.full, torch.randn, torch.rand, torch.arange, torch.eye}
_SIZED = _MADE | {Tensor.expand, Tensor.reshape, Tensor.view, Tensor.repeat}
_ANEW = {
    **{Tensor.add_: operator.add, Tensor.sub_: operator.sub, Tensor.mul_: operator.mul, Tensor.div_: operator.truediv},
    **{Tensor.floor_divide_: operator.floordiv, Tensor.remainder_: operator.mod, Tensor.__ipow__: operator.pow},
    **{Tensor.__iand__: operator.and_, Tensor.__ior__: operator.or_, Tensor.__ixor__: operator.xor},
    **{Tensor.__ilshift__: operator.lshift, Tensor.__irshift__: operator.rshift},
}
"""What `+=` and its like do with tensors, and with numbers."""
_SAYING = {Tensor.__format__: format, Tensor.__repr__: repr}
_ASIDE = _READS | _SHAPING | _COMPARING | {Tensor.item, Tensor.__contains__, one_hot}
"""What is done beside the trace, where all it is done with is known."""


def _indices(index: Any) -> tuple:
    return index if isinstance(index, tuple) else (index,)


def _is_flags(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)


def _is_mask(index: Any) -> bool:
    return _is_flags(index) and index.dim() > 0


def _is_number(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.int64, torch.int32) and index.dim() == 0


def _is_one(value: Any) -> bool:
    """Whether it is one number, or a tensor of one."""
    return isinstance(value, int | float) or (isinstance(value, Tensor) and value.dim() == 0)


def _numbers(index: Any) -> list[Tensor]:
    """The tensors of one number in a part of an index."""
    parts = (index.start, index.stop, index.step) if isinstance(index, slice) else (index,)
    return [part for part in parts if _is_number(part)]


def _is_whole(index: Any) -> bool:
    return index is Ellipsis or (isinstance(index, slice) and not _numbers(index) and index == slice(None))


def _positions(index: Any) -> Iterator[Any]:
    if _is_mask(index):
        yield from index.nonzero(as_tuple=True)
    elif isinstance(index, slice):
        yield slice(*(next(_positions(part)) for part in (index.start, index.stop, index.step)))
    else:
        yield index.item() if _is_number(index) else index


def _one_each(index: Any, dimensions: int) -> list[Tensor | None]:
    """Numbers by dimension, None for all of one; torch's own way to take them would read them."""
    parts = list(_indices(index))
    if Ellipsis in [part for part in parts if not isinstance(part, Tensor)]:
        at = next(i for i, part in enumerate(parts) if part is Ellipsis)
        parts[at : at + 1] = [slice(None)] * (dimensions - len(parts) + 1)
    return [part if isinstance(part, Tensor) else None for part in parts]


_SEQUENCES = {
    torch._VF._pack_padded_sequence: instead.packed,
    torch._VF._pad_packed_sequence: instead.padded,
}


def _asking() -> Any:
    """The frame that asks torch for a value: the first above torch's modes."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_code.co_name in ("__torch_function__", HostReads._done.__name__):
        frame = frame.f_back
    return frame


_SPARING = {function.__code__ for function in (Dice.compute_expectation, _standard_stable, _safe_shift)}
"""Functions of Pyro that read a truth value to spare work: what they do where it is true is right in any case.

That all probabilities are above 0: where they are not, terms are left out. That a stability is near 1.
"""


def _asserted() -> bool:
    """Whether a value is read for an assertion, which holds in all that is replayed, or ends it."""
    frame = _asking()
    after = (found for found in dis.get_instructions(frame.f_code) if found.offset > frame.f_lasti)
    following = next((found for found in after if found.opname not in ("CACHE", "NOT_TAKEN")), None)
    return following is not None and (
        following.opname == "LOAD_ASSERTION_ERROR" or "AssertionError" in following.argrepr
    )
