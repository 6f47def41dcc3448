"""The variational autoencoder: three parts joined into a Pyro model and guide."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from . import programs
from .base import Part, check_type, has_forward, loose_tensor, mean_of, members, path_of
from .conditions import Condition
from .errors import InputError, whole_number
from .programs import LogWeights


class Autoencoder(nn.Module):
    """What every model is: parts joined into a Pyro `model` and `guide` with the data in a plate "data"; abstract."""

    prior: Part
    likelihood: Part
    posterior: nn.Module

    @property
    def sites(self) -> list[str]:
        """The names of the latent sites, from the data up."""
        raise NotImplementedError

    def model(self, x: Tensor, y: Tensor | None = None) -> None:
        """p(x, z) for each datum."""
        raise NotImplementedError

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        """q(z|x) for each datum."""
        raise NotImplementedError

    def means(self, x: Tensor, y: Tensor | None = None) -> dict[str, Tensor]:
        """The posterior mean (B, latent) of each latent site, the one next to the data first.

        That of 64 draws where the guide does not know its own.
        """
        raise NotImplementedError

    def latents(self, n: int, y: Tensor | None = None) -> Tensor:
        """Draws of the latent that the likelihood takes, from the model: (n, latent)."""
        raise NotImplementedError

    def code(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The latent (B, latent) that stands for a datum: the mean of q(z|x), or what a guide takes where means lie off
        the support: its mode, its median, the draw without noise (`Guide.point`).

        Of several layers it is the one next to the data.
        """
        return next(iter(self.means(x, y).values()))

    def reconstruct(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """The mean of p(x|z) at the latent that stands for x, (B, *shape)."""
        check_data(x, y, self.likelihood)
        return self._mean(self.likelihood(self.code(x, y), y))

    def sample(self, n: int = 1, y: Tensor | None = None, *, mean: bool = False) -> Tensor:
        """Data x ~ p(x|z), z ~ p(z): (n, *shape).

        Args:
            n: how many.
            y: labels (n,), for parts that use them.
            mean: return the mean of p(x|z) in place of a draw, as pictures of samples mostly do.
        """
        whole_number(0, n=n)
        check_labels(y, n)
        p = self.likelihood(self.latents(n, y), y)
        return self._mean(p) if mean else p.sample()

    def _mean(self, p: dist.Distribution) -> Tensor:
        try:
            return p.mean
        except NotImplementedError as error:
            raise InputError(
                f"likelihood {path_of(type(self.likelihood))}: {type(p).__name__} has no mean, which pictures show:"
                " give it one"
            ) from error

    def log_weights(self, x: Tensor, y: Tensor | None = None, particles: int = 1) -> LogWeights:
        """Log p(x|z), log p(z) and log q(z|x) for draws z ~ q(z|x), each (particles, B), nats.

        They carry a gradient: wrap the call in `torch.no_grad()` for numbers alone.

        Raises:
            InputError: with Pyro's validation, labels that the model does not take, data outside the likelihood's
                support: both are looked up on the host.
        """
        check_data(x, y, self.likelihood)
        data = (x,) if y is None else (x, y)
        names = self._held(data, y) if torch.distributions.Distribution._validate_args else frozenset()
        traces = programs.trace(self.model, self.guide, x, y, particles=particles, max_plate_nesting=1)
        if names:
            programs.check_supports(self.model, self.guide, data, programs.outside_support(traces, names))
        return programs.split(traces)

    def _held(self, data: tuple[Tensor, ...], y: Tensor | None) -> frozenset[str]:
        """The sites whose data are held against a support; labels are looked at here."""
        for condition in self.modules():
            if isinstance(condition, Condition):
                condition(y)
        return programs.whole(self.model, self.guide, *(part[:1] for part in data)).validated


class VAE(Autoencoder):
    """A variational autoencoder as a Pyro program (Kingma and Welling 2014; Rezende et al. 2014).

    Args:
        prior: its call returns p(z).
        likelihood: its call on z returns p(x|z).
        guide: its call on x returns q(z|x); the attribute is `posterior`, as `guide` is the program.

    Raises:
        InputError: something that is not a part; a prior and a guide of different sizes.

    The data plate is named "data", the sites "z" and "x". Data are x (B, *shape) with values as the likelihood scores
    them, labels y (B,) or None. Parameters live on the module: two models in one process are apart.

    >>> import pvae, torch
    >>> vae = VAE(
    ...     pvae.Normal(2),
    ...     pvae.Bernoulli(pvae.mlp(2, [32], 6), (6,)),
    ...     pvae.MeanField(pvae.mlp(6, [32], 4), 2),
    ... )
    >>> svi = pyro.infer.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-3}), pyro.infer.Trace_ELBO())
    >>> loss = svi.step(torch.ones(5, 6))
    """

    def __init__(self, prior: Part, likelihood: Part, guide: Part) -> None:
        super().__init__()
        for name, part in (("prior", prior), ("likelihood", likelihood), ("guide", guide)):
            if not isinstance(part, Part):
                raise InputError(
                    f"{name}: found {type(part).__name__}, expected a pvae.Part: subclass pvae.{name.title()}"
                )
            if not has_forward(part):
                raise InputError(f"{name} {path_of(type(part))}: found no forward, expected one: return a distribution")
            if loose := loose_tensor(part):
                raise InputError(f"{name} {path_of(type(part))}: {loose}")
            if part.family in {"prior", "likelihood", "guide"} - {name}:
                raise InputError(f"{name}: found the {part.family} {path_of(type(part))}, expected a {name}")
        event, own = len(getattr(likelihood, "shape", ())), getattr(guide, "event_dim", None)
        if event and own is not None and own != event:
            raise InputError(
                f"guide: takes data of {own} dimensions, expected the likelihood's {event}: give it event_dim={event}"
            )
        sizes = {name: part.latent for name, part in (("prior", prior), ("guide", guide)) if hasattr(part, "latent")}
        if len(set(sizes.values())) > 1:
            raise InputError(
                f"latent: found size {sizes['prior']} of the prior, {sizes['guide']} of the guide, expected the same of"
                " both"
            )
        self.prior = prior
        self.likelihood = likelihood
        self.posterior = guide
        for part in (prior, likelihood, guide):
            part.connect(prior, likelihood, guide)
        check_support(prior, guide)

    def initialize(self, x: Tensor, y: Tensor | None = None) -> VAE:
        """Let every part take what it starts from out of the training data, x (N, *shape) and y; once, before a fit.

        A Bernoulli decoder's last bias starts at the logit of the training mean, for one. Returns self.

        Raises:
            InputError: data of another shape than the likelihood's, none, or some that are not finite; other labels.
        """
        check_start(x, y, self.likelihood)
        for part in (self.prior, self.likelihood, self.posterior):
            part.initialize(x, y)
        return self

    def model(self, x: Tensor, y: Tensor | None = None) -> None:
        """p(x, z) = p(z) p(x|z) for each datum."""
        check_data(x, y, self.likelihood)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior(y))
            pyro.sample("x", self.likelihood(z, y), obs=x)

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        """q(z|x) for each datum."""
        check_data(x, y, self.likelihood)
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.posterior(x, y))

    @property
    def sites(self) -> list[str]:  # noqa: D102
        return ["z"]

    def encode(self, x: Tensor, y: Tensor | None = None) -> dist.Distribution:
        """q(z|x): batch shape (B,), event shape (latent,)."""
        return self.posterior(x, y)

    def means(self, x: Tensor, y: Tensor | None = None) -> dict[str, Tensor]:  # noqa: D102
        return {"z": mean_of(self.encode(x, y))}

    def code(self, x: Tensor, y: Tensor | None = None) -> Tensor:  # noqa: D102
        return point_of(self.posterior, self.encode(x, y))

    def latents(self, n: int, y: Tensor | None = None) -> Tensor:  # noqa: D102
        return drawn(self.prior, n, y)


