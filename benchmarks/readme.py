"""Write the README's measured figures from the newest results.

python -m benchmarks.readme
"""

from __future__ import annotations

import json
from typing import Any

from benchmarks.common import RESULTS, ROOT, table
from benchmarks.figures import FIGURES
from benchmarks.plan import PARTS

BEGIN, END = "<!-- measured: python -m benchmarks.readme -->", "<!-- end of measured -->"


def newest(name: str) -> dict[str, Any]:
    """The newest result of that name on a CPU."""
    return json.loads(max(RESULTS.glob(f"{name}-cpu-20*.json")).read_text())


def where(result: dict[str, Any]) -> str:
    """Where and when a result was taken, and the command."""
    env = result["environment"]
    device = env["device"]
    name = device.get("gpu") or f"{device['cpu']}, {device['threads']} threads"
    return f"{name}, torch {env['versions']['torch']}, {env['date'][:10]}"


def steps(result: dict[str, Any]) -> str:
    """A row for each contestant, milliseconds a step and the ratio to torch by hand for each network."""
    networks = result["networks"]
    names = next(iter(networks.values()))["contestants"]
    rows = []
    for name in names:
        found = [network["contestants"].get(name) for network in networks.values()]
        rows.append([name, *(f"{c['microseconds'] / 1000:.1f} ({c['ratio']:.2f})" if c else "" for c in found)])
    return table(["ms a step (over `torch`)", *networks], rows)


def fits(result: dict[str, Any]) -> str:
    """A row for each fit."""
    rows = [
        [
            name,
            f"{job['seconds']:.0f} s",
            *(f"{job[key]['mean']:.2f} ± {job[key]['se']:.2f}" for key in ("elbo", "iw.200")),
        ]
        for name, job in result["jobs"].items()
    ]
    return table(["fit, from start to figures", "wall time", "test ELBO", "test IW bound, K=200"], rows)


def others(result: dict[str, Any]) -> str:
    """A row for each program."""
    rows = [
        [name, *(f"{found[mode]['ratio']:.1f}" for mode in ("off", "graph", "full"))]
        for name, found in result["programs"].items()
    ]
    return table(["times faster than Pyro", "off", "graph", "full"], rows)


NAMES = {
    "normal": "standard normal, mean-field",
    "vamp": "VampPrior, 500 components",
    "iaf": "inverse autoregressive flow as the guide",
    "label": "conditioned on labels: log p(x given y)",
}


def arms(result: dict[str, Any]) -> str:
    """A row for each fit that differs from the first in one part."""
    rows = []
    gains = {pair["a"]: pair for pair in result["paired"] if pair["b"] == "normal" and pair["quantity"] == "iw.500"}
    for name, run in result["runs"].items():
        bounds = [f"{run['test'][key]['mean']:.2f} ± {run['test'][key]['se']:.2f}" for key in ("elbo", "iw.500")]
        gain = f"{gains[name]['mean']:+.2f} ± {gains[name]['se']:.2f}" if name in gains else ""
        rows.append([NAMES[name], *bounds, gain, f"{result['seconds'][name]:.0f} s"])
    return table(["MNIST, 40 epochs", "test ELBO", "test IW bound, K=500", "gain, paired", "fit"], rows)


def frey(result: dict[str, Any]) -> str:
    """A row for each likelihood."""
    bits = {name: found["test"]["bits_per_dim"] for name, found in result["likelihoods"].items()}
    return table(
        ["Frey Faces", "bits / dim, K=200"], [[name, f"{b['mean']:.2f} ± {b['se']:.2f}"] for name, b in bits.items()]
    )


def published(result: dict[str, Any]) -> str:
    """A row for each mark of the importance-weighted autoencoder's training."""
    passes = result["options"]["batch"] / int(result["data"].split()[1])
    rows = [
        [
            f"{point['steps'] * passes:,.0f}",
            f"{point['seconds'] / 3600:.1f} h",
            f"{point['nll']:.2f} ± {point['se']:.2f}",
            str(point["active_units"]),
        ]
        for point in result["curve"]
    ]
    return table(["passes over MNIST", "training", "test NLL, K=5,000", "active units"], rows)


