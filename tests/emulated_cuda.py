"""A CUDA device that is not there: what torch's Python sees of one, with the arithmetic done on the CPU.

A tensor on it is a wrapper round a CPU tensor, and says `cuda:0`. Under its skin torch believes it a meta tensor, so
that autograd asks for no driver. What a device refuses is refused: tensors of two devices in one operation, and in a
capture all that waits for the device. A capture changes nothing, and its memory is rubbish until the first replay; a
replay does again what was recorded, on the same memory, with fresh random numbers; a graph that reads memory which is
gone is an error. What is not emulated: time, streams, several devices, and how the allocator uses memory again.
"""

import importlib
import warnings
import weakref
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from types import SimpleNamespace
from unittest.mock import patch

import torch
import torch.fx.experimental.proxy_tensor
from torch import Tag, Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

import pvae

VALUES = (list, tuple, type({}.values()))
CUDA, HIDDEN, CPU = torch.device("cuda", 0), torch.device("meta"), torch.device("cpu")
NO_KERNEL = {"empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "lift_fresh"}
TAKE_NUMBERS = {"fill_", "masked_fill", "masked_fill_", "index_put", "index_put_"}
"""Operations not marked as pointwise that take a tensor () of the CPU as a number."""


def _tensors(values):
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, dict):
        values = values.values()
    return [found for value in values for found in _tensors(value)] if isinstance(values, VALUES) else []


def _mapped(function, values):
    if isinstance(values, Tensor):
        return function(values)
    if isinstance(values, dict):
        return {key: _mapped(function, value) for key, value in values.items()}
    return type(values)(_mapped(function, value) for value in values) if isinstance(values, list | tuple) else values


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
        owner = next(leaf.owner for leaf in _tensors((args, kwargs)) if isinstance(leaf, DeviceTensor))
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
    """

    def __init__(self):
        self.launches, self.room, self.waiting, self.default = [], None, "default", False
        self.capturing, self.stuck = None, False
        self.random = torch.Generator().get_state()
        self._memory = weakref.WeakValueDictionary()

    def memory_of(self, host):
        storage = host.untyped_storage()
        return self._memory.setdefault(storage._cdata, Memory(storage.nbytes()))

    def allocated(self, *_):
        return sum(memory.size for memory in self._memory.values())

    def execute(self, func, args, kwargs):
        """Do what torch asks for: everything comes through here."""
        tensors = _tensors((args, kwargs))
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
        out = self.run(func, *_mapped(lambda tensor: getattr(tensor, "host", tensor), (args, kwargs)))
        known = {id(getattr(tensor, "host", tensor)): tensor for tensor in tensors}
        place = (lambda made: DeviceTensor(made, self)) if here else lambda made: made
        return _mapped(lambda made: known[id(made)] if id(made) in known else place(made), out)

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
        if masks or copied or shape or Tag.data_dependent_output in func.tags or name == "_linalg_check_errors":
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
        given = {_key(leaf): leaf for leaf in _tensors((args, kwargs))}
        for key in given.keys() & device._memory.keys() - self.own.keys() - self.foreign.keys():
            self.foreign[key] = weakref.ref(device._memory[key])
        for key in _written(func, args, kwargs) - self.own.keys() - self.saved.keys():
            storage = given[key].untyped_storage()
            self.saved[key] = (storage, storage.clone())
        # as they are now: later they may be transposed in place, and numbers () of the CPU be others
        kept = _mapped(lambda t: t.detach() if _key(t) in device._memory else t.clone(), (args, kwargs))
        out = device.once(func, args, kwargs)
        fresh = [leaf.detach() if _key(leaf) not in given else None for leaf in _tensors(out)]
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
        if self.broken:
            self.device.stuck = True  # as torch 2.11 is
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    def replay(self):
        assert self.done, "a replay without a capture"
        assert self.device.capturing is None, "a replay within a capture"
        if any(memory() is None for memory in self.foreign.values()):
            raise RuntimeError("the graph reads memory that is gone")
        self.device.launches.append("replay")
        with _alone():
            for func, args, kwargs, fresh in self.tape:
                out = self.device.once(func, args, kwargs)
                made = _tensors(out)
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
        return {_key(leaf) for leaf in _tensors((args, kwargs))}
    names = [argument.name for argument in func._schema.arguments]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    changed = [a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    return {_key(leaf) for name in changed for leaf in _tensors(given.get(name))}


class _Operations(TorchDispatchMode):
    """Brings operations to the device, after a mode that traces them."""

    def __init__(self, device):
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        keys = torch._C._TorchDispatchModeKey
        if any(torch._C._get_dispatch_mode(key) is not None for key in (keys.PROXY, keys.FAKE)):
            return func(*args, **(kwargs or {}))
        return self.device.execute(func, args, kwargs or {})

    def within(self, own):
        """What a tracing mode itself does comes to the device again."""

        def dispatch(mode, *args):
            with self:
                return own(mode, *args)

        return dispatch


class _Names(TorchFunctionMode):
    """Torch's functions, told the device's hidden name where they are told its name."""

    def __init__(self, device):
        super().__init__()
        self.device = device

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is Tensor.cuda:
            return args[0].to(HIDDEN, non_blocking=kwargs.get("non_blocking", False))
        if func in (Tensor.tolist, Tensor.numpy) and isinstance(args[0], DeviceTensor):
            return getattr(args[0], func.__name__)()
        if self.device.default and func in _device_constructors() and kwargs.get("device") is None:
            kwargs["device"] = CUDA
        if func in (torch.tensor, torch.as_tensor, Tensor.new_tensor):
            return self._made_of_numbers(func, args, kwargs)
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = HIDDEN
        if func is Tensor.to:
            args = tuple(HIDDEN if _is_cuda(arg) else arg for arg in args)
        return func(*args, **kwargs)

    def _made_of_numbers(self, func, args, kwargs):
        there = func is Tensor.new_tensor and isinstance(args[0], DeviceTensor)
        there = _is_cuda(kwargs.pop("device", CUDA if there else None))
        data = args[func is Tensor.new_tensor]
        if isinstance(data, DeviceTensor):
            return data.to(**kwargs) if func is torch.as_tensor else data.detach().clone().to(**kwargs)
        if not there:
            return func(*args, **kwargs)
        self.device.waits()
        with _alone():
            made = DeviceTensor(torch.tensor(data, dtype=kwargs.get("dtype")), self.device)
        self.device.launches.append("tensor")
        return torch.ops.aten.lift_fresh(made).requires_grad_(kwargs.get("requires_grad", False))


def _is_cuda(name):
    return name.partition(":")[0] == "cuda" if isinstance(name, str) else getattr(name, "type", "") == "cuda"


class _Generator(torch.Generator):
    """One of the device's own; of the CPU under its skin."""

    def __new__(cls, device=None):
        return super().__new__(cls)