def point_of(guide: nn.Module, q: dist.Distribution) -> Tensor:
    """One latent in place of a draw from a guide's q: as the guide says, or its mean."""
    return guide.point(q) if hasattr(guide, "point") else mean_of(q)  # type: ignore[operator]


def drawn(prior: Part, n: int, y: Tensor | None) -> Tensor:
    """Draws from a prior, (n, latent).

    Raises:
        InputError: it cannot be drawn from.
    """
    p = prior(y)
    try:
        return p.expand([n]).sample()
    except NotImplementedError as error:
        raise InputError(
            f"prior {path_of(type(prior))}: {type(p).__name__} has no sample: it can be fitted and"
            " evaluated, but not sampled from"
        ) from error


def check_data(x: Tensor, y: Tensor | None, likelihood: Part) -> None:
    """Refuse data of another shape than a likelihood scores, pixels as they are stored, and labels of another number.

    A network may take the one for the other: a single datum for as many data as it has numbers.

    Raises:
        InputError: they are so.
    """
    if not isinstance(x, Tensor):
        raise InputError(f"x: found {type(x).__name__}, expected a tensor: pass torch.as_tensor(x)")
    if x.layout != torch.strided:
        raise InputError(f"x: found a tensor of layout {x.layout}, expected a dense one: pass x.to_dense()")
    if x.dtype == torch.uint8:
        check_type(x, torch.get_default_dtype())
    shape = getattr(likelihood, "shape", None)
    if not x.dim() or not len(x) or (isinstance(shape, torch.Size) and x.shape[1:] != shape):
        expected = ", ".join(["data", *map(str, shape if isinstance(shape, torch.Size) else ["..."])])
        hint = ": a single datum is x[None]" if x.shape == shape else ", one or more" if x.dim() and not len(x) else ""
        raise InputError(f"x: found shape {tuple(x.shape)}, expected ({expected}){hint}")
    check_labels(y, len(x))


