"""An emulated CUDA device: its tensors, its memory, its operations, and what a capture and a replay do.

A tensor on it is a wrapper round a CPU tensor, and says `cuda:0`. Under its skin torch believes it a meta tensor, so
that autograd asks for no driver. What a device refuses is refused: tensors of two devices in one operation, and in a
capture all that waits for the device. A capture changes nothing, and its memory is rubbish until the first replay; a
replay does again what was recorded, on the same memory, with fresh random numbers; a graph that reads memory which is
gone is an error. What is not emulated: time, streams, several devices, and how the allocator uses memory again.
"""

import weakref
from contextlib import contextmanager

import torch
from torch import Tag, Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

VALUES = (list, tuple, type({}.values()))
CUDA, HIDDEN, CPU = torch.device("cuda", 0), torch.device("meta"), torch.device("cpu")
NO_KERNEL = {"empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "lift_fresh"}
TAKE_NUMBERS = {"fill_", "masked_fill", "masked_fill_", "index_put", "index_put_"}
"""Operations not marked as pointwise that take a tensor () of the CPU as a number."""


def tensors_of(values):
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, dict):
        values = values.values()
    return [found for value in values for found in tensors_of(value)] if isinstance(values, VALUES) else []


def mapped(function, values):
    if isinstance(values, Tensor):
        return function(values)
    if isinstance(values, dict):
        return {key: mapped(function, value) for key, value in values.items()}
    return type(values)(mapped(function, value) for value in values) if isinstance(values, list | tuple) else values


class DeviceTensor(Tensor):
    """A tensor on the device; `host` has its numbers."""

    @staticmethod
    def __new__(cls, host, owner):
        made = Tensor._make_wrapper_subclass(
            cls, host.size(), strides=host.stride(), storage_offset=host.storage_offset(), dtype=host.dtype,
            layout=host.layout, device=HIDDEN,
        )  # fmt: skip
        made.host, made.owner, made.memory = host, owner, owner.memory_of(host)
        return made

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_meta = property(lambda self: False)
    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        owner = next(leaf.owner for leaf in tensors_of((args, kwargs)) if isinstance(leaf, DeviceTensor))
        return owner.execute(func, args, kwargs or {})

    def data_ptr(self):
        return self.host.data_ptr()

    def untyped_storage(self):
        return self.host.untyped_storage()

    def tolist(self):
        return self.detach().cpu().tolist()

    def numpy(self):
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy it first.")

    def __deepcopy__(self, memo):
        copied = self.detach().clone().requires_grad_(self.requires_grad)
        if isinstance(self, nn.Parameter):
            copied._is_param = True
        return memo.setdefault(id(self), copied)

    def __reduce_ex__(self, protocol):
        """A file has the numbers."""
        return self.host.__reduce_ex__(protocol)

    def __repr__(self):
        return f"on the device: {self.host}"


class Memory:
    """What a storage takes, for as long as some tensor on the device has it."""

    def __init__(self, size):
        self.size = size


class Device:
    """The device.

    `launches` are the operations that it was asked for outside of captures, by name; a replay is one. `room` is how
    many operations a capture may have until memory is out. `default`: whether tensors are made here if nothing is said.
    `underway` are the pools of captures that go on, as the allocator believes: until they end it gives no memory back.
    """

    def __init__(self):
        self.launches, self.room, self.waiting, self.default = [], None, "default", False
        self.capturing, self.stuck, self.underway, self.share = None, False, [], 1.0
        self.random = torch.Generator().get_state()
        self._memory = weakref.WeakValueDictionary()

    def memory_of(self, host):
        storage = host.untyped_storage()
        return self._memory.setdefault(storage._cdata, Memory(storage.nbytes()))

    def allocated(self, *_):
        return sum(memory.size for memory in self._memory.values())

    def execute(self, func, args, kwargs):
        """Do what torch asks for: everything comes through here."""
        tensors = tensors_of((args, kwargs))
        mine = [tensor for tensor in tensors if isinstance(tensor, DeviceTensor)]
        wanted = kwargs.get("device")
        here = bool(mine) if wanted is None else torch.device(wanted).type in ("meta", "cuda")
        if not mine and (not here or any(tensor.is_meta for tensor in tensors)):
            return func(*args, **kwargs)
        self._refuse(func, args, kwargs, tensors, here)
        if wanted is not None:
            kwargs = {**kwargs, "device": CPU}
        if Tag.inplace_view in func.tags:
            with torch._C._DisableTorchDispatch():
                func(*args, **kwargs)  # of the wrapper, too
        out = self.run(func, *mapped(lambda tensor: getattr(tensor, "host", tensor), (args, kwargs)))
        known = {id(getattr(tensor, "host", tensor)): tensor for tensor in tensors}
        place = (lambda made: DeviceTensor(made, self)) if here else lambda made: made
        return mapped(lambda made: known[id(made)] if id(made) in known else place(made), out)

    def run(self, func, args, kwargs):
        """An operation on the hosts of tensors."""
        if self.capturing is not None:
            return self.capturing.record(func, args, kwargs)
        name = getattr(func, "overloadpacket", func).__name__
        if name not in NO_KERNEL and not _renames(func):
            self.launches.append(name)
        return self.once(func, args, kwargs)

    def once(self, func, args, kwargs):
        """With the device's own generator."""
        if Tag.nondeterministic_seeded not in getattr(func, "tags", [Tag.nondeterministic_seeded]):
            return func(*args, **kwargs)
        if self.stuck:
            raise RuntimeError("Offset increment outside graph capture encountered unexpectedly.")
        generator = torch.default_generator
        before = generator.get_state()
        generator.set_state(self.random)
        try:
            return func(*args, **kwargs)
        finally:
            self.random = generator.get_state()
            generator.set_state(before)

    def _refuse(self, func, args, kwargs, tensors, here):
        name = func.overloadpacket.__name__
        others = [tensor for tensor in tensors if not isinstance(tensor, DeviceTensor)]
        if name in ("copy_", "_to_copy"):
            source = args[1] if name == "copy_" else args[0]
            target = isinstance(args[0], DeviceTensor) if name == "copy_" else here
            if isinstance(source, DeviceTensor) != target:
                self.waits(kwargs.get("non_blocking") or (name == "copy_" and args[2:3] == (True,)))
            return
        indices = args[1] if name in ("index", "index_put", "index_put_", "_index_put_impl_") else ()
        masks = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)
        copied = any(index is not None and not isinstance(index, DeviceTensor) for index in indices)
        shape = Tag.dynamic_output_shape in func.tags and name != "index"
        looks = name == "multinomial" and (args[1] == 1 or not (args[2:] or [False])[0])  # at the probabilities
        looks |= name == "normal" and func._overloadname in ("Tensor_Tensor", "float_Tensor")  # at the scales
        if (
            masks
            or copied
            or shape
            or looks
            or Tag.data_dependent_output in func.tags
            or name == "_linalg_check_errors"
        ):
            self.waits()
        numbers = Tag.pointwise in func.tags or name in TAKE_NUMBERS or name.startswith(("_fused", "_foreach"))
        wrong = [other for other in others if other.dim() or not numbers]
        if wrong and here and not indices and not name.startswith("new_") and not name.endswith("_like"):
            raise RuntimeError(f"{name}: Expected all tensors to be on the same device, found cuda:0 and cpu!")

    def waits(self, asynchronous=False):
        """The host waits for the device, or, asynchronous, copies between its own pageable memory and the device's."""
        if self.capturing is not None:
            self.capturing.broken = True
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
        if not asynchronous and self.waiting == "error":
            raise RuntimeError("called a synchronizing CUDA operation")


