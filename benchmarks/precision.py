"""The error of a step's loss and gradient under each precision, against float64 on the same random numbers.

python -m benchmarks.precision --networks A,B,C
"""

from __future__ import annotations

import sys
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

import pvae
from pvae import distributions
from pvae.data import binarize

from . import common
from .common import NETWORKS, Network

PRECISIONS = {"cpu": ("float32", "bf16"), "cuda": ("float32", "tf32", "bf16")}
STEPS = 300
"""Of training, before the error is looked at: at the start networks are too simple to be wrong."""


def main() -> int:
    """Run it."""
    parser = common.parser("precision", __doc__)
    parser.add_argument("--networks", type=common.some_of(NETWORKS), default=["A", "B"])
    parser.add_argument("--steps", type=int, default=STEPS, help="of training, before")
    options = parser.parse_args()
    device = common.choose_device(options.device)
    record: dict[str, Any] = {"environment": common.environment(common.device_record(device)), "networks": {}}
    for name in options.networks:
        record["networks"][name] = found = _errors(NETWORKS[name], device, options.steps)
        rows = [[precision, *(f"{value:.1e}" for value in errors.values())] for precision, errors in found.items()]
        print(f"\n{name}: {NETWORKS[name]}\n\n{common.table(['precision', 'loss', 'gradient'], rows)}")
        print(f"\nwritten to {common.save('precision', record, options.out)}", flush=True)
    return 0


def _errors(network: Network, device: str, steps: int) -> dict[str, dict[str, float]]:
    """Relative errors of the loss, and of the gradient as ||g - g64|| / ||g64||, by precision."""
    torch.manual_seed(0)
    vae = common.vae(network).to(device)
    objective = common.objective(network)
    data = torch.from_numpy(common.images(10_000)).to(device)
    rows = torch.randint(len(data), (steps, network.batch), device=device)
    common.take(common.svi(vae, objective), rows, data)
    x = binarize(data[rows[0]], "dynamic")
    shape = (
        (network.batch, network.latent) if network.particles == 1 else (network.particles, *x.shape[:1], network.latent)
    )
    noise = torch.randn(shape, device=device)
    with patch.object(distributions.DiagonalNormal, "rsample", lambda q, *_: q.loc + q.scale * noise.to(q.loc)):
        right = _gradient(vae.double(), objective, x.double(), "float32")
        vae.float()
        found = {precision: _gradient(vae, objective, x, precision) for precision in PRECISIONS[device]}
    return {
        precision: {
            "loss": abs(loss / right[0] - 1),
            "gradient": ((gradient - right[1]).norm() / right[1].norm()).item(),
        }
        for precision, (loss, gradient) in found.items()
    }


class _Seen(torch.optim.SGD):
    """Takes no step; keeps the gradient that it is given."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        self.gradient = torch.cat([gradient.double().flatten() for gradient in gradients])


def _gradient(vae: pvae.VAE, objective: Any, x: Tensor, precision: str) -> tuple[float, Tensor]:
    optimizer = _Seen(vae.parameters())
    svi = pvae.SVI(vae.model, vae.guide, optimizer, objective, precision=precision, compile="off")
    return float(svi.step(x)), optimizer.gradient


if __name__ == "__main__":
    sys.exit(main())