def check_start(x: Tensor, y: Tensor | None, likelihood: Part) -> None:
    """Refuse data that parts cannot take what they start from out of.

    Raises:
        InputError: as `check_data`; some that are not finite, or no floats.
    """
    check_data(x, y, likelihood)
    if not x.is_floating_point():
        check_type(x, torch.get_default_dtype())
    if not (finite := x.isfinite().flatten(1).all(1)).all():
        raise InputError(f"x: datum {int((~finite).nonzero()[0])} has values that are not finite: leave it out")


def check_labels(y: Tensor | None, n: int) -> None:
    """Refuse labels that are not one for each of n data.

    Raises:
        InputError: they are of another number, or no tensor.
    """
    if y is None or (isinstance(y, Tensor) and y.dim() > 0 and len(y) == n):
        return
    found = f"a tensor of shape {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
    raise InputError(f"y: found {found}, expected a tensor with one label for each of {n} data, or None")


def check_support(made: Part, guide: Part, where: str = "") -> None:
    """Refuse a guide whose draws do not lie where those of the prior do, or of the layer that the model has there.

    Raises:
        InputError: they do not; names what goes with the guide, and the guides that go with that.
    """
    found = {part: getattr(part, "support", None) for part in (made, guide)}
    if found[made] == found[guide] or None in found.values():
        return
    if type(made).support == type(guide).support:  # type: ignore[attr-defined]
        advice = ["give both the same options"]
    else:
        what = "prior" if made.family == "prior" else "layer"
        fits = {"guide": _of_support("guide", found[made]), what: _of_support(made.family, found[guide])}
        advice = [f"choose the {name} {' or '.join(names)}" for name, names in fits.items() if names]
    the = "prior" if made.family == "prior" else "model's"
    raise InputError(
        f"guide{where}: {type(guide).__name__} draws from {found[guide]}, the {the} {type(made).__name__} from"
        f" {found[made]}, expected the same of both{': ' if advice else ''}{'; or '.join(advice)}"
    )


def _of_support(family: str, support: str | None) -> list[str]:
    """The members whose draws lie there, with the right options."""
    return [
        name
        for name, member in members(family).items()
        if str(support).startswith(member.support) or getattr(member, "anywhere", False)  # type: ignore[attr-defined]
    ]