def on_gpu() -> str:
    """What was found on a GPU, from the newest results there are of each part; nothing where there are none."""
    found = {name: max(RESULTS.glob(f"{name}-cuda-20*.json"), default=None) for name in PARTS}
    records = {name: json.loads(path.read_text()) for name, path in found.items() if path}
    if not records:
        return ""
    rows = [[figure, value] for name in records for figure, _, value in FIGURES[PARTS[name].module](records[name])]
    places = "; ".join(dict.fromkeys(where(record) for record in records.values()))
    return f"On a GPU (`python -m benchmarks.gpu`; {places}):\n\n{table(['', 'found'], rows)}\n\n"


def _ratios(result: dict[str, Any], who: str, other: str) -> str:
    """Of two contestants' times, by network."""
    found = {name: network["contestants"] for name, network in result["networks"].items()}
    return ", ".join(f"{c[who]['microseconds'] / c[other]['microseconds']:.2f} on {name}" for name, c in found.items())


def measured() -> str:
    """The section as text."""
    names = ("fit", "step", "evaluate", "step-flushed", "estimators", "programs", "parts", "iwae")
    fit, step, evaluation, flushed_, estimators, programs, parts, iwae = map(newest, names)
    modes = {mode: _ratios(flushed_, f"pvae-{mode}", "torch") for mode in ("off", "graph", "full")}
    flushed = "; ".join(f"`{mode}` {found}" for mode, found in modes.items())
    how = "`--gradient {gradient}`, batch {batch}, {precision}".format_map(iwae["options"])
    memory = max(evaluation["results"], key=lambda row: row["particles"])
    return f"""{BEGIN}

Nats / datum, dynamic binarization (`python -m benchmarks.fit`; {where(fit)}):

{fits(fit)}

What one part is worth: 784-300-10, batch 128, the same epochs, everything else at its default
(`python -m benchmarks.parts`; {where(parts)}; one seed; gains by datum):

{arms(parts["mnist"])}

{frey(parts["frey"])}

Gaussians on dequantized pixels, the others on the levels themselves. A step of batch 256 with a VampPrior of 500
components takes {parts["step"]["ratio"]:.2f} of one with the standard normal (CPU).

The importance-weighted autoencoder of its paper, k = 50, one layer (Burda, Grosse and Salakhutdinov 2015: an NLL of
84.78 and 25 active units after 3,280 passes), here by {how}
(`python -m benchmarks.iwae`; {where(iwae)}; errors over test images):

{published(iwae)}

One training step (gather, binarize, forward, backward, Adam) on three networks: A = 784-400-20, batch 128, ELBO;
B = 784-200-200-50, batch 20, IWAE with K=50; C = B with batch 256 and K=64 (`python -m benchmarks.step`;
{where(step)}; medians of interleaved rounds):

{steps(step)}

`pvae-MODE` is `--compile MODE`: `full` over NumPyro's `jit(update)` is {_ratios(step, "pvae-full", "numpyro-jit")}.
`torch` is by hand with the same fused Adam, and like Pyro it is slowed on a CPU by denormal numbers, which `pvae`
avoids; with `--flush-denormals` the ratios to it are
{flushed} (`benchmarks/NOTES.md`).

Programs that are no VAEs, how many times faster a step is than under Pyro's SVI (`python -m benchmarks.programs`):

{others(programs)}

Evaluating the bound at K={memory["particles"]:,} on {memory["images"]:,} MNIST images takes
{memory["over_mib"]:.0f} MiB over the baseline (`python -m benchmarks.evaluate`).

The time of a step under each gradient estimator, IWAE on network B, over `reparam` (`python -m benchmarks.estimators`;
{where(estimators)}):
{", ".join(f"`{name}` {t['ratio']:.2f}" for name, t in estimators["timings"].items() if name != "reparam")}.

{on_gpu()}{END}"""


def main() -> None:
    """The command."""
    path = ROOT / "README.md"
    text = path.read_text()
    before, _, rest = text.partition(BEGIN)
    path.write_text(before + measured() + rest.partition(END)[2])


if __name__ == "__main__":
    main()
