"""The training loss of EDM (Karras et al. 2022, arXiv 2206.00364)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ddpm_jax import arguments, diffusion, keys, preconditioning
from ddpm_jax.losses import timesteps
from ddpm_jax.preconditioning import Network


def edm(
    key: jax.Array,
    network: Network,
    x0: jax.Array,
    sigma_data: float = 0.5,
    mean: float = -1.2,
    std: float = 1.2,
    ids: ArrayLike | None = None,
    sigma: ArrayLike | None = None,
) -> jax.Array:
    """The weighted error of the denoiser D, Eq. 2 of Karras et al. 2022, at log-normal noise levels.

        lambda(s) |D(x0 + s eps, s) - x0|^2 = |F - (x0 - c_skip y) / c_out|^2,    log s ~ N(mean, std^2)

    Args:
        key: A typed key.
        network: F, called as network(c_in y [B, ...], c_noise [B]).
        x0: Clean data [B, ...].
        sigma_data: Standard deviation of the data.
        mean, std: P_mean and P_std, of log s.
        ids: Global example indices, integers [B]; 0..B-1 by default.
        sigma: The noise levels s, [B] or a scalar, instead of random ones.

    Returns:
        [B], the mean over all dimensions but the first; 1 at every s for the best network if the data are normal with standard
        deviation sigma_data.

    Raises:
        TypeError: no key, no function, or an x0 that is not floating-point.
        ValueError: sigma_data or std is not positive and finite, or mean not finite; F has another shape than x0.
    """
    arguments.check_function("network", network, "a function (c_in y, c_noise) -> F")
    arguments.check_x0(x0)
    preconditioning.check_sigma_data(sigma_data)
    timesteps.check_log_normal(mean, std)
    ids = keys.global_ids(ids, len(x0))
    if sigma is None:
        sigma = jnp.exp(mean + std * keys.draw(jax.random.normal, keys.per_example(keys.stream(key, "t"), ids)))
    s = jnp.broadcast_to(jnp.asarray(sigma, jnp.float32), (len(x0),))
    eps = keys.draw(jax.random.normal, keys.per_example(keys.stream(key, "noise"), ids), x0.shape[1:])

    # F and its target at y = x0 + s eps.
    of_s = preconditioning.coefficients(s, sigma_data)
    y = x0 + diffusion.expand(s, x0) * eps
    output = network(diffusion.expand(of_s.input, x0) * y, jnp.asarray(of_s.noise))
    arguments.check_shape("network", output, x0.shape, "an output of the shape of x0")
    target = (diffusion.expand(s, x0) * x0 - sigma_data**2 * eps) * diffusion.expand(of_s.input, x0) / sigma_data
    return jnp.mean((output - target) ** 2, axis=range(1, x0.ndim))
