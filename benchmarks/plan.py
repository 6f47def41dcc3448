"""The parts of `benchmarks.gpu`, in order of importance: their commands, and the seconds that they may take."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

STEP = "--only pvae-full,pvae-graph,pyro,torch,numpyro-jit,numpyro-scan --seconds 0.5 --rounds 5"
QUICK_STEP = (
    "--threads 1 --networks A --only pvae-graph,pyro,torch,numpyro-scan --check-steps 20 --seconds 0.02 --rounds 1"
)
BOUND = "--network B --images 10000 --particles 5000 --repeats 3 --precision tf32"
QUICK_BOUND = "--threads 1 --network B --images 128 --particles 128 --repeats 1"
PROGRAMS = "--seconds 0.4 --rounds 5 --tolerance 0.2"
QUICK_PROGRAMS = (
    "--threads 1 --programs regression,hierarchical --seconds 0.02 --rounds 1 --check-steps 8 --tolerance 9"
)


@dataclass(frozen=True)
class Part:
    """A command of its own."""

    module: str
    """Of `benchmarks`."""
    options: str
    quick: str
    """Options that make it as small as can be."""
    least: float
    """Seconds that it takes, about; with less left it is not begun."""
    most: float
    """Seconds at which it is cut off."""
    anywhere: bool = True
    """Whether it runs without a GPU, too."""

    def lacks(self, device: str) -> str:
        """What it lacks to be run; empty if nothing."""
        return "" if self.anywhere or device == "cuda" else "a GPU"

    def command(self, device: str, quick: bool, out: Path) -> list[str]:
        """What comes after `python -m`."""
        options = shlex.split(self.quick if quick else self.options)
        return [f"benchmarks.{self.module}", f"--device={device}", f"--out={out}", *options]


PARTS = {
    "cuda": Part("cuda", "--workers 8", "--workers 0 --keyword memory", least=40, most=200),
    "step": Part("step", STEP, f"{QUICK_STEP} --tolerance 1", least=120, most=260),
    "iwae": Part("iwae", "--seconds 200", "--check --threads 1", least=260, most=330),
    "iwae-120": Part("iwae", "--seconds 118 --marks 1", "--check --threads 1", least=160, most=220),
    "evaluate": Part("evaluate", BOUND, QUICK_BOUND, least=20, most=60),
    "programs": Part("programs", f"--modes graph {PROGRAMS}", f"--modes graph {QUICK_PROGRAMS}", least=50, most=130),
    "parts": Part("parts", "--step-only", "--step-only --mode graph --threads 1", least=40, most=100),
    "ais": Part(
        "ais",
        "--images 1000 --temperatures 1000",
        "--images 32 --temperatures 5 --chains 2 --leapfrog 2 --train 10 --particles 10 --threads 1",
        least=60,
        most=150,
    ),
    "precision": Part("precision", "--networks A,B,C", "--networks A --steps 10", least=20, most=60),
    "kernels": Part("kernels", "--rounds 5 --images 10000", "", least=100, most=240, anywhere=False),
    "build": Part("build", "--networks C,B,A", "--networks A --modes graph", least=70, most=200),
    "memory": Part("memory", "--limit 8", "--particles 100 --batch 4 --chunks auto,10", least=20, most=60),
    "evaluate-full": Part("evaluate", f"{BOUND} --compile full", QUICK_BOUND, least=40, most=90),
    "programs-full": Part(
        "programs",
        f"--modes full --programs semi-supervised,regression,hierarchical {PROGRAMS}",
        f"--modes off {QUICK_PROGRAMS}",
        least=60,
        most=180,
    ),
    "step-float32": Part(
        "step", f"{STEP} --precision float32", f"{QUICK_STEP} --precision float32 --tolerance 1", least=100, most=260
    ),
    "cuda-full": Part(
        "cuda",
        "--marker 'cuda and slow' --workers 8",
        "--marker 'cuda and slow' --workers 0 --keyword reproducible",
        least=100,
        most=300,
    ),
}
