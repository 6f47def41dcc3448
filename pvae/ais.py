"""Annealed importance sampling with Hamiltonian transitions, and bidirectional Monte Carlo: log p(x) from both sides.

All chains of many data move together. The inner transition is a function of tensors alone: it reads no values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .bounds import iwae
from .errors import InputError, nearest, whole_number
from .frozen import frozen
from .means import mean_and_se, with_error
from .noise import Noise, block_size
from .programs import Density, Program, State, check_named, check_weights, given, simulate
from .replay.turns import taken_in_turn

Progress = Callable[[int, int], None]
_DATA, _PILOT, _FORWARD, _REVERSE = range(4)  # each has random numbers of its own
PILOT_CHAINS = 4
"""Chains of the run that finds the step sizes."""
PILOT_TRANSITIONS = 100
"""Transitions of that run, at least; or one at every tenth temperature."""
PILOT_WARMUP = 20
"""Transitions at its first temperature before it moves on."""


@dataclass(frozen=True)
class Annealing:
    """How to anneal from p(z) to p(x, z); the defaults are those of Wu et al. 2017 but for the temperatures.

    Args:
        temperatures: T; there are T - 1 distributions between the ends. The bias falls with it, the time grows.
        chains: K, of each datum.
        leapfrog: steps of a Hamiltonian transition; one gradient each.
        schedule: of the temperatures: "sigmoid", slow at both ends, or "linear".
        acceptance: that the step sizes are to have.

    Raises:
        InputError: a number out of range, an unknown schedule.

    >>> Annealing(temperatures=4, schedule="linear").betas
    tensor([0.0000, 0.2500, 0.5000, 0.7500, 1.0000], dtype=torch.float64)
    """

    temperatures: int = 1000
    chains: int = 16
    leapfrog: int = 10
    schedule: Literal["sigmoid", "linear"] = "sigmoid"
    acceptance: float = 0.65

    def __post_init__(self) -> None:
        whole_number(1, temperatures=self.temperatures, chains=self.chains, leapfrog=self.leapfrog)
        if self.schedule not in (known := ["sigmoid", "linear"]):
            raise InputError(f"schedule: unknown '{self.schedule}': {nearest(self.schedule, known)}")
        if not 0 < self.acceptance < 1:
            raise InputError(f"acceptance: found {self.acceptance}, expected between 0 and 1")

    @property
    def betas(self) -> Tensor:
        """The temperatures from 0 to 1, (T + 1,), float64.

        Sigmoid: s(4 (2 t / T - 1)), moved and scaled to start at 0 and end at 1 (Grosse et al. 2015).
        """
        even = torch.linspace(0, 1, self.temperatures + 1, dtype=torch.float64)
        if self.schedule == "linear":
            return even
        curve = torch.sigmoid(4 * (2 * even - 1))
        return (curve - curve[0]) / (curve[-1] - curve[0])


@dataclass(frozen=True, repr=False)
class Annealed:
    """What `ais` found for each of N data; on the CPU in float64, nats."""

    log_w: Tensor
    """(K, N): each chain's log-weight. The mean of the weights is an unbiased estimate of p(x)."""
    acceptance: Tensor
    """(N,): the mean probability of acceptance over transitions and chains; NaN where there are none (T = 1)."""

    @property
    def log_p(self) -> Tensor:
        """(N,): log 1/K sum_k w_k, in expectation at most log p(x)."""
        return iwae(self.log_w)

    @property
    def ess(self) -> Tensor:
        """(N,): effective sample size of the K weights, 1 / sum w^2 for weights that sum to one."""
        return 1 / self.log_w.softmax(0).square().sum(0)

    @property
    def se(self) -> Tensor:
        """(N,): standard error of `log_p` from the spread of the chains' weights (delta method); NaN where K = 1.

        Meaningless where `ess` is near 1, and for chains that start at the same point, as the reverse ones do.
        """
        return ((len(self.log_w) / self.ess - 1).clamp(min=0) / (len(self.log_w) - 1)).sqrt()

    def __repr__(self) -> str:
        chains = f"{len(self.log_w)} chains, acceptance {self.acceptance.mean():.2f}, ess {self.ess.mean():.1f}"
        return f"log p(x) {with_error(mean_and_se(self.log_p))}; {len(self.acceptance)} data, {chains}"


