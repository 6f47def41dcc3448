"""What was asked for and what was found, read from the records of `benchmarks.gpu`'s parts."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

Rows = list[list[str]]
"""Figure, goal, what was found."""

FASTER = {"A": 60, "B": 50, "C": 15}


def cuda(record: dict[str, Any]) -> Rows:
    """Tests that passed."""
    ran = record["tests"] - record["skipped"]
    return [[f"tests '{record['marker']}'", "all pass", f"{ran - len(record['failed'])} of {ran}"]]


def step(record: dict[str, Any]) -> Rows:
    """Our step over NumPyro's and Pyro's over ours, by network."""
    rows = []
    for name, network in record["networks"].items():
        times = {who: found["microseconds"] for who, found in network["contestants"].items()}
        label = f"{name}, {record['precision']}"
        for ours in ("pvae-full", "pvae-graph"):
            if ours in times and "numpyro-scan" in times:
                ratio = f"{times[ours] / times['numpyro-scan']:.2f} ({times[ours]:,.0f} us)"
                rows.append([f"{label}: {ours} over numpyro-scan", "<= 0.8", ratio])
            if ours in times and "pyro" in times:
                goal = f">= {FASTER[name]}"
                rows.append([f"{label}: {ours}, times faster than pyro", goal, f"{times['pyro'] / times[ours]:.0f}"])
        notes = {who: found["note"] for who, found in network["contestants"].items() if found.get("note")}
        rows += [[f"{label}: {who}", "", note[:60]] for who, note in notes.items()]
        rows += [[f"{label}: {who} left out", "", reason[:60]] for who, reason in network["skipped"].items()]
    return rows


def iwae(record: dict[str, Any]) -> Rows:
    """Time to the paper's NLL, and the NLL at the end."""
    reached, label = record["seconds_to_goal"], f"IWAE k=50, {record['data'].partition(':')[0]}"
    return [
        [f"{label}: seconds to NLL {record['goal']}", "< 120", f"{reached:.0f}" if reached else "not reached"],
        [f"{label}: NLL after {record['seconds']:.0f} s", "<= 84.6", f"{record['nll']:.2f} +- {record['se']:.2f}"],
    ]


def evaluate(record: dict[str, Any]) -> Rows:
    """Seconds of an evaluation whose graph is there, as in a fit's second validation; and of one that builds it."""
    (found,) = record["results"]
    label = f"K={found['particles']:,} bound of {found['images']:,} images, {record['compile']}"
    label += ", in part eager: no graph was right" if found["eager"] else ""
    return [[label, "< 0.25 s", f"{min(found['kept']):.2f} s ({min(found['again']):.2f} s with building)"]]


def programs(record: dict[str, Any]) -> Rows:
    """Times faster than Pyro's SVI, by program and mode."""
    return [
        [f"{name}: {mode}, times faster than pyro", ">= 10", f"{found[mode]['ratio']:.1f}"]
        for name, found in record["programs"].items()
        for mode in found
        if mode != "pyro"
    ]


def parts(record: dict[str, Any]) -> Rows:
    """A VampPrior's step."""
    return [["step with a VampPrior of 500 over the normal's", "<= 1.5", f"{record['step']['ratio']:.2f}"]]


def ais(record: dict[str, Any]) -> Rows:
    """Seconds of annealing."""
    label = f"AIS, {record['images']} images, {record['annealing']['temperatures']} temperatures"
    return [[label, "< 60 s", f"{record['seconds']:.1f} s"]]


def precision(record: dict[str, Any]) -> Rows:
    """Errors of the gradient."""
    return [
        [f"{name}, {precision}: relative error of the gradient", "", f"{errors['gradient']:.1e}"]
        for name, found in record["networks"].items()
        for precision, errors in found.items()
    ]


def kernels(record: dict[str, Any]) -> Rows:
    """What our own kernels save, in whole steps and evaluations, and beside inductor's."""
    rows = []
    for name, found in record["microseconds"].items():
        times = {key: median(each) for key, each in found.items()}
        for ours, others, label in (("with", "without", "none"), ("fused", "compiled", "inductor's")):
            if ours in times and others in times:
                rows.append([f"{name}: our kernels over {label}", "< 1", f"{times[ours] / times[others]:.2f}"])
    return rows


def build(record: dict[str, Any]) -> Rows:
    """Seconds that building takes."""
    goals = {"graph": "< 1 s", "full, cold": "< 20 s", "full, from the cache": "< 5 s"}
    return [
        [f"{name}: {how} builds", goals[how], f"{each['build']:.1f} s"]
        for name, found in record["networks"].items()
        for how, each in found.items()
    ]


def memory(record: dict[str, Any]) -> Rows:
    """Peak memory by how many particles are taken at once."""
    return [
        [f"{record['network']}, chunk {chunk}: memory", "<= 8 GiB", f"{found['over_mib'] / 1024:.1f} GiB"]
        for chunk, found in record["chunks"].items()
    ]


FIGURES: dict[str, Callable[[dict[str, Any]], Rows]] = {
    "cuda": cuda,
    "step": step,
    "iwae": iwae,
    "evaluate": evaluate,
    "programs": programs,
    "parts": parts,
    "ais": ais,
    "precision": precision,
    "kernels": kernels,
    "build": build,
    "memory": memory,
}
"""By the benchmark's module."""
