"""Closed forms, in nats: what every estimator of the package is held against.

The linear-Gaussian model p(z) = N(0, I), p(x|z) = N(Wz + m, s2 I): its evidence, posterior, bounds, best fit.
"""

import copy
import math
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from .base import announce
from .errors import InputError

_LOG_2PI = math.log(2 * math.pi)


def gaussian_kl(mean_q: Tensor, scale_q: Tensor, mean_p: Tensor, scale_p: Tensor) -> Tensor:
    """KL(N(mean_q, scale_q^2) || N(mean_p, scale_p^2)) for each element, in nats; shapes broadcast.

    log(scale_p / scale_q) + (scale_q^2 + (mean_q - mean_p)^2) / (2 scale_p^2) - 1/2

    Raises `InputError` unless every scale is above 0.

    >>> gaussian_kl(torch.tensor(1.0), torch.tensor(1.0), torch.tensor(0.0), torch.tensor(1.0)).item()
    0.5
    """
    _require_positive(scale_q, "scale_q")
    _require_positive(scale_p, "scale_p")
    ratio, shift = scale_q / scale_p, (mean_q - mean_p) / scale_p
    return (ratio**2 + shift**2 - 1) / 2 - ratio.log()


def gaussian_kl_full(mean_q: Tensor, cov_q: Tensor, mean_p: Tensor, cov_p: Tensor) -> Tensor:
    """KL(N(mean_q, cov_q) || N(mean_p, cov_p)), in nats, shape (...).

    1/2 [tr(cov_p^-1 cov_q) + d' cov_p^-1 d - k + ln det cov_p - ln det cov_q],  d = mean_q - mean_p

    Means (..., k) and covariances (..., k, k), broadcast. Raises `InputError` where a covariance is not
    symmetric positive definite.

    >>> gaussian_kl_full(torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.eye(2), torch.zeros(2), torch.eye(2))
    tensor([0.5000, 2.0000])
    """
    _cholesky(cov_q, "cov_q")
    shift = (mean_q - mean_p).unsqueeze(-1)
    distance = (cov_q + shift * shift.mT) * torch.cholesky_inverse(_cholesky(cov_p, "cov_p"))
    return (distance.sum((-2, -1)) - shift.shape[-2] + torch.logdet(cov_p) - torch.logdet(cov_q)) / 2


