"""`emulated`: within it there is a CUDA device, as far as torch's Python can see; see `emulated_device`."""

import importlib
import warnings
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from itertools import count
from unittest.mock import patch

import torch
import torch.fx.experimental.proxy_tensor
from emulated_device import CPU, CUDA, HIDDEN, Capture, Device, DeviceTensor, alone
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode

from pvae.replay import compiling


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
        if func in _WHOLE and any(isinstance(leaf, DeviceTensor) for leaf in args) and torch.backends.cudnn.enabled:
            torch.ops.aten.empty.memory_format([0]).set_(args[0].untyped_storage())  # cuDNN's weights are in one memory
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
        with alone():
            made = DeviceTensor(torch.tensor(data, dtype=kwargs.get("dtype")), self.device)
        self.device.launches.append("tensor")
        return torch.ops.aten.lift_fresh(made).requires_grad_(kwargs.get("requires_grad", False))


_WHOLE = {getattr(torch, name) for name in ("gru", "lstm", "rnn_tanh", "rnn_relu")}


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
    pool = pool or object()
    assert pool not in graph.device.underway, "a capture to this pool seems to go on"
    graph.device.underway.append(pool)
    graph.capture_begin()
    try:
        yield
    finally:
        with alone():
            graph.capture_end()
        graph.device.underway.remove(pool)


def _compiled(graph, inputs, device):
    """`compiling.compiled`, for the CPU; one operation of the device."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own making
        from torch._inductor.compile_fx import compile_fx

    from pvae.replay.tracing import lifted

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
    order = dict.fromkeys(("reorder_for_locality", "reorder_for_peak_memory"), False)
    settings = torch._inductor.config.patch(fallback_random=True, **order)
    with alone(), warnings.catch_warnings(), settings, patch.multiple(torch.cuda, **nothing):
        warnings.simplefilter("ignore")
        run = compile_fx(module, hosts([*constants, *inputs]))
        run(*hosts([*constants, *inputs]))

    def inductor(*values):
        with alone():
            return run(*values)

    return lambda *given: here(device.run(inductor, tuple(hosts([*constants, *given])), {}))


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
    """What `torch.cuda` has, and torch beneath it."""

    def set_state(state, *_):
        assert device.capturing is None, "the generator's state cannot be set in a capture"
        device.random = state.clone()

    def get_state(*_):
        assert device.capturing is None, "the generator's state cannot be asked for in a capture"
        return device.random.clone()

    def waiting(mode):
        device.waiting = mode
        warnings.warn("Synchronization debug mode is a prototype feature and does not yet", UserWarning, stacklevel=2)

    def end(_, pool):
        if pool not in device.underway:
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        device.underway.remove(pool)

    pools = count()
    return {
        **dict.fromkeys(("is_available", "is_initialized", "is_bf16_supported"), lambda *_: True),
        **dict.fromkeys(("init", "_lazy_init", "empty_cache", "reset_peak_memory_stats"), lambda *_: None),
        **dict.fromkeys(("memory_allocated", "max_memory_allocated", "memory_reserved"), device.allocated),
        "synchronize": lambda *_: device.waits(asynchronous=True),
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "get_device_name": lambda *_: "emulated",
        "get_device_capability": lambda *_: (0, 0),
        "device": lambda *_: nullcontext(),
        "is_current_stream_capturing": lambda: device.capturing is not None,
        "mem_get_info": lambda *_: (2**30, 2**31),
        "get_per_process_memory_fraction": lambda *_: device.share,
        "get_rng_state": get_state,
        "set_rng_state": set_state,
        **dict.fromkeys(("manual_seed", "manual_seed_all"), lambda seed: set_state(_seeded(seed))),
        "set_sync_debug_mode": waiting,
        **dict.fromkeys(("Stream", "Event", "current_stream"), partial(_Stream, device)),
        "stream": lambda _: nullcontext(),
        "CUDAGraph": partial(Capture, device),
        "graph": _capturing,
        "graph_pool_handle": lambda: (0, next(pools)),
    }, {"_cuda_endAllocateToPool": end, "_cuda_releasePool": lambda *_: None}


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

        functions, private = _torch_cuda(device)
        for holder, values in ((torch.cuda, functions), (torch._C, private)):
            for name, value in values.items():
                put(holder, name, value)
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
        put(compiling, "compiled", partial(_compiled, device=device))
        tracing, operations = proxies.ProxyTorchDispatchMode, _Operations(device)
        put(tracing, "__torch_dispatch__", operations.within(tracing.__torch_dispatch__))
        stack.enter_context(operations)
        stack.enter_context(_Names(device))
        yield device
