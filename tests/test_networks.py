"""Gated networks and those of images: formulas, any image size, contexts, and that a datum depends on no other."""

import pytest
import torch
from torch import nn

import pvae
from pvae.base import members
from pvae.networks import ConvDecoder, ConvEncoder, GatedDecoder, GatedEncoder, ResNetDecoder, ResNetEncoder, gated_mlp
from pvae.networks.residual import Residual

IMAGES = [(8, 8), (7, 5), (28, 20), (3, 9, 32), (1, 1), (1, 3, 9)]


def test_a_gated_layer_is_its_formula():
    network, x = gated_mlp(4, [6], 2), torch.randn(5, 3, 4)
    both, _, last = network
    nn.init.normal_(both.bias)
    value, gate = x @ both.weight[:6].T + both.bias[:6], x @ both.weight[6:].T + both.bias[6:]
    expected = (value / (1 + (-gate).exp())) @ last.weight.T + last.bias
    torch.testing.assert_close(network(x), expected)


def test_gated_networks_have_the_layers_they_were_asked_for():
    encoder, decoder = GatedEncoder((3, 4), 5, [7, 6], context=2), GatedDecoder(3, (2, 4), [7])
    assert [tuple(layer.weight.shape) for layer in encoder.layers[::2]] == [(14, 14), (12, 7), (5, 6)]
    assert [tuple(layer.weight.shape) for layer in decoder.layers[::2]] == [(14, 3), (8, 7)]
    assert len(gated_mlp(4, [], 2)) == 1


@pytest.mark.parametrize("sizes", [(400, [300, 300, 300]), (20, [300, 300])], ids=str)
def test_numbers_keep_their_size_through_gated_layers(sizes):
    inputs, hidden = sizes
    x = torch.randn(1000, inputs)
    for layer in list(gated_mlp(inputs, hidden, 2))[:-1]:
        x = layer(x)
        if isinstance(layer, nn.GLU):
            assert 0.7 < x.std() < 1.5


def test_numbers_keep_their_size_through_residual_blocks():
    for blocks in (1, 8):
        torch.manual_seed(0)
        encoder = ResNetEncoder((8, 8), 4, (32, 32), blocks)
        x = torch.randn(100, 1, 8, 8)
        for layer in encoder.layers:
            before, x = x.std(), layer(x)
            if isinstance(layer, Residual):
                assert 0.9 * before < x.std() < 1.5 * before


def test_a_residual_blocks_last_weights_start_smaller():
    blocks = []
    for scale in (1.0, 0.5):
        torch.manual_seed(0)
        blocks.append(Residual(4, "silu", scale).layers)
    assert torch.equal(blocks[1][5].weight, 0.5 * blocks[0][5].weight)
    assert torch.equal(blocks[1][2].weight, blocks[0][2].weight)


def test_a_residual_block_is_x_and_what_is_added():
    torch.manual_seed(0)
    block, x = Residual(4, "silu", 0.5), torch.randn(2, 4, 5, 6)
    added = block(x) - x
    norm, act, first, norm2, _, last = block.layers
    assert (norm.num_groups, norm.num_channels) == (1, 4)
    centred = (x - x.mean((1, 2, 3), keepdim=True)) / x.var((1, 2, 3), correction=0, keepdim=True).add(1e-5).sqrt()
    torch.testing.assert_close(added, last(act(norm2(first(act(centred))))), rtol=1e-4, atol=1e-5)
    for i in (0, 3):
        assert isinstance(block.layers[i], nn.GroupNorm)


@pytest.mark.parametrize(("channels", "groups"), [(4, 1), (16, 1), (32, 2), (48, 3), (64, 4), (40, 2), (100, 2)])
def test_groups_have_about_sixteen_channels(channels, groups):
    assert Residual(channels, "silu", 1.0).layers[0].num_groups == groups


@pytest.mark.parametrize("shape", IMAGES, ids=str)
@pytest.mark.parametrize("channels", [(), (4,), (4, 3), (2, 3, 2, 3)], ids=str)
@pytest.mark.parametrize("blocks", [0, 1, 2])
def test_networks_of_images_fit_any_size(shape, channels, blocks):
    """With no residual blocks, plain convolutions."""
    if blocks and not channels:
        pytest.skip("residual networks have a layer at least")
    own = {"blocks": blocks} if blocks else {}
    encoder, decoder = (ResNetEncoder, ResNetDecoder) if blocks else (ConvEncoder, ConvDecoder)
    encoder, decoder = encoder(shape, 7, channels, **own), decoder(2, shape, channels[::-1], **own)
    for lead in ((), (4,), (2, 3)):
        assert encoder(torch.rand(*lead, *shape)).shape == (*lead, 7)
        assert decoder(torch.rand(*lead, 2)).shape == lead + shape
    for network, x in ((encoder, torch.rand(8, *shape)), (decoder, torch.randn(8, 2))):
        network(x).square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
        assert sum(isinstance(module, Residual) for module in network.modules()) == blocks * len(channels)