class _Stream:
    """`torch.cuda.Stream`, as `torch.cuda.Event`: everything is done at once."""

    def __init__(self, device, *args, **kwargs):
        self.is_capturing = lambda: device.capturing is not None

    def __getattr__(self, name):
        return lambda *args, **kwargs: None


@contextmanager
def _capturing(graph, pool=None, stream=None, capture_error_mode="global"):
    graph.capture_begin()
    try:
        yield
    finally:
        with _alone():
            graph.capture_end()


def _compiled(graph, inputs, device):
    """`pvae.svi.replay.compiled`, for the CPU; one operation of the device."""
    from torch._inductor.compile_fx import compile_fx

    from pvae.svi.tracing import lifted

    module, constants = lifted(graph)
    for node in module.graph.nodes:
        if "device" in node.kwargs:
            node.kwargs = {**node.kwargs, "device": CPU}
    module.recompile()

    def hosts(values):
        return [value.host if isinstance(value, DeviceTensor) else value for value in values]

    def here(values):
        return tuple(DeviceTensor(value, device) if isinstance(value, Tensor) else value for value in values)

    nothing = dict.fromkeys(("is_available", "is_initialized", "device_count"), lambda *_: 0)
    settings = torch._inductor.config.patch(fallback_random=True)
    with _alone(), warnings.catch_warnings(), settings, patch.multiple(torch.cuda, **nothing):
        warnings.simplefilter("ignore")
        run = compile_fx(module, hosts([*constants, *inputs]))
        run(*hosts([*constants, *inputs]))

    def alone(*values):
        with _alone():
            return run(*values)

    return lambda *given: here(device.run(alone, tuple(hosts([*constants, *given])), {}))


