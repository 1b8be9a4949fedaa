"""Latent flow matching: the method. Tensors in, tensors out; no files, no parameters, no printing."""