@pytest.mark.parametrize("shape", IMAGES, ids=str)
@pytest.mark.parametrize(
    ("encoder", "decoder"), [(ConvEncoder, ConvDecoder), (ResNetEncoder, ResNetDecoder)], ids=["conv", "resnet"]
)
def test_every_pixel_depends_on_the_latent(shape, encoder, decoder):
    """And every pixel has its say in the encoder: no row or column is cut off."""
    torch.manual_seed(1)
    assert (decoder(3, shape, (8, 8), activation="tanh")(torch.randn(16, 3)).std(0) > 0).all()
    x = torch.rand(shape, requires_grad=True)
    encoder(shape, 7, (8, 8), activation="tanh")(x).square().sum().backward()
    assert (x.grad != 0).all()


@pytest.mark.parametrize("member", members("decoder").values())
@pytest.mark.parametrize("shape", [(2, 7, 5), (3, 3, 6, 7)], ids=str)
def test_several_numbers_for_each_pixel(member, shape):
    """Outputs of a likelihood come before the datum's shape, each with a start and numbers of its own."""
    decoder, z = member(3, shape), torch.randn(5, 2, 3)
    decoder.center(torch.zeros(()))
    before = decoder(z)
    assert before.shape == (5, 2, *shape)
    value = torch.randn(shape)
    decoder.center(value)
    torch.testing.assert_close(decoder(z) - before, value.expand(5, 2, *shape), rtol=1e-4, atol=1e-5)
    flat = before.reshape(10, shape[0], -1)
    assert (flat.std(0) > 0).all()
    assert not torch.allclose(flat[:, 0], flat[:, 1])


@pytest.mark.parametrize("member", [*members("encoder").values(), *members("decoder").values()])
def test_a_datum_depends_on_no_other(member):
    shape = (2, 7, 6)
    network = member(shape, 5) if member.family == "encoder" else member(4, shape)
    x = torch.randn(6, *(shape if member.family == "encoder" else (4,)))
    for mode in (True, False):
        network.train(mode)
        found = network(x)
        torch.testing.assert_close(found[2], network(x[2:3])[0], rtol=1e-4, atol=1e-5)
        other = x.clone()
        other[:2], other[3:] = 100.0, -100.0
        torch.testing.assert_close(found[2], network(other)[2], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found.reshape(2, 3, *found.shape[1:]), network(x.reshape(2, 3, *x.shape[1:])))
    assert not [name for name, _ in network.named_buffers()]  # no running statistics


@pytest.mark.parametrize("member", members("encoder").values())
def test_an_encoder_takes_a_context(member):
    torch.manual_seed(0)
    encoder, x = member((7, 6), 5, context=3), torch.rand(4, 2, 7, 6)
    context = torch.randn(4, 2, 3, requires_grad=True)
    out = encoder(x, context)
    assert out.shape == (4, 2, 5)
    (gradient,) = torch.autograd.grad(out[1, 0].square().sum(), context)
    assert (gradient[1, 0] != 0).all()
    assert gradient.count_nonzero() == 3


@pytest.mark.parametrize("name", ["gated", "resnet"])
def test_networks_train_without_dying(name):
    """Eight clusters of images, at the learning rate that a fit takes: what is learned tells them apart."""
    torch.manual_seed(0)
    shape = (8, 8)
    kinds = torch.bernoulli(torch.full((8, *shape), 0.5))
    x = kinds[torch.arange(256) % 8]
    x = torch.where(torch.rand_like(x) < 0.05, 1 - x, x)
    encoder, decoder = members("encoder")[name], members("decoder")[name]
    sizes = {"hidden": (32,)} if name == "gated" else {"channels": (8,)}
    vae = pvae.VAE(
        pvae.Normal(4),
        pvae.Bernoulli(decoder(4, shape, **sizes), shape),
        pvae.MeanField(encoder(shape, 8, **sizes), 4),
    ).initialize(x)
    svi = pvae.SVI(vae.model, vae.guide, lambda p: torch.optim.Adam(p, lr=2e-3), pvae.ELBO(1), compile="off")
    first = svi.step(x) / len(x)
    for _ in range(200):
        last = svi.step(x) / len(x)
    assert first > 40
    assert last < 30  # 64 pixels flipped with 0.05 and log 8 for the kind: 14.8


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: ResNetEncoder((8,), 2), r"resnet: found data of shape \(8,\), expected images .*: use mlp"),
        (lambda: ResNetDecoder(2, ()), r"resnet: found data of shape \(\), expected images .*: use mlp"),
        (lambda: ResNetEncoder((8, 8), 2, channels=()), "channels: found none, expected at least one"),
        (lambda: ResNetEncoder((8, 8), 2, channels=(4, 0)), "channels: found 4,0, expected each to be at least 1"),
        (lambda: ResNetDecoder(2, (8, 8), blocks=0), "blocks: found 0, expected at least 1"),
        (lambda: ResNetDecoder(2, (8, 8), activation="sillu"), "unknown name 'sillu': did you mean 'silu'"),
        (lambda: GatedEncoder((8, 8), 2, hidden=[0]), "hidden: found 0, expected each to be at least 1"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(wrong, message):
    with pytest.raises(pvae.InputError, match=message) as found:
        wrong()
    assert "\n" not in str(found.value)