@dataclass(frozen=True, repr=False)
class Bidirectional:
    """What `bdmc` found for each of N simulated data; on the CPU in float64, nats."""

    x: Tensor
    """(N, *shape): the data, where they were simulated"""
    forward: Annealed
    """from the base to the posterior"""
    reverse: Annealed
    """from the exact draw of the posterior back: the mean of the weights is an unbiased estimate of 1 / p(x)"""

    @property
    def lower(self) -> Tensor:
        """(N,): in expectation at most log p(x)."""
        return self.forward.log_p

    @property
    def upper(self) -> Tensor:
        """(N,): in expectation at least log p(x)."""
        return -self.reverse.log_p

    def __repr__(self) -> str:
        low, high, gap = self.lower.mean(), self.upper.mean(), with_error(mean_and_se(self.upper - self.lower))
        return f"log p(x) in [{low:.3f}, {high:.3f}], gap {gap}; {len(self.lower)} simulated data"


@torch.inference_mode(False)
@frozen()
@taken_in_turn
def ais(
    model: Program,
    x: Tensor,
    y: Tensor | None = None,
    *,
    guide: Program | None = None,
    annealing: Annealing | None = None,
    plate: str | None = "",
    seed: int = 0,
    chunk: int | None = None,
    progress: Progress | None = None,
) -> Annealed:
    """Estimate log p(x) by annealed importance sampling, in expectation from below.

    log w = sum_t (b_t - b_(t-1)) log [p(x, z_(t-1)) / p(z_(t-1))], z_t ~ T_t(z_(t-1)), z_0 ~ p(z),
    T_t Hamiltonian Monte Carlo on p(z) p(x|z)^b_t

    Step sizes are each datum's and each temperature's own, found by a short run of a few chains of their own and then
    held fast. So no step depends on the chain that takes it, every transition leaves its distribution as it is, and
    the weights are unbiased; step sizes adapted along the chain itself, as is usual, are not quite.
    A warning tells of latents that start closer to an end of their support than their type tells apart.

    Args:
        model: p(x, z), a Pyro program of x, or of (x, y) if there are labels; its latents continuous.
        x: (N, *shape), as the likelihood scores them.
        y: labels (N,) or None.
        guide: q(z|x), to start from in place of p(z).
        annealing: temperatures, chains, steps; `Annealing()` if not given.
        plate: the plate of data, needed only where several hold every site; None for one estimate of log p of all
            data, N = 1, as where they share latents.
        seed: of the draws; the generators that others see are left as they are.
        chunk: how many pairs of a chain and a datum move at once (at least a cell of 32 data): it bounds the memory;
            by default what is fast, 2,048 on a CPU and 16,384 on CUDA. The numbers depend on it by rounding alone.
        progress: called after every temperature with how many are done, and of how many.

    Raises:
        InputError: no data; as `pvae.programs.Density` refuses programs and data, and `pvae.evaluate.evaluate`
            weights.

    Neal 2001; Wu, Burda, Salakhutdinov and Grosse 2017 for decoder-based models.

    >>> from pvae.exact import LinearVAE
    >>> vae, x = LinearVAE(4, 2), torch.randn(3, 4)
    >>> found = ais(vae.model, x, annealing=Annealing(temperatures=100, chains=8))
    >>> bool((found.log_p - vae.exact().log_prob(x)).abs().max() < 1), found.log_w.shape
    (True, torch.Size([8, 3]))
    """
    job = _Job(model, guide, annealing or Annealing(), seed, plate)
    return _join([job.forward(block, job.step_sizes(block)) for block in job.blocks(x, y, chunk, progress)])


