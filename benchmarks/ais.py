"""Time of `pvae.ais.ais` on MNIST, and of one leapfrog step against the bare matrix products that it needs.

python -m benchmarks.ais --data-dir data --temperatures 1000
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from time import perf_counter
from typing import Any

import torch

import pvae
from pvae.ais import Annealing, ais
from pvae.evaluate import evaluate
from pvae.means import mean_and_se
from pvae.noise import block_size
from pvae.programs import Density

from . import common

SEED = 0
NETWORK = "B"


def main() -> int:
    """Train a network for a while, anneal, and take the time."""
    options = _options()
    torch.set_num_threads(options.threads)
    torch.manual_seed(SEED)
    device = common.choose_device(options.device)
    x, data = common.mnist(options.data_dir, options.images)
    x, vae = x.to(device), common.vae(common.NETWORKS[NETWORK]).to(device)
    _train(vae, x, options.train)
    annealing = Annealing(options.temperatures, options.chains, options.leapfrog)
    ais(vae.model, x[:2], annealing=Annealing(2, options.chains, 1))
    start = perf_counter()
    found = ais(vae.model, x, annealing=annealing, seed=SEED, chunk=options.chunk)
    seconds = perf_counter() - start
    bound = evaluate(vae.model, vae.guide, x, particles=[options.particles], seed=SEED)
    record = {
        "environment": common.environment(common.device_record(device)),
        "network": str(common.NETWORKS[NETWORK]),
        "data": data,
        "images": len(x),
        "train_steps": options.train,
        "annealing": vars(annealing),
        "chunk": options.chunk,
        "seconds": seconds,
        "log_p": mean_and_se(found.log_p),
        "acceptance": found.acceptance.mean().item(),
        "ess": found.ess.mean().item(),
        "iw": {"particles": options.particles, **mean_and_se(bound.iw[options.particles])},
        **_step_times(vae, x[: block_size(x.device, options.chains, options.chunk)], options.chains),
        "load_after": common.load(),
    }
    print(_report(record))
    print(f"\nwritten to {common.save('ais', record, options.out)}")
    return 0


def _options() -> argparse.Namespace:
    parser = common.parser("ais", __doc__, threads=True)
    parser.add_argument("--data-dir", default=common.DATA)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--temperatures", type=int, default=1000)
    parser.add_argument("--chains", type=int, default=16)
    parser.add_argument("--leapfrog", type=int, default=10)
    parser.add_argument("--chunk", type=int, help="pairs of a chain and a datum at once")
    parser.add_argument(
        "--train", type=int, default=2000, metavar="STEPS", help="of the network, before it is annealed"
    )
    parser.add_argument("--particles", type=int, default=1000, metavar="K", help="of the bound to compare with")
    return parser.parse_args()


def _train(vae: pvae.VAE, x: torch.Tensor, steps: int) -> None:
    """Fit the network to the images themselves: the posteriors are to be far from the prior, no more."""
    vae.initialize(x)
    objective, optimizer = pvae.ELBO(), torch.optim.Adam(vae.parameters(), lr=1e-3)
    order = torch.Generator().manual_seed(SEED)
    for _ in range(steps):
        batch = x[torch.randint(len(x), (100,), generator=order).to(x.device)]
        optimizer.zero_grad()
        objective.differentiable_loss(vae.model, vae.guide, batch).backward()
        optimizer.step()


def _step_times(vae: pvae.VAE, x: torch.Tensor, chains: int) -> dict[str, float]:
    """Milliseconds of one state (densities and gradients), and of the products forth and back alone."""
    density = Density(vae.model, (x,), particles=chains)
    u = torch.randn(chains, len(x), density.sizes[0], device=x.device)
    weights = [p.detach().T.contiguous() for p in vae.likelihood.parameters() if p.dim() == 2]

    def products() -> None:
        value = u.flatten(0, 1)
        for weight in weights:
            value = value @ weight
        for weight in reversed(weights):
            value = value @ weight.T

    return {
        "rows": chains * len(x),
        "state_ms": 1000 * _seconds(lambda: density(u), x.device),
        "products_ms": 1000 * _seconds(products, x.device),
    }


def _seconds(run: Callable[[], Any], device: torch.device, repeat: int = 20) -> float:
    """The median time of a call."""
    times = []
    for _ in range(repeat):
        start = perf_counter()
        run()
        common.wait(device)
        times.append(perf_counter() - start)
    return sorted(times)[repeat // 2]


def _report(record: dict[str, Any]) -> str:
    annealing, bound = record["annealing"], record["iw"]
    rows, state, products = record["rows"], record["state_ms"], record["products_ms"]
    steps = annealing["temperatures"] * annealing["leapfrog"]
    return "\n".join(
        [
            f"{record['network']}, {record['images']} images, {record['data']}",
            f"{annealing['chains']} chains, {steps} leapfrog steps: {record['seconds']:.1f} s",
            f"a state of {rows} rows {state:.2f} ms, bare products {products:.2f} ms: {state / products:.2f}",
            f"log p {record['log_p']['mean']:.2f}, L_{bound['particles']} {bound['mean']:.2f}, acceptance"
            f" {record['acceptance']:.2f}, ess {record['ess']:.1f}",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
