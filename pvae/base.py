"""What every part is: a member of a family, found by name, whose call returns a distribution."""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import pyro
import torch
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.poutine.block_messenger import BlockMessenger
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor, nn

from .errors import LIBRARIES, InputError, nearest

_families: dict[str, dict[str, type[Member]]] = {}


class Member:
    """A class of a family, registered under a name where the class is written.

    A family's root says `family=`; a member says `name=`. Members without a name are found by import path.

    >>> class Root(Member, family="example"): ...
    >>> class One(Root, name="one"): ...
    >>> lookup("example", "one") is One
    True
    """

    family: ClassVar[str] = ""
    name: ClassVar[str] = ""

    def __init_subclass__(cls, *, family: str = "", name: str = "", **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if family:
            cls.family = family
            _families[family] = {"": cls}
        cls.name = name
        if name:
            before = _families[cls.family].setdefault(name, cls)
            if path_of(before) != path_of(cls):
                raise InputError(f"{cls.family} '{name}': the name is taken by {path_of(before)}: choose another")
            _families[cls.family][name] = cls  # the same class again, as in a notebook


class Part(Member, nn.Module):
    """A module whose call returns a distribution: the parameters live in it, the call builds the distribution.

    The last dimensions of the distribution are its event; all dimensions to the left are batch
    (particles, data) and any number of them is allowed.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Build the distribution; within a Pyro program, say that it uses the part's parameters.

        Raises:
            InputError: `forward` gave something that is not a distribution, or one of another shape than it should.
        """
        announce(self, self.family)
        try:
            found = super().__call__(*args, **kwargs)
        except TypeError as error:
            check_call(f"{self.family} {path_of(type(self))}: forward", self.forward, args, kwargs, error)
            raise
        self.check(found, *args, **kwargs)
        return found

    def check(self, found: Any, *args: Any, **kwargs: Any) -> None:
        """Refuse what `forward` gave for these arguments if it is not what the family gives."""

    def connect(self, prior: Part, likelihood: Part, guide: Part) -> None:
        """Meet the other parts of a model, for a part that is made of another; called by the model that joins them.

        Keep a part that is met with `object.__setattr__`, or its parameters would be this part's too.
        """

    def initialize(self, x: Tensor, y: Tensor | None = None) -> None:
        """Take what the part starts from out of the training data, x (N, *shape) float32 and y; once, before a fit."""


def members(family: str) -> dict[str, type[Member]]:
    """The registered members of a family by name.

    >>> from pvae import priors
    >>> members("prior")["normal"].__name__
    'Normal'
    """
    return {name: member for name, member in _families[family].items() if name}


def root(family: str) -> type[Member]:
    """The class that all members of a family descend from."""
    return _families[family][""]


def lookup(family: str, name: str, where: str = "") -> type[Member]:
    """The member of a family by its name, or by import path `package.module:Class`.

    Args:
        family: as `prior`.
        name: of the member.
        where: what messages call what was given, the option of the family if nothing is said.

    Raises:
        InputError: an unknown name; a path that cannot be imported, or is not of the family.
    """
    known, where = members(family), where or f"--{family}"
    if name in known:
        return known[name]
    if ":" not in name.strip(":"):
        hint = nearest(name, list(known))
        raise InputError(f"{where}: unknown {family} '{name}': {hint}; or give your own class as module:Class")
    found = _import(f"{where} {name}", name)
    if not (inspect.isclass(found) and issubclass(found, root(family)) and found is not root(family)):
        expected = f"{root(family).__module__.partition('.')[0]}.{root(family).__name__}"
        raise InputError(f"{where} {name}: found {found!r}, expected a subclass of {expected}")
    return found


def own_class(name: str) -> type[Member]:
    """A class of somebody's own by import path `package.module:Class`, of whatever family.

    Raises:
        InputError: it cannot be imported, or is of no family.
    """
    found = _import(name, name)
    if not (inspect.isclass(found) and issubclass(found, Member) and found not in (Member, *map(root, _families))):
        raise InputError(f"{name}: found {found!r}, expected a class of a family: {', '.join(_families)}")
    return found


def has_forward(part: Part) -> bool:
    """Whether a part has a `forward` of its own."""
    family = _families.get(part.family, {}).get("")
    return type(part).forward not in (nn.Module.forward, getattr(family, "forward", None))


def loose_tensor(part: nn.Module) -> str | None:
    """What a module holds that is neither trained, saved nor moved with it, and what to do; None where it is nothing.

    Looked at are tensors, and tensors and modules in lists, tuples and dicts, of the module and of those in it.

    >>> part = nn.Module()
    >>> part.layers = [nn.Linear(2, 2)]
    >>> loose_tensor(part)
    "found a module at 'layers[0]' that is not trained, saved or moved, expected it in an nn.ModuleList"
    """
    known = {id(one) for one in (*part.parameters(), *part.buffers(), *part.modules())}
    own = vars(nn.Module()).keys()
    for prefix, module in part.named_modules():
        for name, value in vars(module).items():
            for where, one in _held(f"{prefix}.{name}".removeprefix("."), () if name in own else value):
                if id(one) not in known and not (one is value and isinstance(one, nn.Module)):
                    return _loose(where, one, value)
    return None


def _held(where: str, value: Any, inside: tuple[int, ...] = ()) -> Iterator[tuple[str, Any]]:
    """The tensors and modules in containers in one another, and where they are."""
    if isinstance(value, Tensor | nn.Module):
        yield where, value
    if not isinstance(value, list | tuple | set | frozenset | dict) or id(value) in inside:
        return
    for key, one in value.items() if isinstance(value, dict) else enumerate(value):
        yield from _held(f"{where}[{key!r}]", one, (*inside, id(value)))


def _loose(where: str, found: Any, value: Any) -> str:
    kind = "Dict" if isinstance(value, dict) else "List"
    if isinstance(found, nn.Module):
        return f"found a module at '{where}' that is not trained, saved or moved, expected it in an nn.Module{kind}"
    if isinstance(found, nn.Parameter):
        text = f"found a Parameter at '{where}' that is not trained, saved or moved, expected it in an nn.Parameter"
        return text + kind
    return (
        f"found a tensor at '{where}' that no checkpoint would have, expected a Parameter, if it is learned"
        f"{'' if found is value else f' (in an nn.Parameter{kind})'}, or a buffer: self.register_buffer(...)"
    )


def check_call(who: str, function: Any, args: Any, kwargs: dict[str, Any], error: Exception) -> None:
    """Refuse a function that does not take what it is called with; nothing where it does.

    Raises:
        InputError: naming the function, its arguments and what it is given.
    """
    signature = inspect.signature(function)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as misfit:
        more = "".join(f", {name}=" for name in kwargs)
        found = str(signature).partition(" -> ")[0]
        raise InputError(
            f"{who}: found that it takes {found}, expected {len(args)} argument{'s' * (len(args) != 1)}{more}: {misfit}"
        ) from error


def blame(error: BaseException) -> str:
    """Which class that was named by import path an error comes from, and at what line of its file; or nothing."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename in _imported:
            return f"{_imported[frame.filename]}: failed at {frame.filename}:{frame.lineno}"
    return ""


_imported: dict[str, str] = {}
"""What was named on the command line, by the file that it is in."""


def path_of(member: type) -> str:
    """Where a class is written: `package.module:Class`."""
    return f"{member.__module__}:{member.__qualname__}"


def _import(where: str, name: str) -> Any:
    module_name, _, attribute = name.partition(":")
    here = str(Path.cwd())  # a class in a file beside the user, as `python -m` would find it
    try:
        sys.path.insert(0, here)
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)[1:]
        machinery = ("<frozen importlib", inspect.getfile(importlib))
        written = [frame for frame in frames if not frame.filename.startswith(machinery)]
        if isinstance(error, ModuleNotFoundError) and not written:
            expected = "expected module:Class, importable from here"
            raise InputError(f"{where}: no module named '{error.name}': {expected}") from error
        # a syntax error is at no frame of its own
        at = error if isinstance(error, SyntaxError) else (written or frames)[-1]
        line = str(error).splitlines()[0] if str(error) else ""
        raise InputError(
            f"{where}: importing it failed at {at.filename}:{at.lineno}: {type(error).__name__}: {line}"
        ) from error
    finally:
        with suppress(ValueError):
            sys.path.remove(here)
    if not hasattr(module, attribute):
        classes = [key for key, value in vars(module).items() if inspect.isclass(value)]
        raise InputError(f"{where}: '{module_name}' has no class '{attribute}': {nearest(attribute, classes)}")
    found = getattr(module, attribute)
    for name in {module_name, *(cls.__module__ for cls in getattr(found, "__mro__", ()))}:
        own = name == module_name or name.partition(".")[0] not in LIBRARIES
        if own and (file := getattr(sys.modules.get(name), "__file__", None)):
            _imported[file] = where
    return found


def check_distribution(part: Part, found: Any, batch: Sequence[tuple[int, ...]], event: tuple[int, ...]) -> None:
    """Refuse what a part's `forward` gave unless it is a distribution of one of these batch shapes and this event.

    Shapes alone are looked at: nothing waits for the device.

    Raises:
        InputError: naming the part, what was found, and what is expected.
    """
    who = f"{part.family} {path_of(type(part))}"
    if not isinstance(found, TorchDistributionMixin):
        expected = "expected a distribution of pyro.distributions"
        if isinstance(found, torch.distributions.Distribution):
            expected += ": found one of torch.distributions, which cannot be a Pyro site"
        raise InputError(f"{who}: forward returned {type(found).__name__}, {expected}")
    have = (tuple(found.batch_shape), tuple(found.event_shape))
    if have[1] == event and have[0] in batch:
        return
    wanted = " or ".join(map(str, dict.fromkeys(batch)))
    right = len(event) - len(have[1])
    hint = f": add .to_event({right})" if right > 0 and have[0] + have[1] in [(*b, *event) for b in batch] else ""
    raise InputError(
        f"{who}: forward returned batch shape {have[0]} and event shape {have[1]}, expected batch shape {wanted} and"
        f" event shape {event}{hint}"
    )


def mean_of(q: Any) -> Tensor:
    """The mean of a distribution; that of 64 draws where it does not know its own, as a flow."""
    try:
        return q.mean
    except NotImplementedError:
        return q.sample((64,)).mean(0)


def announce(module: nn.Module, scope: str = "") -> None:
    """Say to Pyro that a program uses the parameters of a module: one `param` site each.

    Unlike `pyro.module` it leaves the parameters where they are, on the module, and out of the global parameter
    store: two models in one process have nothing in common. Stock `pyro.infer.SVI` trains what it is told of here.
    A handler that knows messages of type "module" may take note of the whole module and make the sites unnecessary.

    Args:
        module: whose parameters are used.
        scope: what the sites' names start with; a second module of the same scope gets a number, so that two in one
            program do not hide one another.
    """
    if not pyro.poutine.runtime.am_i_wrapped():
        return
    prefix = _scopes.get(module)
    if prefix is None:
        taken = set(_scopes.values())
        numbered = (f"{scope or type(module).__name__.lower()}{number}" for number in ("", *range(2, len(taken) + 3)))
        prefix = _scopes[module] = next(name for name in numbered if name not in taken)
    hides = any(isinstance(handler, BlockMessenger) for handler in _PYRO_STACK)  # perhaps the sites
    if not hides and _module(module, name=prefix):
        return
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            _param(_alias(parameter), name=f"{prefix}.{name}")


_scopes: weakref.WeakKeyDictionary[nn.Module, str] = weakref.WeakKeyDictionary()


@pyro.poutine.runtime.effectful(type="module")
def _module(module: nn.Module, **_: Any) -> bool:
    return False


def _alias(parameter: nn.Parameter) -> Tensor:
    # Pyro reads the leaf through `.unconstrained`; set on the parameter itself it would make the module unpicklable.
    alias = parameter.detach()
    alias.unconstrained = weakref.ref(parameter)  # type: ignore[attr-defined]
    return alias


@pyro.poutine.runtime.effectful(type="param")
def _param(value: Tensor, **_: Any) -> Tensor:
    return value


def leading(module: Callable[[Tensor], Tensor], x: Tensor, event_dim: int) -> Tensor:
    """Apply a module that knows one batch dimension to x (*leading, *event): (*leading, *output).

    >>> import torch
    >>> leading(nn.Conv2d(1, 4, 3), torch.zeros(5, 2, 1, 8, 8), event_dim=3).shape
    torch.Size([5, 2, 4, 6, 6])
    """
    lead = x.shape[: x.dim() - event_dim]
    try:
        out = module(x if len(lead) == 1 else x.reshape(-1, *x.shape[len(lead) :]))
    except RuntimeError as error:
        if "type" in str(error) and isinstance(module, nn.Module):
            kinds = {p.dtype for p in module.parameters()}
            check_type(x, kinds.pop() if len(kinds) == 1 else x.dtype)
        raise
    return out if len(lead) == 1 else out.reshape(*lead, *out.shape[1:])


def full_precision(value: Tensor) -> Tensor:
    """A network's numbers as densities take them: float32 where the network runs in bfloat16, under autocast."""
    return value.float() if value.dtype == torch.bfloat16 else value


def check_type(x: Tensor, expected: torch.dtype) -> None:
    """Refuse data that are of another type than the numbers they meet.

    Raises:
        InputError: what was found, what is expected, and how to make it so.
    """
    if x.dtype == expected:
        return
    found, kind = (str(dtype).removeprefix("torch.") for dtype in (x.dtype, expected))
    stored = x.dtype == torch.uint8
    do = "pixels are stored as uint8: pass pvae.data.pixels(x)" if stored else f"pass x.to(torch.{kind})"
    raise InputError(f"x: found {found}, expected {kind}, as the parameters are: {do}")