@torch.inference_mode(False)
@frozen()
@taken_in_turn
def bdmc(
    model: Program,
    x: Tensor,
    y: Tensor | None = None,
    *,
    guide: Program | None = None,
    annealing: Annealing | None = None,
    plate: str = "",
    seed: int = 0,
    chunk: int | None = None,
    progress: Progress | None = None,
) -> Bidirectional:
    """Sandwich log p(x) of data simulated from the model, by annealing from both ends.

    Forward is `ais`. Reverse starts at the z that the datum was simulated from, an exact draw of p(z|x), and runs the
    same transitions in reverse order: its weights estimate 1 / p(x) without bias, so minus their log is in expectation
    at least log p(x). Both bounds tight means that annealing as hard as this can be trusted on data like the model's.

    Args:
        model: as for `ais`; its one observed site is simulated, in the place of x.
        x: (N, *shape): its shape, dtype and device are those of the data to simulate; its values are not used.
        y: labels (N,) or None.
        guide: as for `ais`; likewise the arguments below.
        annealing: the same in both directions.
        plate: as for `ais`.
        seed: of data and chains.
        chunk: how many pairs of a chain and a datum move at once.
        progress: called after every temperature of either direction.

    Raises:
        InputError: as for `ais`; observed sites other than one; a factor, which simulating leaves out.

    Grosse, Ghahramani and Adams 2015.

    >>> from pvae.exact import LinearVAE
    >>> vae = LinearVAE(4, 2)
    >>> found = bdmc(vae.model, torch.zeros(3, 4), annealing=Annealing(temperatures=100, chains=8))
    >>> log_p = vae.exact().log_prob(found.x)
    >>> bool((found.lower - log_p).abs().max() < 1), bool((found.upper - log_p).abs().max() < 1)
    (True, True)
    """
    check_named(plate)
    job = _Job(model, guide, annealing or Annealing(), seed, plate)
    data, forward, reverse = [], [], []
    for block in job.blocks(x, y, chunk, progress, directions=2):
        drawn, cells = simulate(model, *block.data, noise=block.noise(seed, _DATA))
        block = block._replace(data=(drawn, *block.data[1:]))
        steps = job.step_sizes(block)
        forward.append(job.forward(block, steps))
        density = job.density(block, job.annealing.chains)
        exact = torch.cat([density.pack(sites, particles=1) for sites in cells], 1)
        start = exact.expand(job.annealing.chains, -1, -1)
        reverse.append(job.anneal(density, start, steps.flip(0), block, _REVERSE))
        data.append(drawn)
    return Bidirectional(torch.cat(data), _join(forward), _join(reverse))


def transition(
    density: Callable[[Tensor], State],
    state: State,
    beta: Tensor,
    step: Tensor,
    momentum: Tensor,
    log_uniform: Tensor,
    leapfrog: int,
) -> tuple[State, Tensor]:
    """One transition of Hamiltonian Monte Carlo: the new state, and the probability (K, B) that it was accepted with.

    Args:
        density: from points (K, B, d) to their state; it is called once for each leapfrog step.
        state: where the chains are.
        beta: (), the temperature: the target is exp(base + beta ratio).
        step: (B,) or (K, B), the step size.
        momentum: (K, B, d), standard normal.
        log_uniform: (K, B), the log of uniform numbers.
        leapfrog: how many steps.

    A function of tensors alone, which reads none of their values. Neal 2011, section 5.3.2.

    >>> def density(u):  # a standard normal at any temperature
    ...     none = torch.zeros_like(u)
    ...     return State(u, -u.square().sum(-1) / 2, none.sum(-1), -u, none)
    >>> start, p = density(torch.zeros(1, 2, 3)), torch.ones(1, 2, 3)
    >>> beta, step, log_uniform = torch.tensor(0.5), torch.full((2,), 0.01), torch.full((1, 2), -1.0)
    >>> end, accepted = transition(density, start, beta, step, p, log_uniform, leapfrog=10)
    >>> torch.allclose(end.u, torch.full((1, 2, 3), 0.1).sin(), atol=1e-5), accepted
    (True, tensor([[1.0000, 1.0000]]))
    """
    step = step.unsqueeze(-1)
    end, p = state, momentum + step / 2 * state.grad(beta)
    for left in reversed(range(leapfrog)):
        end = density(end.u + step * p)
        p = p + (step if left else step / 2) * end.grad(beta)
    kinetic = (momentum.square() - p.square()).sum(-1) / 2
    change = end.log_density(beta) - state.log_density(beta) + kinetic
    accepted = log_uniform < change  # false where the trajectory has diverged
    chosen = [
        torch.where(accepted.unsqueeze(-1) if new.dim() == 3 else accepted, new, old)
        for new, old in zip(end, state, strict=True)
    ]
    return State(*chosen), change.clamp(max=0).exp().nan_to_num(0.0)


class _Block(NamedTuple):
    """Data that move together, and who is told of it."""

    data: tuple[Tensor, ...]
    first: int
    tick: Callable[[], None]
    whole: bool = False
    """Whether they have one weight."""

    def noise(self, seed: int, purpose: int) -> Noise:
        return Noise((seed, purpose), self.first, 1 if self.whole else len(self.data[0]), self.data[0].device)


