"""What tests go through: every member of a family, with every choice of its options."""

import typing

import pytest

import pvae
from pvae import config
from pvae.base import members


def small(member):
    """The options of a part that is quick to try: networks of one narrow layer."""
    return {"hidden": (8,)} if "hidden" in config.member_options(member.family, member) else {}


def variants(family):
    """Every member, its own networks small, and with each choice of each option that is a choice."""
    for name, member in members(family).items():
        yield pytest.param(member, small(member), id=f"{family}-{name}")
        for option, parameter in config.member_options(family, member).items():
            for kind in (parameter.annotation, *typing.get_args(parameter.annotation)):
                for choice in typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ():
                    yield pytest.param(member, {**small(member), option: choice}, id=f"{family}-{name}-{choice}")
    if family == "likelihood":
        yield pytest.param(pvae.Gaussian, {"scale": 0.5}, id="likelihood-gaussian-0.5")


FITTING = [
    (objective, name)
    for objective in members("objective").values()
    for name, gradient in members("gradient").items()
    if not gradient.misfit(objective(3))
]
"""Every objective with every gradient that it takes."""
EACH = [(objective, name) for objective, name in FITTING if objective is pvae.IWAE or name == "reparam"]
"""Every objective once and every gradient once: how these meet one another does not depend on the model."""