class Capture:
    """`torch.cuda.CUDAGraph`."""

    def __init__(self, device, keep_graph=False):
        self.device, self.tape, self.done, self.broken = device, [], False, False
        self.own, self.foreign = {}, {}
        """Memory made in the capture; and of what else it reads, whether some tensor still has it."""

    def capture_begin(self):
        assert self.device.capturing is None, "a capture within a capture"
        assert not self.done, "a graph is captured once"
        self.saved, self.random, self.device.capturing = {}, self.device.random, self

    def record(self, func, args, kwargs):
        device = self.device
        if device.room is not None:
            device.room -= 1
            if device.room < 0:
                raise torch.OutOfMemoryError("CUDA out of memory.")
        given = {_key(leaf): leaf for leaf in tensors_of((args, kwargs))}
        for key in given.keys() & device._memory.keys() - self.own.keys() - self.foreign.keys():
            self.foreign[key] = weakref.ref(device._memory[key])
        for key in _written(func, args, kwargs) - self.own.keys() - self.saved.keys():
            storage = given[key].untyped_storage()
            self.saved[key] = (storage, storage.clone())
        # as they are now: later they may be transposed in place, and numbers () of the CPU be others
        kept = mapped(lambda t: t.detach() if _key(t) in device._memory else t.clone(), (args, kwargs))
        out = device.once(func, args, kwargs)
        fresh = [leaf.detach() if _key(leaf) not in given else None for leaf in tensors_of(out)]
        self.own.update((_key(leaf), leaf) for leaf in fresh if leaf is not None)
        if not _renames(func):
            self.tape.append((func, *kept, fresh))
        return out

    def capture_end(self):
        """Put everything back, and leave rubbish where a replay will write."""
        for storage, before in self.saved.values():
            storage.copy_(before)
        for made in self.own.values():
            made.fill_(torch.nan if made.is_floating_point() else True)
        self.device.random, self.device.capturing, self.done = self.random, None, not self.broken
        del self.saved
        self.device.stuck = self.broken  # as torch 2.11 is, until a capture ends well
        if self.broken:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    def replay(self):
        assert self.done, "a replay without a capture"
        assert self.device.capturing is None, "a replay within a capture"
        if any(memory() is None for memory in self.foreign.values()):
            raise RuntimeError("the graph reads memory that is gone")
        self.device.launches.append("replay")
        with alone():
            for func, args, kwargs, fresh in self.tape:
                out = self.device.once(func, args, kwargs)
                made = tensors_of(out)
                for old, new in zip(fresh, made, strict=True):
                    if old is not None:
                        old.copy_(new)


def _renames(func):
    """Whether it only says otherwise how memory is looked at."""
    return getattr(func, "is_view", False) or Tag.inplace_view in getattr(func, "tags", ())


def _key(tensor):
    return tensor.untyped_storage()._cdata


def _written(func, args, kwargs):
    """The memory that an operation changes; of one without a schema all that it is given."""
    if not hasattr(func, "_schema"):
        return {_key(leaf) for leaf in tensors_of((args, kwargs))}
    names = [argument.name for argument in func._schema.arguments]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    changed = [a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    return {_key(leaf) for name in changed for leaf in tensors_of(given.get(name))}


@contextmanager
def alone():
    with _disable_current_modes(), torch._C.DisableTorchFunction(), torch.no_grad():
        yield
