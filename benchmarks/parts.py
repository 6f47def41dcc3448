"""What parts are worth: fits that differ in one part, compared by `pvae.compare`; Frey Faces; a VampPrior's step.

python -m benchmarks.parts --data-dir data --frey freyfaces.npz
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

import pvae
from benchmarks import common

MNIST = "--data mnist --latent 10 --encoder.hidden 300 --decoder.hidden 300 --epochs 40 --eval-particles 1,10"
ARMS = {
    "normal": "",
    "vamp": "--prior vamp --prior.components 500",
    "iaf": "--guide iaf",
    "label": "--condition label",
}
FREY = "--data {frey} --latent 20 --epochs 200 --eval-particles 1,10,200"
LEVELS = {
    "gaussian": "--likelihood gaussian --likelihood.scale shared --dequantize uniform",
    "gaussian, scale by the decoder": "--likelihood gaussian --likelihood.scale decoder --dequantize uniform",
    "discretized logistic": "--likelihood discretized_logistic",
    "discretized logistic, scale by the decoder": "--likelihood discretized_logistic --likelihood.scale decoder",
}


def command(module: str, options: str, threads: int) -> None:
    """Run one of the package's commands in a process of its own, bound to as many processors as threads."""
    subprocess.run(
        [sys.executable, "-m", f"pvae.{module}", *options.split()],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        preexec_fn=lambda: os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads]),
    )


def arms(data_dir: str, folder: str, threads: int, particles: str) -> dict[str, Any]:
    """Fit MNIST with one part changed at a time; test bounds, and differences from the first paired by datum."""
    seconds = {}
    for name, options in ARMS.items():
        began = time.perf_counter()
        command("fit", f"{MNIST} --data-dir {data_dir} {options} --out {folder}/{name}", threads)
        seconds[name] = time.perf_counter() - began
    runs = " ".join(f"{folder}/{name}" for name in ARMS)
    command("compare", f"{runs} --particles {particles} --out {folder}/compared.json", threads)
    compared = json.loads(Path(folder, "compared.json").read_text())
    return {"options": MNIST, "arms": ARMS, "seconds": seconds, "runs": compared["runs"], "paired": compared["paired"]}


def frey(path: str, folder: str, threads: int) -> dict[str, Any]:
    """Fit Frey Faces under likelihoods of levels and of dequantized pixels: bits a dimension."""
    found = {}
    for i, (name, options) in enumerate(LEVELS.items()):
        command("fit", f"{FREY.format(frey=path)} {options} --out {folder}/frey{i}", threads)
        summary = json.loads(Path(folder, f"frey{i}", "summary.json").read_text())
        found[name] = {"options": options, "test": summary["test"]}
    return {"options": FREY.format(frey="freyfaces.npz"), "likelihoods": found}


def step(device: str, mode: str, rounds: int = 7, steps: int = 50) -> dict[str, Any]:
    """A step of batch 256 with a VampPrior of 500 components over one with the standard normal, in turn."""
    priors = {"normal": pvae.Normal(40), "vamp": pvae.priors.Vamp(40, components=500)}
    made = {name: _svi(prior, device, mode) for name, prior in priors.items()}
    data = torch.from_numpy(common.images(10_000)).to(device)
    rows = torch.randint(len(data), (steps, 256), device=device)

    def take(svi: pvae.SVI) -> float:
        common.wait(device)
        began = time.perf_counter()
        common.take(svi, rows, data)
        common.wait(device)
        return (time.perf_counter() - began) / steps

    times: dict[str, list[float]] = {name: [] for name in made}
    for turn in range(rounds + 1):
        for name, svi in made.items():
            seconds = take(svi)
            if turn > 0:  # in the first it is built
                times[name].append(seconds)
    medians = {name: median(each) for name, each in times.items()}
    ratio = medians["vamp"] / medians["normal"]
    return {"microseconds": {name: 1e6 * value for name, value in medians.items()}, "ratio": ratio}


def _svi(prior: pvae.Prior, device: str, mode: str) -> pvae.SVI:
    """Tomczak and Welling's sizes, with plain layers: 784-300-300-40."""
    torch.manual_seed(0)
    vae = pvae.VAE(
        prior,
        pvae.Bernoulli(pvae.MLPDecoder(40, (784,), [300, 300]), (784,)),
        pvae.MeanField(pvae.MLPEncoder((784,), 80, [300, 300]), 40),
    ).to(device)
    return common.svi(vae, pvae.ELBO(1), compile=mode)


def main() -> None:
    """The command."""
    parser = common.parser("parts", __doc__, threads=True)
    parser.set_defaults(threads=2)
    parser.add_argument("--data-dir", default=common.DATA, help="where MNIST lies")
    parser.add_argument("--frey", help="Frey Faces as an .npz; left out if not given")
    parser.add_argument("--particles", default="1,10,500", help="every K of the comparison")
    parser.add_argument("--step-only", action="store_true")
    parser.add_argument("--mode", choices=("off", "graph", "full"), default="full", help="of the step")
    args = parser.parse_args()
    device = common.choose_device(args.device)
    torch.set_num_threads(args.threads)
    record: dict[str, Any] = {
        "environment": common.environment(common.device_record(device)),
        "step": step(device, args.mode),
    }
    print(f"a step with a VampPrior over one with the standard normal: {record['step']['ratio']:.2f}")
    if not args.step_only:
        with tempfile.TemporaryDirectory() as folder:
            record["mnist"] = arms(args.data_dir, folder, args.threads, args.particles)
            if args.frey:
                record["frey"] = frey(args.frey, folder, args.threads)
    print(f"written to {common.save('parts', record, args.out)}")


if __name__ == "__main__":
    main()
