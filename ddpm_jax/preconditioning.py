"""The preconditioning of EDM (Karras et al. 2022, arXiv 2206.00364): a network F whose input and target have unit variance.

    D(y, s) = c_skip(s) y + c_out(s) F(c_in(s) y, c_noise(s)),    y = x0 + s eps                              (Eq. 7)

In the notation of `diffusion`, x_t = alpha x0 + sigma eps is alpha y with s = sigma / alpha. With d = sigma^2 +
sigma_data^2 alpha^2, every term is finite at both ends, alpha = 0 and sigma = 0:

    x0 = sigma_data^2 alpha / d x_t + sigma sigma_data / sqrt(d) F(x_t / sqrt(d), log(s) / 4)
    eps = sigma / d x_t - alpha sigma_data / sqrt(d) F

For sigma_data = 1 and alpha^2 + sigma^2 = 1 this is v-prediction: F = -v.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ddpm_jax import arguments, diffusion
from ddpm_jax.denoiser import Denoise, Denoised
from ddpm_jax.schedules import Level

Network = Callable[[jax.Array, jax.Array], jax.Array]
"""(c_in y [B, ...], c_noise [B]) -> F [B, ...]; parameters and condition already bound."""

FARTHEST = 10.0
"""The largest |log s| that a network is evaluated at: s is infinite at alpha = 0."""


class Coefficients(NamedTuple):
    """Table 1 of Karras et al. 2022, column EDM, for the noise level s of y = x0 + s eps.

    Attributes:
        skip: sigma_data^2 / (s^2 + sigma_data^2).
        out: s sigma_data / sqrt(s^2 + sigma_data^2).
        input: 1 / sqrt(s^2 + sigma_data^2).
        noise: log(s) / 4.
        weight: lambda = 1 / out^2, the weight of the squared error of D.
    """

    skip: ArrayLike
    out: ArrayLike
    input: ArrayLike
    noise: ArrayLike
    weight: ArrayLike


def coefficients(s: ArrayLike, sigma_data: float = 0.5) -> Coefficients:
    """The coefficients at noise level s > 0; numpy for numpy.

    >>> from ddpm_jax import preconditioning
    >>> import numpy as np
    >>> [float(a.round(4)) for a in preconditioning.coefficients(np.array(0.5))]
    [0.5, 0.3536, 1.4142, -0.1733, 8.0]
    """
    check_sigma_data(sigma_data)
    xp = np if isinstance(s, float | int) else s.__array_namespace__()  # type: ignore[union-attr]
    total = s**2 + sigma_data**2
    return Coefficients(
        skip=sigma_data**2 / total,
        out=s * sigma_data / xp.sqrt(total),
        input=1 / xp.sqrt(total),
        noise=xp.log(s) / 4,
        weight=total / (s * sigma_data) ** 2,
    )


def edm(network: Network, sigma_data: float = 0.5) -> Denoise:
    """Makes a Denoise of a network trained by `losses.edm`.

    Args:
        network: F, called as network(c_in y [B, ...], c_noise [B]).
        sigma_data: Standard deviation of the data, as in training.

    Returns:
        The Denoise, unclipped; it reads only the alpha and sigma of a Level, so that any schedule and grid serves.

    Raises:
        TypeError: network is no function.
        ValueError: sigma_data is not positive and finite.
    """
    arguments.check_function("network", network, "a function (c_in y, c_noise) -> F")
    check_sigma_data(sigma_data)
    return functools.partial(_denoise, network, sigma_data)


def _denoise(network: Network, sigma_data: float, x_t: jax.Array, level: Level) -> Denoised:
    alpha, sigma = jnp.asarray(level.alpha), jnp.asarray(level.sigma)
    d = sigma**2 + (sigma_data * alpha) ** 2
    log_s = jnp.clip(jnp.log(sigma) - jnp.log(alpha), -FARTHEST, FARTHEST)

    a, s, d = (diffusion.expand(of, x_t) for of in (alpha, sigma, d))
    output = network(x_t / jnp.sqrt(d), jnp.broadcast_to(log_s / 4, x_t.shape[:1]))
    x0 = sigma_data**2 * a / d * x_t + s * sigma_data / jnp.sqrt(d) * output
    eps = s / d * x_t - a * sigma_data / jnp.sqrt(d) * output
    return Denoised(x0, eps, None)


def check_sigma_data(sigma_data: float) -> None:
    """Raises ValueError unless sigma_data is positive and finite."""
    if not 0 < sigma_data < np.inf:
        raise ValueError(f"sigma_data: expected a finite number above 0, received {sigma_data}")