@dataclass(frozen=True)
class _Job:
    model: Program
    guide: Program | None
    annealing: Annealing
    seed: int
    plate: str | None

    def blocks(
        self, x: Tensor, y: Tensor | None, chunk: int | None, progress: Progress | None, directions: int = 1
    ) -> Iterator[_Block]:
        """The data that move together, in turn."""
        whole_number(0, seed=self.seed)
        whole_number(1, chunk=1 if chunk is None else chunk)
        data, together = given("ais", x, y), self.plate is None
        size = len(x) if together else block_size(x.device, self.annealing.chains, chunk)
        done, total = count(1), directions * self.annealing.temperatures * math.ceil(len(x) / size)

        def tick() -> None:
            if progress is not None:
                progress(next(done), total)

        for start in range(0, len(x), size):
            yield _Block(tuple(part[start : start + size] for part in data), start, tick, together)

    def density(self, block: _Block, particles: int) -> Density:
        return Density(
            self.model, block.data, particles=particles, guide=self.guide, plate=self.plate, first=block.first
        )

    def forward(self, block: _Block, steps: Tensor) -> Annealed:
        density = self.density(block, self.annealing.chains)
        start = density.draw(block.noise(self.seed, _FORWARD))
        return self.anneal(density, start, steps, block, _FORWARD)

    def anneal(self, density: Density, u: Tensor, steps: Tensor, block: _Block, direction: int) -> Annealed:
        """Run the chains from u (K, B, d), up the temperatures or down; `steps` (T + 1, B) are in that order."""
        order = self.annealing.betas if direction == _FORWARD else self.annealing.betas.flip(0)
        betas, noise = order.to(u.device), block.noise(self.seed, direction)
        moves = betas.diff()
        state = density(u)
        log_w = torch.zeros(u.shape[:2], dtype=torch.float64, device=u.device)
        accepted = torch.zeros_like(log_w)
        for t in range(len(moves)):
            log_w += moves[t] * state.ratio.double()
            if t + 1 < len(moves):  # the last distribution is only weighed
                state, probability = self._move(density, state, betas[t + 1], steps[t + 1], noise)
                accepted += probability
            block.tick()
        pair = self.model, self.guide
        named = {"nesting": density.nesting, "plate": self.plate, "first": block.first}
        check_weights("ais", {"weight": log_w}, pair, block.data, **named)
        return Annealed(log_w.cpu(), (accepted.mean(0) / (len(moves) - 1)).cpu())

    def step_sizes(self, block: _Block) -> Tensor:
        """The step size of every temperature and datum, (T + 1, B), from chains run for nothing else."""
        density = self.density(block, PILOT_CHAINS)
        noise = block.noise(self.seed, _PILOT)
        state = density(density.draw(noise))
        inner = self.annealing.betas[1:-1].to(state.u)
        if not len(inner):
            return state.u.new_zeros(2, state.u.shape[1])
        count = max(PILOT_TRANSITIONS, len(inner) // 10)
        visited = torch.linspace(0, len(inner) - 1, count).round().long()
        log_step = state.u.new_full((state.u.shape[1],), math.log(state.u.shape[-1] ** -0.25))
        found = []
        for t in [0] * PILOT_WARMUP + visited.tolist():
            state, probability = self._move(density, state, inner[t], log_step.exp(), noise)
            log_step = log_step + 0.5 * (probability.mean(0).to(log_step) - self.annealing.acceptance)
            found.append(log_step)
        # Each temperature has the mean over its visits, or what the next one visited has.
        total = torch.stack([torch.zeros_like(log_step), *found[PILOT_WARMUP:]]).cumsum(0)
        each = torch.arange(len(inner))
        first = torch.searchsorted(visited, each)
        end = torch.searchsorted(visited, each, right=True).maximum(first + 1)
        inside = ((total[end] - total[first]) / (end - first).to(total).unsqueeze(1)).exp()
        return torch.cat([inside[:1], inside, inside[-1:]])

    def _move(self, density: Density, state: State, beta: Tensor, step: Tensor, noise: Noise) -> tuple[State, Tensor]:
        momentum, log_uniform = noise.normal(state.u), noise.uniform(state.base).log()
        return transition(density, state, beta.to(state.u.dtype), step, momentum, log_uniform, self.annealing.leapfrog)


def _join(parts: list[Annealed]) -> Annealed:
    return Annealed(torch.cat([part.log_w for part in parts], 1), torch.cat([part.acceptance for part in parts]))
