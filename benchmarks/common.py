"""What the benchmarks share: options, networks and images, the record of where a number was taken, tables and JSON.

Imports no torch at the top: a process that only starts others is to stay small, see `evaluate`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy as np

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DATA = os.environ.get("PVAE_DATA", str(ROOT.parent / "shared" / "data"))
"""Where MNIST lies, if nothing else is said."""
PIXELS = 784
RATE = 1e-3
"""Adam's."""
PACKAGES = ("pvae", "torch", "pyro-ppl", "numpyro", "jax", "jaxlib", "numpy", "triton")


def parser(name: str, doc: str | None, threads: bool = False) -> argparse.ArgumentParser:
    """The options that benchmarks share: where they run, on how many threads if they say so, where the record goes."""
    made = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=(doc or "").splitlines()[0])
    made.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    if threads:
        made.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of the CPU, for all")
    made.add_argument("--out", metavar="FILE", help="of the JSON")
    return made


def some_of(known: Collection[str]) -> Callable[[str], list[str]]:
    """An option's type: some of these names, with commas."""

    def names(text: str) -> list[str]:
        found = text.split(",")
        if unknown := [name for name in found if name not in known]:
            raise argparse.ArgumentTypeError(f"unknown {', '.join(unknown)}: expected some of {', '.join(known)}")
        return found

    return names


@dataclass(frozen=True)
class Network:
    """A network, and how it is trained: sizes of PIXELS-hidden-latent, and back."""

    hidden: tuple[int, ...]
    latent: int
    activation: Literal["relu", "tanh"]
    batch: int
    particles: int

    def __str__(self) -> str:
        sizes = "-".join(map(str, (PIXELS, *self.hidden, self.latent)))
        bound = "ELBO" if self.particles == 1 else "IWAE"
        return f"{sizes} {self.activation}, batch {self.batch}, K = {self.particles} ({bound})"


NETWORKS = {
    "A": Network((400,), 20, "relu", batch=128, particles=1),
    "B": Network((200, 200), 50, "tanh", batch=20, particles=50),
    "C": Network((200, 200), 50, "tanh", batch=256, particles=64),
}


def vae(network: Network, **guide: Any) -> Any:
    """The network as a `pvae.VAE` with a Bernoulli likelihood, on flat images; and options of its guide."""
    import pvae

    latent, hidden, activation = network.latent, network.hidden, network.activation
    return pvae.VAE(
        pvae.Normal(latent),
        pvae.Bernoulli(pvae.MLPDecoder(latent, (PIXELS,), hidden[::-1], activation), (PIXELS,)),
        pvae.MeanField(pvae.MLPEncoder((PIXELS,), 2 * latent, hidden, activation), latent, **guide),
    )


def objective(network: Network) -> Any:
    """What the network is trained under."""
    import pvae

    return pvae.ELBO() if network.particles == 1 else pvae.IWAE(network.particles)


def svi(vae: Any, objective: Any, **options: Any) -> Any:
    """The training of a model by fused Adam."""
    import torch

    import pvae

    return pvae.SVI(vae.model, vae.guide, partial(torch.optim.Adam, lr=RATE, fused=True), objective, **options)


def take(svi: Any, rows: Any, data: Any) -> None:
    """A step on each batch of rows of the data, uint8, which are binarized anew."""
    from pvae.data import binarize

    for _ in svi.run(rows, data, prepare=partial(binarize, mode="dynamic")):
        pass


def wait(device: Any) -> None:
    """Until the device has done what it was given."""
    import torch

    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def images(n: int, seed: int = 0) -> np.ndarray:
    """Synthetic images (n, 784), uint8, as sparse as MNIST (19% of pixels on, mean 0.14), of ten kinds."""
    generator = np.random.default_rng(seed)
    coarse = generator.normal(size=(10, 7, 7)).repeat(4, 1).repeat(4, 2)
    smooth = sum(np.roll(coarse, shift, axis) for axis in (1, 2) for shift in (-2, -1, 0, 1, 2)).reshape(10, PIXELS)
    shapes = smooth > np.quantile(smooth, 0.81, axis=1, keepdims=True)
    return (shapes[generator.integers(10, size=n)] * generator.integers(128, 256, (n, PIXELS))).astype(np.uint8)


def mnist(folder: str, n: int, seed: int = 0) -> tuple[Any, str]:
    """The first MNIST test images, binarized by a fixed draw; synthetic ones where there is no MNIST."""
    _, test, name = mnist_parts(folder, n)
    return binarized(test[:n], seed), f"{name} test"


def mnist_parts(folder: str, n: int) -> tuple[Any, Any, str]:
    """MNIST's images for training and for testing, (N, 784), uint8, and their name; n synthetic ones if there is none.

    Nothing is fetched: where a benchmark runs there may be no network.
    """
    import torch

    from pvae import data

    files = (f"{part}-{kind}*" for part in ("train", "t10k") for kind in ("images", "labels"))
    if not all(any((Path(folder) / "MNIST" / "raw").glob(name)) for name in files):
        both = torch.from_numpy(images(2 * n))
        return both[:n], both[n:], f"synthetic images, for no MNIST was found in {folder}"
    found = data.load("mnist", folder, validation=0.0)
    return found.train.x.reshape(-1, PIXELS), found.test.x.reshape(-1, PIXELS), "MNIST"


def binarized(grey: Any, seed: int = 0) -> Any:
    """Images (N, 784), uint8, made 0 or 1 by a draw that the seed fixes; float32."""
    import torch

    from pvae import data

    return data.binarize(data.pixels(grey), "dynamic", torch.Generator().manual_seed(seed))


def replayed_as(svi: Any) -> list[str]:
    """Of what kinds the graphs of an SVI are; why there is none, where it runs eagerly."""
    if svi._graphs.eager_only:
        return [f"eager: {svi._graphs.eager_only}"]
    return sorted({graph.kind for graph in svi._graphs._graphs.values()})


def choose_device(name: str) -> str:
    """`auto` is CUDA where there is one."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name


def device_record(device: str) -> dict[str, Any]:
    """What the numbers were taken on, by name."""
    import torch

    record: dict[str, Any] = {"kind": device, "cpu": cpu_name(), "threads": torch.get_num_threads()}
    if device == "cuda":
        record |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    return record


def cpu_name() -> str:
    """The processor's name, as Linux gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def environment(device: Mapping[str, Any]) -> dict[str, Any]:
    """The record that makes a number readable later: device, versions, commit, date, how busy the machine was."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join(sys.argv[1:]),
        "commit": _git("rev-parse", "HEAD") or os.environ.get("PVAE_COMMIT", ""),
        "changed": _git("status", "--porcelain", "--", "pvae", "benchmarks/*.py").splitlines(),
        "device": dict(device),
        "load": load(),
        "versions": versions,
    }


def load() -> list[float]:
    """How busy the machine is."""
    return [round(value, 2) for value in os.getloadavg()]


def _git(*args: str) -> str:
    try:
        return subprocess.run(("git", *args), cwd=ROOT, capture_output=True, text=True, check=True).stdout.rstrip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table, its columns aligned; all but the first to the right."""
    widths = [max(len(row[i]) for row in (columns, *rows)) for i in range(len(columns))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [columns, rule, *rows]
    aligned = ([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in aligned)


def save(name: str, record: Mapping[str, Any], out: str | None) -> Path:
    """Write the record as JSON: to `out`, or to results/NAME-DEVICE-DATE.json."""
    env = record["environment"]
    path = Path(out) if out else RESULTS / f"{name}-{env['device']['kind']}-{env['date'][:10]}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")
    return path
