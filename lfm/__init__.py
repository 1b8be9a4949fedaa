"""Latent flow matching: the method. Tensors in, tensors out; no params.yaml, no printing, no draws but initial weights."""
