"""Likelihoods: the variational bound, the probability-flow ODE, and the bound as a progressive code."""

from ddpm_jax.likelihood.coding import Coded, progressive_coding, rate_distortion
from ddpm_jax.likelihood.ode import bits_per_dimension, ode_log_likelihood
from ddpm_jax.likelihood.variational import DECODERS, Bound, bound, discretized_log_likelihood, normal_kl, prior, term

__all__ = [
    "DECODERS", "Bound", "Coded", "bits_per_dimension", "bound", "discretized_log_likelihood", "normal_kl",
    "ode_log_likelihood", "prior", "progressive_coding", "rate_distortion", "term",
]  # fmt: skip
