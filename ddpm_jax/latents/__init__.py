"""Latent-variable models: the mathematics of the variational autoencoder."""

from ddpm_jax.latents.vae import Terms, distortion, elbo, importance_weighted, optimal_log_variance, terms

__all__ = ["Terms", "distortion", "elbo", "importance_weighted", "optimal_log_variance", "terms"]
