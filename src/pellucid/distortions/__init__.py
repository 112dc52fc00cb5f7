"""Differentiable distortions of images in [0, 1]: Gabor noise, snow, fog, elastic flow, JPEG. Attacks drive them."""