@contextmanager
def _alone():
    with _disable_current_modes(), torch._C.DisableTorchFunction(), torch.no_grad():
        yield


def _applying(own):
    def apply(self, *args, **kwargs):
        """Parameters that move to the device stay the same objects."""
        torch.__future__.set_swap_module_params_on_conversion(True)
        try:
            return own(self, *args, **kwargs)
        finally:
            torch.__future__.set_swap_module_params_on_conversion(False)

    return apply


def _grouped(own):
    def grouped(*args):
        return {(CUDA if d == HIDDEN else d, dtype): found for (d, dtype), found in own(*args).items()}

    return grouped


def _torch_cuda(device):
    """What `torch.cuda` has."""

    def set_state(state, *_):
        assert device.capturing is None, "the generator's state cannot be set in a capture"
        device.random = state.clone()

    def get_state(*_):
        assert device.capturing is None, "the generator's state cannot be asked for in a capture"
        return device.random.clone()

    def waiting(mode):
        device.waiting = mode

    def unstick(_):
        device.stuck = False

    generator = SimpleNamespace(clone_state=get_state, graphsafe_set_state=unstick)

    return {
        **dict.fromkeys(("is_available", "is_initialized", "is_bf16_supported"), lambda *_: True),
        **dict.fromkeys(("init", "_lazy_init", "empty_cache", "reset_peak_memory_stats"), lambda *_: None),
        **dict.fromkeys(("memory_allocated", "max_memory_allocated"), device.allocated),
        "synchronize": lambda *_: device.waits(asynchronous=True),
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_name": lambda *_: "emulated",
        "get_device_capability": lambda *_: (0, 0),
        "device": lambda *_: nullcontext(),
        "is_current_stream_capturing": lambda: device.capturing is not None,
        "mem_get_info": lambda *_: (2**30, 2**31),
        "get_rng_state": get_state,
        "set_rng_state": set_state,
        **dict.fromkeys(("manual_seed", "manual_seed_all"), lambda seed: set_state(_seeded(seed))),
        "set_sync_debug_mode": waiting,
        "default_generators": [generator],
        **dict.fromkeys(("Stream", "Event", "current_stream"), partial(_Stream, device)),
        "stream": lambda _: nullcontext(),
        "CUDAGraph": partial(Capture, device),
        "graph": _capturing,
        "graph_pool_handle": lambda: (0, 1),
    }


def _seeded(seed):
    return torch.Generator().manual_seed(seed).get_state()


@contextmanager
def emulated():
    """Within it there is a CUDA device; gives the `Device`."""
    device = Device()
    proxies = torch.fx.experimental.proxy_tensor
    with ExitStack() as stack:

        def put(holder, name, value):
            stack.enter_context(patch.object(holder, name, value))

        for name, value in _torch_cuda(device).items():
            put(torch.cuda, name, value)
        put(proxies, "HANDLED_TYPES", (*proxies.HANDLED_TYPES, DeviceTensor))
        put(torch._subclasses.fake_tensor, "init_gpu_context", lambda _: None)
        put(
            importlib.import_module("torch.optim.optimizer"),
            "_foreach_supported_types",
            [Tensor, nn.Parameter, DeviceTensor],
        )
        put(torch.accelerator, "current_stream", torch.cuda.current_stream)
        put(torch, "Generator", _Generator)
        put(torch, "set_default_device", lambda name: setattr(device, "default", _is_cuda(name)))
        put(torch.backends.cudnn, "is_acceptable", lambda _: False)
        put(torch._C, "_group_tensors_by_device_and_dtype", _grouped(torch._C._group_tensors_by_device_and_dtype))
        put(nn.Module, "_apply", _applying(nn.Module._apply))
        put(pvae.svi.replay, "compiled", partial(_compiled, device=device))
        tracing, operations = proxies.ProxyTorchDispatchMode, _Operations(device)
        put(tracing, "__torch_dispatch__", operations.within(tracing.__torch_dispatch__))
        stack.enter_context(operations)
        stack.enter_context(_Names(device))
        yield device