@dataclass(frozen=True, eq=False)
class LinearGaussian:
    """The model p(z) = N(0, I), p(x|z) = N(Wz + m, s2 I), solved exactly.

    `weight` W (D, k), `mean` m (D,), `variance` s2 () above 0. With the posterior precision P = I + W'W / s2,
    p(z|x) = N(P^-1 W'(x - m) / s2, P^-1). Data may come in any dtype; answers have the weight's. Raises
    `InputError` where shapes disagree or the variance is not above 0.
    Source: Tipping & Bishop 1999, "Probabilistic principal component analysis", eqs. 2 to 6.

    >>> model = LinearGaussian(torch.tensor([[1.0], [0.0]]), torch.zeros(2), torch.tensor(1.0))
    >>> model.posterior(torch.tensor([[2.0, 5.0]])).mean
    tensor([[1.]])
    """

    weight: Tensor
    mean: Tensor
    variance: Tensor

    def __post_init__(self) -> None:
        if self.weight.ndim != 2:
            raise InputError(f"weight: found shape {tuple(self.weight.shape)}, expected (D, k)")
        _require_shape(self.mean, (len(self.weight),), "mean")
        _require_shape(self.variance, (), "variance")
        _require_positive(self.variance, "variance")

    @property
    def precision(self) -> Tensor:
        """The posterior precision P = I + W'W / s2, (k, k), the same for every datum."""
        return torch.eye(self.weight.shape[1]).to(self.weight) + self.weight.mT @ self.weight / self.variance

    @property
    def encoder(self) -> Tensor:
        """The map P^-1 W' / s2, (k, D), from x - m to the posterior mean."""
        return torch.linalg.solve(self.precision, self.weight.mT / self.variance)

    def log_prob(self, x: Tensor) -> Tensor:
        """The evidence log N(x; m, WW' + s2 I) of each datum of x (N, D), in nats, (N,).

        -1/2 [D ln(2 pi s2) + ln det P + |x - m - Wz|^2 / s2 + |z|^2],  z the posterior mean: Woodbury's
        identity in k dimensions, written as a sum of squares so that nothing cancels when s2 is small.

        >>> LinearGaussian(torch.zeros(1, 1), torch.zeros(1), torch.tensor(1.0)).log_prob(torch.zeros(1, 1))
        tensor([-0.9189])
        """
        residual = self._centred(x)
        z = residual @ self.encoder.mT
        distance = (residual - z @ self.weight.mT).square().sum(-1) / self.variance + z.square().sum(-1)
        log_det = len(self.weight) * self.variance.log() + torch.logdet(self.precision)
        return -(len(self.weight) * _LOG_2PI + log_det + distance) / 2

    def posterior(self, x: Tensor) -> MultivariateNormal:
        """p(z|x) for data (N, D): batch shape (N,), event shape (k,)."""
        return MultivariateNormal(self._centred(x) @ self.encoder.mT, precision_matrix=self.precision)

    def sample(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Draw n pairs from p(z) p(x|z): z (n, k) and x (n, D)."""
        like = {"generator": generator, "dtype": self.weight.dtype, "device": self.weight.device}
        z, noise = (torch.randn(n, size, **like) for size in reversed(self.weight.shape))
        return z, z @ self.weight.mT + self.mean + self.variance.sqrt() * noise

    def elbo(self, x: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
        """The exact ELBO of the guide q(z|x) = N(mean, covariance) for data x (N, D), in nats, (N,).

        -1/2 [D ln(2 pi s2) + (|x - m - W mean|^2 + tr(W covariance W')) / s2] - KL(q || N(0, I))

        `mean` (N, k); `covariance` (k, k), (N, k, k), or the diagonal of one, (k,). Raises `InputError` where a
        shape is wrong or the covariance not positive definite. Source: Lucas et al. 2019.

        >>> model, x = fit_ppca(torch.randn(50, 4), 2), torch.randn(3, 4)
        >>> q = model.posterior(x)
        >>> torch.allclose(model.elbo(x, q.mean, q.covariance_matrix), model.log_prob(x))
        True
        """
        mean, covariance = self._guide(x, mean, covariance)
        residual = self._centred(x) - mean @ self.weight.mT
        spread = (self.weight.mT @ self.weight * covariance).sum((-2, -1))
        error = (residual.square().sum(-1) + spread) / self.variance
        log_likelihood = -(len(self.weight) * (_LOG_2PI + self.variance.log()) + error) / 2
        prior = mean.new_zeros(mean.shape[1]), torch.eye(mean.shape[1]).to(mean)
        return log_likelihood - gaussian_kl_full(mean, covariance, *prior)

    def best_diagonal(self) -> Tensor:
        """The variances 1 / P_ii, (k,), of the best diagonal guide; its mean is the posterior's."""
        return 1 / self.precision.diagonal()

    def gap(self) -> Tensor:
        """What the best diagonal guide's ELBO lacks of log p(x), in nats, (): the same for every datum.

        1/2 [sum_i ln P_ii - ln det P]: 0 where the columns of W are orthogonal, else above 0.

        >>> LinearGaussian(torch.eye(3, 2), torch.zeros(3), torch.tensor(0.5)).gap()
        tensor(0.)
        """
        return (self.precision.diagonal().log().sum() - torch.logdet(self.precision)) / 2

    def iwae_limit(self, x: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
        """The limit of K (log p(x) - L_K) as K grows, L_K the K-draw importance-weighted bound: (N,).

        1/2 Var_q(w), w = p(z|x) / q(z|x). With d = mean - posterior mean, Q = covariance^-1, M = 2P - Q:
        Var_q(w) + 1 = E_q(w^2) = det P (det Q det M)^-1/2 exp(1/2 d'(Q + Q M^-1 Q) d)

        Arguments and errors as for `elbo`. Infinite where M is not positive definite: so narrow is the guide
        that the bound closes slower than 1/K.
        Source: Domke & Sheldon 2018, "Importance weighting and variational inference", theorem 3.

        >>> model = LinearGaussian(torch.eye(1), torch.zeros(1), torch.tensor(1.0))  # P = 2
        >>> model.iwae_limit(torch.zeros(1, 1), torch.zeros(1, 1), torch.tensor([0.2]))  # Q = 5 > 2 P
        tensor([inf])
        """
        mean, covariance = self._guide(x, mean, covariance)
        shift = (mean - self._centred(x) @ self.encoder.mT).unsqueeze(-1)
        scaled = torch.linalg.solve(covariance, shift)
        m = 2 * self.precision - torch.linalg.inv(covariance)
        root_m, failed = torch.linalg.cholesky_ex(m)
        stretch = (scaled * (shift + torch.cholesky_solve(scaled, root_m))).sum((-2, -1))
        log_dets = 2 * torch.logdet(self.precision) + torch.logdet(covariance) - torch.logdet(m)
        return torch.expm1((log_dets + stretch) / 2).where(failed == 0, math.inf) / 2

    def _centred(self, x: Tensor) -> Tensor:
        """The data less m, (N, D), in the weight's dtype."""
        _require_data(x, len(self.weight))
        return x.to(self.weight.dtype) - self.mean

    def _guide(self, x: Tensor, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
        """A guide's mean (N, k) and covariance (k, k) or (N, k, k), checked, in the weight's dtype."""
        _require_data(x, len(self.weight))
        n, k = len(x), self.weight.shape[1]
        _require_shape(mean, (n, k), "mean")
        full = covariance.diag() if covariance.ndim == 1 else covariance
        _require_shape(full, (n, k, k) if full.ndim == 3 else (k, k), "covariance")
        _cholesky(full, "covariance")
        return mean.to(self.weight.dtype), full.to(self.weight.dtype)


@torch.no_grad()
def linear_gaussian(prior: nn.Module, likelihood: nn.Module) -> LinearGaussian | None:
    """The closed form of the model that two parts make, (D) flattened; None where it has none.

    It has one if the prior is independent normals, and the likelihood normals of one scale about a mean that is affine
    in z. That is looked at in float64, at 64 points: parts of any class may be linear.

    >>> from pvae import Gaussian, MLPDecoder, Normal
    >>> linear_gaussian(Normal(2), Gaussian(MLPDecoder(2, (2, 3), []), (2, 3))).log_prob(torch.zeros(4, 6)).shape
    torch.Size([4])
    >>> linear_gaussian(Normal(2), Gaussian(MLPDecoder(2, (2, 3), [8]), (2, 3)))
    """
    p_z, decode = _normal(copy.deepcopy(prior).double()()), copy.deepcopy(likelihood).double().eval()
    if p_z is None or p_z.loc.dim() != 1:
        return None
    latent, place = len(p_z.loc), {"dtype": p_z.loc.dtype, "device": p_z.loc.device}
    away = 10 * torch.randn(64, latent, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = torch.cat([torch.zeros(1, latent, **place), torch.eye(latent, **place), away.to(**place)])
    p_x = _normal(decode(z))
    if p_x is None or not p_x.scale.max() <= p_x.scale.min() or len(p_x.loc) != len(z):
        return None
    found = p_x.loc.flatten(1)
    if not found.isfinite().all():
        return None
    mean, weight = found[0], (found[1 : 1 + latent] - found[0]).mT
    if not torch.allclose(mean + z @ weight.mT, found, rtol=1e-9, atol=1e-9 * found.abs().max().item()):
        return None
    return LinearGaussian(weight * p_z.scale, mean + weight @ p_z.loc, p_x.scale.flatten()[0].square())


def _normal(found: dist.Distribution) -> dist.Normal | None:
    """The independent normals that a distribution is, if it is."""
    while isinstance(found, dist.Independent):
        found = found.base_dist
    return found if isinstance(found, dist.Normal) else None


def fit_ppca(
    x: Tensor, latent: int, *, rotation: Tensor | None = None, variance: float | None = None
) -> LinearGaussian:
    """The maximum likelihood linear-Gaussian model of data x (N, D), in float64: probabilistic PCA.

    s2 = mean of the eigenvalues beyond the first k,  W = U_k (Lambda_k - s2 I)^1/2 R

    with Lambda, U of the data's covariance (divided by N), k = `latent`, R an orthogonal `rotation` (k, k), or
    else the identity. A fixed `variance` takes the place of s2, and columns whose eigenvalue is not
    above it are 0: the active dimensions are the eigenvalues above `variance`, at most k.
    Raises `InputError` for k of D or more (above D with a fixed variance), fewer than 2 data, data of rank k or
    less (their likelihood has no maximum), a rotation that is none. Source: Tipping & Bishop 1999, eqs. 7, 8.

    >>> fit_ppca(torch.tensor([[2.0, 0.0], [-2.0, 0.0], [0.0, 1.0], [0.0, -1.0]]), 1).variance
    tensor(0.5000, dtype=torch.float64)
    """
    values, vectors, s2 = _spectrum(x, latent, variance)
    weight = vectors[:, :latent] * (values[:latent] - s2).clamp(min=0).sqrt()
    if rotation is not None:
        _require_shape(rotation, (latent, latent), "rotation")
        if not torch.allclose(rotation.mT @ rotation, torch.eye(latent).to(rotation), atol=1e-5):
            raise InputError("rotation: found a matrix that is not orthogonal, expected R'R = I")
        weight = weight @ rotation.to(weight)
    return LinearGaussian(weight, x.double().mean(0), s2)


def ppca_log_likelihood(x: Tensor, latent: int, *, variance: float | None = None) -> Tensor:
    """The mean log p(x) of the model `fit_ppca` finds, in nats for each datum, (), from eigenvalues alone.

    -1/2 [D ln 2 pi + sum_{i<=k} ln lambda_i + (D - k) ln s2 + D]; with a fixed `variance` the general form
    -1/2 [D ln 2 pi + sum_i (ln v_i + lambda_i / v_i)], v_i = max(lambda_i, s2) for i <= k and s2 beyond.

    Arguments and errors as for `fit_ppca`. Source: Tipping & Bishop 1999, eq. 4 at its maximum.

    >>> x = torch.randn(100, 4)
    >>> torch.allclose(ppca_log_likelihood(x, 2), fit_ppca(x, 2).log_prob(x).mean())
    True
    """
    values, _, s2 = _spectrum(x, latent, variance)
    model = torch.cat([values[:latent].clamp(min=s2), s2.expand(len(values) - latent)])
    return -(len(values) * _LOG_2PI + (model.log() + values / model).sum()) / 2


class LinearVAE(nn.Module):
    """The linear VAE as a Pyro program: `model` is a `LinearGaussian`, `guide` can be its exact posterior.

    p(z) = N(0, I), p(x|z) = N(Wz + m, s^2 I), q(z|x) = N(Ax + b, LL') with one L for every x; D is `dim`, k
    is `latent`, `covariance` (the guide's) "diagonal" or "full", and m starts at `mean` (D,), 0 if left out.
    Takes any number of particle dimensions left of the data. The parameters stay on the module, so that any
    number of these live in one process. Raises `InputError` for an unknown covariance and for wrong shapes.
    Source: Lucas et al. 2019, "Don't blame the ELBO!".

    >>> vae = LinearVAE(dim=4, latent=2, covariance="full").set_(fit_ppca(torch.randn(50, 4), 2))
    >>> pyro.poutine.trace(vae.guide).get_trace(torch.randn(3, 4)).nodes["z"]["value"].shape
    torch.Size([3, 2])
    """

    def __init__(self, dim: int, latent: int, *, covariance: str = "diagonal", mean: Tensor | None = None) -> None:
        super().__init__()
        if covariance not in ("diagonal", "full"):
            raise InputError(f"covariance: found {covariance!r}, expected 'diagonal' or 'full'")
        mean = torch.zeros(dim) if mean is None else mean.detach().clone()
        _require_shape(mean, (dim,), "mean")
        self.weight = nn.Parameter(torch.randn(dim, latent) / math.sqrt(dim))
        self.mean = nn.Parameter(mean.to(self.weight))
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.encoder = nn.Linear(dim, latent)
        self.guide_log_scales = nn.Parameter(torch.zeros(latent))
        # L is this, strictly below the diagonal, and the scales on it; a diagonal guide has nothing below.
        self.guide_lower = nn.Parameter(torch.zeros(latent, latent)) if covariance == "full" else None

    def model(self, x: Tensor) -> None:
        """p(z) p(x|z) at the sites "z" (k,) and "x" (D,), for data x (N, D) in the plate "data"."""
        announce(self)
        _require_data(x, len(self.weight))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.weight.new_zeros(self.weight.shape[1]), 1.0).to_event(1))
            location = z @ self.weight.mT + self.mean
            pyro.sample("x", dist.Normal(location, self.log_scale.exp()).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """q(z|x) at the site "z" (k,), for data x (N, D) in the plate "data"."""
        announce(self)
        _require_data(x, len(self.weight))
        location, scales = self.encoder(x), self.guide_log_scales.exp()
        if self.guide_lower is None:
            q = dist.Normal(location, scales).to_event(1)
        else:
            q = dist.MultivariateNormal(location, scale_tril=self.guide_lower.tril(-1) + scales.diag())
        with pyro.plate("data", len(x)):
            pyro.sample("z", q)

    def exact(self) -> LinearGaussian:
        """The closed form of the model, from a copy of its present parameters."""
        parameters = (self.weight, self.mean, (2 * self.log_scale).exp())
        return LinearGaussian(*(value.detach().clone() for value in parameters))

    @torch.no_grad()
    def set_(self, exact: LinearGaussian) -> "LinearVAE":
        """Set the model to `exact` and the guide to its optimum, in place; returns self.

        A full guide becomes the exact posterior, a diagonal one has its mean and `exact.best_diagonal()`.
        Raises `InputError` where the shapes disagree.
        """
        _require_shape(exact.weight, tuple(self.weight.shape), "weight")
        self.weight.copy_(exact.weight)
        self.mean.copy_(exact.mean)
        self.log_scale.copy_(exact.variance.log() / 2)
        self.encoder.weight.copy_(exact.encoder)
        self.encoder.bias.copy_(-exact.encoder @ exact.mean)
        if self.guide_lower is None:
            self.guide_log_scales.copy_(exact.best_diagonal().log() / 2)
        else:
            root = torch.linalg.cholesky(torch.linalg.inv(exact.precision))
            self.guide_log_scales.copy_(root.diagonal().log())
            self.guide_lower.copy_(root.tril(-1))
        return self


def _spectrum(x: Tensor, latent: int, variance: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvalues (D,), descending, and eigenvectors (D, D) of the covariance of x, and s2 (), in float64."""
    if x.ndim != 2 or len(x) < 2:
        raise InputError(f"x: found shape {tuple(x.shape)}, expected (N, D) with N of 2 or more")
    if not x.isfinite().all():
        raise InputError("x: found NaN or infinity, expected finite values: leave those data out")
    most = x.shape[1] - (variance is None)
    if not 1 <= latent <= most:
        raise InputError(f"latent: found {latent}, expected 1 to {most} for data of {x.shape[1]} dimensions")
    centred = x.double() - x.double().mean(0)
    values, vectors = torch.linalg.eigh(-centred.mT @ centred / len(x))  # ascending, so that lambda descends
    values = (-values).clamp(min=0)
    s2 = values[latent:].mean() if variance is None else values.new_tensor(variance)
    # Below this an eigenvalue is rounding error, and the likelihood grows without end as s2 falls.
    if variance is None and s2 <= len(values) * torch.finfo(values.dtype).eps * values[0]:
        raise InputError(
            f"x: found no variance beyond {latent} dimensions, expected some: give more data, or fewer latents"
        )
    _require_positive(s2, "variance")
    return values, vectors, s2


def _cholesky(matrix: Tensor, name: str) -> Tensor:
    if matrix.dim() < 2 or matrix.shape[-1] != matrix.shape[-2]:
        raise InputError(f"{name}: found shape {tuple(matrix.shape)}, expected (..., k, k)")
    root, failed = torch.linalg.cholesky_ex(matrix)
    # Cholesky reads one triangle only: without this a factor passed for its covariance would go unseen.
    symmetric = (matrix - matrix.mT).abs() <= 1e-4 * matrix.abs().amax((-2, -1), keepdim=True)
    if failed.any() or not (symmetric & matrix.isfinite()).all():
        raise InputError(f"{name}: found a matrix that is not symmetric positive definite, expected a covariance")
    return root


def _require_shape(value: Tensor, shape: tuple, name: str) -> None:
    if tuple(value.shape) != shape:
        raise InputError(f"{name}: found shape {tuple(value.shape)}, expected {shape}")


def _require_data(x: Tensor, dim: int) -> None:
    if x.ndim != 2 or x.shape[1] != dim:
        raise InputError(f"x: found shape {tuple(x.shape)}, expected (N, {dim})")


def _require_positive(value: Tensor, name: str) -> None:
    if not bool((value > 0).all()):
        raise InputError(f"{name}: found {value.min().item():.4g}, expected above 0")
