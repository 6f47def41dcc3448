"""The figures of a run, from a fitted model, test data and what was measured."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import plots
from .data import Split, pixels
from .errors import InputError
from .evaluate import Evaluation
from .files import disk, whole
from .noise import forked
from .priors import Prior
from .runs import Run
from .vae import Autoencoder

SHOWN = 5000
"""Test data whose posterior means are drawn."""
BLOCK = 500
"""Of them at once: a guide may need much memory for each."""
BESIDE = "Samples from the prior beside test data"


@torch.no_grad()
def draw(run: Run, vae: Autoencoder, test: Split, found: Evaluation, say: Callable[[str], None]) -> None:
    """Draw the run's figures into `figures/`; what cannot be drawn is said."""
    folder, shape = run.folder / "figures", tuple(test.x.shape[1:])
    with disk(folder):
        folder.mkdir(exist_ok=True)
    drawn = _charts(run, vae, test, found)
    if plots.is_drawn(shape):
        drawn |= _pictures(run, vae, test)
    else:
        say(f"no pictures of data and samples: data of shape {shape} are neither rows, grey images nor colour images")
    for name, make in drawn.items():
        try:
            figure = make()
        except InputError as error:  # of a prior that is only scored, say
            say(f"no figure of {name.replace('_', ' ')}: {error}")
            continue
        with whole(folder / f"{name}.png") as aside:
            plots.save(figure, aside)


def _charts(run: Run, vae: Autoencoder, test: Split, found: Evaluation) -> dict[str, Callable[[], Any]]:
    """What draws the figures of any data, by name."""
    x, y = pixels(test.x[:SHOWN]), None if test.y is None else test.y[:SHOWN]
    drawn: dict[str, Callable[[], Any]] = {"learning_curves": lambda: _curves(run)}
    parts = [slice(start, start + BLOCK) for start in range(0, len(x), BLOCK)]
    blocks = [vae.means(x[part], None if y is None else y[part]) for part in parts]
    means = {site: torch.cat([block[site] for block in blocks]) for site in vae.sites}
    of = {"library": "total count", "covariates": "covariate"}.get(run.config.condition, "label")
    scatter = partial(plots.latent_scatter, labels=_tags(y), of=of)
    for site, mean in means.items():
        title = "Posterior means of test data" + (f", {site}" if found.layers else "")
        drawn[f"latent_space{suffix(vae, site)}"] = partial(scatter, _numpy(mean), title=title)
    for end, (variance, se) in variances(vae, found).items():
        drawn[f"active_units{end}"] = partial(_units, variance, se)
    return drawn


def _curves(run: Run) -> Any:
    name = run.folder.absolute().name.encode("latin-1", "backslashreplace").decode("latin-1")  # what fonts have
    title = textwrap.fill(f"Learning curves of the run {name}", 34).replace("$", r"\$")
    return plots.learning_curves(*curves(run), title=title)


def _units(variance: Tensor, se: Tensor) -> Any:
    if variance.isnan().any():
        raise InputError("one draw says nothing of posterior means: expected a larger K of --eval-particles")
    return plots.active_units(_numpy(variance.clamp(min=0)), _numpy(se))


def _pictures(run: Run, vae: Autoencoder, test: Split) -> dict[str, Callable[[], Any]]:
    """What draws data and what the model makes of them, by name."""
    y, seed, images = test.y, run.config.seed, test.x.dim() > 2
    x = pixels(test.x[:50] if images else test.x)
    table = plots.is_table(_numpy(x))
    few = slice(0, 1000 if table else 50)

    def reconstructions() -> Any:
        again = vae.reconstruct(x[few], None if y is None else y[few])
        return plots.reconstructions(_numpy(x[few]), _numpy(again), title="Reconstructions of test data")

    def samples() -> Any:
        if table:
            rows = sample(vae, 2000, seed, test, mean=False)
            return plots.samples(_numpy(x), _numpy(rows), names=("test data", "samples of the model"), title=BESIDE)
        return plots.image_grid(picture(sample(vae, 100, seed, test), test), title="Samples: means of p(x|z)")

    drawn: dict[str, Callable[[], Any]] = {"reconstructions": reconstructions, "samples": samples}
    if run.config.layers == (2,):
        drawn["latent_plane"] = lambda: _latent_plane(run, vae, test)
    return drawn


