"""Variational autoencoders as probabilistic programs."""
