"""Bounds of all the draws, which these weigh: importance-weighted, Renyi's and chi, thermodynamic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .. import bounds
from ..errors import InputError
from .objective import Objective


class IWAE(Objective, name="iwae"):
    """The importance-weighted bound, log 1/K sum_k w_k.

    Value and gradient are those of Pyro's `RenyiELBO(alpha=0)` at the same seed, for plates that do not subsample.

    Args:
        num_particles: K, how many draws for each datum.
        **shared: what every `Objective` takes.

    Burda, Grosse and Salakhutdinov 2015, eqs. 8 and 14.

    >>> import pvae, torch
    >>> vae = pvae.VAE(pvae.Normal(2), pvae.Bernoulli(pvae.mlp(2, [], 6), (6,)), pvae.MeanField(pvae.mlp(6, [], 4), 2))
    >>> IWAE(50, gradient="dreg").differentiable_loss(vae.model, vae.guide, torch.ones(5, 6)).shape
    torch.Size([])
    """

    power = 1.0

    def bound(self, log_w: Tensor) -> Tensor:
        """Log 1/K sum_k w_k: (B,), nats."""
        return bounds.iwae(log_w)


class Renyi(Objective, name="renyi"):
    """The variational Renyi bound, 1/(1 - alpha) log 1/K sum_k w_k^(1 - alpha).

    Args:
        num_particles: K, how many draws for each datum.
        alpha: any number; 0 is the importance-weighted bound, 1 the ELBO.
        **shared: what every `Objective` takes.

    Li and Turner 2016.
    """

    def __init__(self, num_particles: int = 1, alpha: float = 0.5, **shared: Any) -> None:
        if not math.isfinite(alpha):
            raise InputError(f"alpha: found {alpha}, expected a finite number: 0 is IWAE, 1 the ELBO")
        self.alpha = alpha
        super().__init__(num_particles, **shared)

    @property
    def power(self) -> float:  # noqa: D102
        return 1.0 - self.alpha

    def bound(self, log_w: Tensor) -> Tensor:
        """The bound for each datum: (B,), nats."""
        return bounds.renyi(log_w, self.alpha)


class CIWAE(Objective, name="ciwae"):
    """A combination of the ELBO and the importance-weighted bound, s/K sum_k log w_k + (1 - s) log 1/K sum_k w_k.

    Args:
        num_particles: K, how many draws for each datum.
        share: s, that of the ELBO, 0 to 1 (the paper's beta).
        **shared: what every `Objective` takes.

    Rainforth et al. 2018.
    """

    def __init__(self, num_particles: int = 1, share: float = 0.5, **shared: Any) -> None:
        if not 0 <= share <= 1:
            raise InputError(f"share: found {share}, expected 0 (IWAE) to 1 (ELBO)")
        self.share = share
        super().__init__(num_particles, **shared)

    def bound(self, log_w: Tensor) -> Tensor:
        """Share ELBO + (1 - share) L_K: (B,), nats."""
        return bounds.ciwae(log_w, self.share)


class TVO(Objective, name="tvo"):
    """The thermodynamic bound, sum_p (b_(p+1) - b_p) E_p[log w], E_p the mean of the draws with weights w^b_p.

    A lower Riemann sum of the integral over b from 0 to 1 that is log p(x).

    Args:
        num_particles: K, how many draws for each datum.
        partitions: b, numbers that rise from 0 to 1; 0,1 is the ELBO.
        **shared: what every `Objective` takes.

    Masrani, Le and Wood 2019.
    """

    def __init__(self, num_particles: int = 1, partitions: Sequence[float] = (0.0, 0.1, 1.0), **shared: Any) -> None:
        bounds.check_partitions(partitions)
        self.partitions = partitions
        super().__init__(num_particles, **shared)

    def bound(self, log_w: Tensor) -> Tensor:
        """The lower sum: (B,), nats."""
        return bounds.tvo(log_w, self.partitions)


class Chi(Objective, name="chi"):
    """The guide narrows the gap from the ELBO to the chi upper bound, 1/n log 1/K sum_k w_k^n - 1/K sum_k log w_k.

    The model climbs the importance-weighted bound, which is the value. The gap is of the same draws, so that it is
    never below 0, and 0 where all weights are equal. The estimate of the chi bound alone is not bounded below: a guide
    far from the posterior, whose draws all weigh little, makes it as low as it likes, and fits with fewer draws than
    about exp(KL(q(z|x) || p(z|x))) end there.

    Args:
        num_particles: K, how many draws for each datum, at least 2; without the sandwich more than n / (n - 1).
        order: n, above 1.
        sandwich: whether the guide climbs the ELBO too; false is the bound of the paper alone, which runs away.
        **shared: what every `Objective` takes.

    Raises:
        InputError: an order of 1 or below; too few draws for the estimate to be lowest at the posterior.

    Dieng et al. 2017.
    """

    apart = True

    def __init__(self, num_particles: int = 1, order: float = 2.0, sandwich: bool = True, **shared: Any) -> None:
        if not 1 < order < math.inf:
            raise InputError(f"order: found {order}, expected a finite number above 1")
        # at a guide near the posterior the chi bound's estimate is (order (1 - 1/K) - 1) / 2 times the variance of
        # log w above log p, and the gap is order (1 - 1/K) / 2 times it
        least = 2 if sandwich else math.floor(order / (order - 1) + 1e-9) + 1
        if num_particles < least:
            raise InputError(
                f"particles: found {num_particles}, expected at least {least} for the chi bound of order {order:g}: of"
                " fewer its estimate is not lowest at the posterior"
            )
        self.order, self.sandwich = order, sandwich
        super().__init__(num_particles, **shared)

    def bound(self, log_w: Tensor) -> Tensor:
        """The model's, log 1/K sum_k w_k: (B,), nats."""
        return bounds.iwae(log_w)

    def guide_bound(self, log_w: Tensor) -> Tensor:
        """What the guide climbs: minus the gap, or minus the upper bound, (B,), nats."""
        upper = bounds.cubo(log_w, self.order)
        return bounds.elbo(log_w) - upper if self.sandwich else -upper