def _latent_plane(run: Run, vae: Autoencoder, test: Split) -> Any:
    if vae.prior.support != Prior.support:
        raise InputError(f"prior '{run.config.prior}' draws from {vae.prior.support}, expected {Prior.support}")
    if test.x.dim() < 3:
        raise InputError(f"data of shape {tuple(test.x.shape[1:])} are rows, expected images")
    title, y = "Means of p(x|z) over the latent plane", None
    if "likelihood" in run.config.given and test.y is not None:
        if test.y.dim() > 1:
            raise InputError(f"p(x|z) takes what --condition {run.config.condition} gives, expected z alone or a label")
        y = test.y.min()
        title += f", label {y}"
    return plots.latent_plane(*plane(vae, test.x.device, y), title=title)


def _tags(y: Tensor | None) -> Any:
    """What points of the latent space are coloured by: labels, or one covariate."""
    return None if y is None or y[0].numel() != 1 else _numpy(y.flatten())


def variances(vae: Autoencoder, found: Evaluation) -> dict[str, tuple[Tensor, Tensor]]:
    """The variances of each layer's posterior means and their errors, by what its names end in, if at all."""
    se = torch.zeros_like(found.latent_variance) if found.latent_se is None else found.latent_se
    one = {} if found.layers else {"": (found.latent_variance, se)}
    return {**one, **{suffix(vae, name): (layer.variance, layer.se) for name, layer in found.layers.items()}}


def suffix(vae: Autoencoder, site: str) -> str:
    """What the name of an array or a figure of one layer ends in, where there are several."""
    return f"_{site}" if len(vae.sites) > 1 else ""


def curves(run: Run) -> tuple[list[int], dict[str, list[float]]]:
    """Epochs, and the learning curves over them by name; NaN where nothing was measured."""
    records = run.metrics()
    objective = run.config.objective.rpartition(":")[2].upper()
    names = {
        "train": f"training {objective}" + (f" (K={run.config.particles})" if run.config.particles > 1 else ""),
        "validation.elbo": "validation ELBO",
        "validation.iw.10": "validation IW bound (K=10)",
    }
    return [r["epoch"] for r in records], {
        label: [r.get(key, float("nan")) for r in records]
        for key, label in names.items()
        if any(key in r for r in records)
    }


def sample(vae: Autoencoder, n: int, seed: int, split: Split, *, mean: bool = True, label: int | None = None) -> Tensor:
    """Means of p(x|z), or draws, for n draws z ~ p(z) from a seed of their own.

    A model that takes labels is given every class in turn, or the one that is asked for; covariates are those of data.
    """
    device, y = next(vae.parameters()).device, split.y
    if y is not None:
        each = y if y.dim() > 1 else y.unique() if label is None else y.new_tensor([label])
        at = torch.arange(n, device=each.device)
        y = each[at * len(each) // n if y.dim() == 1 else at % len(each)]
    with torch.no_grad(), forked(device):
        torch.manual_seed(seed)
        return vae.sample(n, y, mean=mean)


def picture(images: Tensor, split: Split) -> Any:
    """Images as an array, cut to the range that data have: a few stray pixels would else grey all the others."""
    return _numpy(images.clamp(*pixels(torch.stack(split.x.aminmax()))))


def plane(vae: Autoencoder, device: torch.device, y: Tensor | None = None) -> tuple[Any, Any, Any]:
    """Means of p(x|z), of one label y where it takes labels, on a grid over a two-dimensional latent, and the grid."""
    side = 15
    grid = torch.linspace(-2.5, 2.5, side)
    z = torch.cartesian_prod(grid, grid).to(device)
    images = vae.likelihood(z, None if y is None else y.expand(len(z))).mean
    if images.dim() == 4 and images.shape[1] not in (1, 3):  # channels last
        images = images.movedim(-1, 1)
    images = torch.nn.functional.pad(images, (0, 1, 0, 1), value=images.max().item())  # a line between neighbours
    # rows of the mosaic are z2, columns z1
    images = images.reshape(side, side, *images.shape[1:]).transpose(0, 1)
    return _numpy(images), grid.numpy(), grid.numpy()


def _numpy(value: Tensor) -> Any:
    return value.detach().cpu().numpy()
