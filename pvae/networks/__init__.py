"""Networks: an encoder takes data to numbers, a decoder takes a latent to numbers for each pixel.

Every network takes any number of leading dimensions.
"""

from .convolution import ConvDecoder, ConvEncoder
from .network import ACTIVATIONS, Activation, Decoder, Encoder, mlp
from .perceptron import MLPDecoder, MLPEncoder

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "ConvDecoder",
    "ConvEncoder",
    "Decoder",
    "Encoder",
    "MLPDecoder",
    "MLPEncoder",
    "mlp",
]
