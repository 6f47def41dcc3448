"""The mixture guide against closed forms: density, moments, draws and how they move."""

import pytest
import torch
from closeness import close, leaf, matches, positive
from torch import nn
from torch.distributions import Categorical, Independent, MixtureSameFamily

from pvae import guides
from pvae.guides.mixture import DiagonalMixture

LATENT = 3


def mixture(*lead, components=3, latent=LATENT):
    logits, locs = leaf(*lead, components), leaf(*lead, components, latent)
    scales = positive(*lead, components, latent)
    normals = Independent(torch.distributions.Normal(locs, scales), 1)
    return (
        DiagonalMixture(logits, locs, scales),
        MixtureSameFamily(Categorical(logits=logits), normals),
        [logits, locs, scales],
    )


@pytest.mark.parametrize("lead", [(), (4,), (2, 4)], ids=str)
def test_a_mixtures_density_is_torchs(lead):
    torch.manual_seed(0)
    ours, theirs, parameters = mixture(*lead)
    close(ours.mean, theirs.mean)
    close(ours.variance, theirs.variance)
    for shape in ((), lead, (6, *lead)):
        value = leaf(*shape, LATENT)
        found, expected = (p.log_prob(value) for p in (ours, theirs))
        close(found, expected)
        grads = [torch.autograd.grad(p.sum(), [value, *parameters], retain_graph=True) for p in (found, expected)]
        for mine, right in zip(*grads, strict=True):
            close(mine, right)
    wide = ours.expand([6, *lead])
    value = wide.sample()
    assert value.shape == (6, *lead, LATENT)
    close(wide.log_prob(value), theirs.log_prob(value))


def moments(z):
    """Monomials up to the second order, (..., 9), and one that is not smooth at all."""
    pairs = (z.unsqueeze(-1) * z.unsqueeze(-2)).flatten(-2)[..., torch.tensor([0, 1, 2, 4, 5, 8])]
    return torch.cat([z, pairs], -1)


def exact_moments(logits, locs, scales):
    weight = logits.softmax(-1)
    outer = locs.unsqueeze(-1) * locs.unsqueeze(-2) + torch.diag_embed(scales.square())
    second = (weight[:, None, None] * outer).sum(0).flatten()[torch.tensor([0, 1, 2, 4, 5, 8])]
    return torch.cat([(weight[:, None] * locs).sum(0), second])


@pytest.mark.parametrize("seed", [0, 1])
def test_a_mixtures_draws_have_its_moments_and_exact_gradients(seed):
    """Of the expectation of every monomial, in every weight, mean and scale."""
    torch.manual_seed(seed)
    _, _, parameters = mixture()
    jacobian = torch.autograd.functional.jacobian(exact_moments, tuple(parameters))
    n = 40_000
    each = [p.detach().expand(n, *p.shape).clone().requires_grad_() for p in parameters]
    found = moments(DiagonalMixture(*each).rsample())
    matches(found.detach(), exact_moments(*parameters).detach())
    for number in range(found.shape[-1]):
        grads = torch.autograd.grad(found[:, number].sum(), each, retain_graph=True)
        for mine, right in zip(grads, jacobian, strict=True):
            matches(mine, right[number])


def conditional_cdfs(z, logits, locs, scales):
    """F_d(z_d | z_<d), (D,), as they are defined."""
    normals, found = torch.distributions.Normal(locs, scales), []
    for d in range(len(z)):
        weight = (logits + normals.log_prob(z)[:, :d].sum(-1)).softmax(-1)
        found.append((weight * normals.cdf(z)[:, d]).sum())
    return torch.stack(found)


def test_a_mixtures_draws_move_with_the_weights_as_their_distribution_functions_say():
    torch.manual_seed(0)
    ours, _, parameters = mixture()
    z = ours.rsample()
    of_z = torch.autograd.functional.jacobian(lambda v: conditional_cdfs(v, *parameters), z.detach())
    of_logits = torch.autograd.functional.jacobian(
        lambda v: conditional_cdfs(z.detach(), v, *parameters[1:]), parameters[0]
    )
    for d in range(LATENT):
        found = torch.autograd.grad(z[d], parameters[0], retain_graph=True)[0]
        close(found, -torch.linalg.solve(of_z, of_logits)[d], 1e-8)


def test_a_mixtures_gradient_keeps_its_digits_in_the_tails():
    """A draw far above and far below both components, in float32 and float64."""
    logits, locs, scales = torch.tensor([0.0, 1.0]), torch.tensor([[-0.3], [0.3]]), torch.tensor([[1.0], [0.9]])
    for z in (-9.0, -6.0, 6.0, 9.0):
        grads = []
        for dtype in (torch.float32, torch.float64):
            at = logits.to(dtype).requires_grad_()
            move = guides.mixture._Moving.apply
            value = move(torch.tensor([z], dtype=dtype), at.log_softmax(-1), locs.to(dtype), scales.to(dtype))
            grads.append(torch.autograd.grad(value.sum(), at)[0].double())
        assert grads[1].abs().min() > 1e-3
        torch.testing.assert_close(*grads, rtol=1e-3, atol=0)


def test_many_dimensions_and_particles_leave_a_mixtures_gradient_finite():
    torch.manual_seed(0)
    logits, locs, scales = torch.randn(64, 4), 5 * torch.randn(64, 4, 50), torch.rand(64, 4, 50) + 1e-3
    parameters = [p.requires_grad_() for p in (logits, locs, scales)]
    q = DiagonalMixture(*parameters).expand([8, 64])
    q.log_prob(q.rsample()).sum().backward()
    assert all(p.grad.isfinite().all() for p in parameters)


def test_a_mixtures_components_begin_apart():
    torch.manual_seed(0)
    made = [guides.Mixture(nn.Linear(4, 15), 3, components=2, apart=apart) for apart in (0.0, 0.5, 2.0)]
    distances = [guide.places.diff(dim=0).norm().item() for guide in made]
    assert distances[0] == 0 < distances[1] < distances[2]
    locs = guides.Mixture(lambda x: torch.zeros(*x.shape[:-1], 15), 3, components=2)
    assert torch.equal(locs(torch.ones(5, 4)).locs, locs.places.expand(5, 2, 3))
    twin = guides.Mixture(made[1].encoder, 3, components=2)
    twin.load_state_dict(made[1].state_dict())
    assert torch.equal(twin(torch.ones(4)).locs, made[1](torch.ones(4)).locs)
