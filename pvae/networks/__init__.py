"""Networks: an encoder takes data to numbers, a decoder takes a latent to numbers for each pixel.

Every network takes any number of leading dimensions.
"""

from .convolution import ConvDecoder, ConvEncoder
from .gated import GatedDecoder, GatedEncoder, gated_mlp
from .network import ACTIVATIONS, Activation, Decoder, Encoder, Log1pEncoder, mlp, split
from .perceptron import MLPDecoder, MLPEncoder
from .residual import ResNetDecoder, ResNetEncoder

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "ConvDecoder",
    "ConvEncoder",
    "Decoder",
    "Encoder",
    "GatedDecoder",
    "GatedEncoder",
    "Log1pEncoder",
    "MLPDecoder",
    "MLPEncoder",
    "ResNetDecoder",
    "ResNetEncoder",
    "gated_mlp",
    "mlp",
    "split",
]
