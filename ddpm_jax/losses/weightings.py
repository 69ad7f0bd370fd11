"""Weightings of the training loss, as functions of log_snr = log(alpha^2 / sigma^2).

Each applies to the squared error of the quantity for which its paper states it; `weight` converts it to the quantity that
the network predicts, since at a given noise level all these errors are multiples of each other:

    eps error = alpha / sigma * x0 error,    score error = eps error / sigma
    v error = (alpha^2 + sigma^2) / sigma * x0 error,    flow error = (alpha + sigma) / sigma * x0 error

The times t are drawn uniformly here; if a paper draws them otherwise, their density is a further factor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ddpm_jax import diffusion
from ddpm_jax.schedules import HasLevels, Level


class Weighting(NamedTuple):
    """A weight of a squared error.

    Attributes:
        of: The quantity whose error it weights: "eps", "x0", "v" or "flow".
        weight: log_snr -> the weight, of any shape.
    """

    of: str
    weight: Callable[[jax.Array], jax.Array]


def uniform(of: str = "eps") -> Weighting:
    """1 for the error of eps, L_simple of Ho et al. 2020; or of "x0", "flow", or "v" (Salimans & Ho 2022's SNR + 1)."""
    if of not in ("eps", "x0", "v", "flow"):
        raise ValueError(f"of: expected 'eps', 'x0', 'v' or 'flow', received {of!r}")
    return Weighting(of, jnp.ones_like)


def min_snr(gamma: float = 5.0) -> Weighting:
    """min(1, gamma / SNR) for the error of eps, min(SNR, gamma) for x0 (Hang et al. 2023, arXiv 2303.09556, section 3.4)."""
    return Weighting("eps", lambda log_snr: jnp.minimum(gamma * jnp.exp(-log_snr), 1.0))


def p2(gamma: float = 1.0, k: float = 1.0) -> Weighting:
    """1 / (k + SNR)^gamma for the error of eps (Choi et al. 2022, arXiv 2204.00227, Eq. 8)."""
    return Weighting("eps", lambda log_snr: (k + jnp.exp(log_snr)) ** -gamma)


def truncated_snr() -> Weighting:
    """max(SNR, 1) for the error of x0 (Salimans & Ho 2022, arXiv 2202.00512, section 4)."""
    return Weighting("x0", lambda log_snr: jnp.maximum(jnp.exp(log_snr), 1.0))


def edm(sigma_data: float = 0.5) -> Weighting:
    """(s^2 + sigma_data^2) / (s sigma_data)^2 for the error of x0, s = sigma / alpha (Karras et al. 2022, table 1).

    Karras et al. (arXiv 2206.00364) draw log s from a normal distribution; here s follows from t and the schedule.
    """
    return Weighting("x0", lambda log_snr: jnp.exp(log_snr) + sigma_data**-2)


def sigmoid(bias: float = 2.0) -> Weighting:
    """1 / (1 + exp(log_snr - bias)) for the error of eps (Kingma & Gao 2023, arXiv 2303.00848, section 5).

    The paper weights the integral over log_snr, so -dlog_snr/dt is a further factor if t is drawn uniformly.
    """
    return Weighting("eps", lambda log_snr: jax.nn.sigmoid(bias - log_snr))


def weight(weighting: Weighting, level: Level, prediction: str, schedule: HasLevels | None = None) -> jax.Array:
    """The weight of the squared error of the network's output.

    Args:
        weighting: The weighting.
        level: The noise level, in discrete or continuous time; scalars or [B].
        prediction: "eps", "x0", "v", "flow", "score" or "mean".
        schedule: The discrete schedule that defines the mean; only "mean" needs it, at integer times.

    Returns:
        The weight, in the shape of the level's arrays. Infinite at alpha = 0 if the weighting is of the error of x0, about
        which a prediction of eps or score carries no information there.

    Raises:
        ValueError: an unknown prediction, or a mean without a discrete schedule.
        TypeError: a mean at a non-integer time.
    """
    alpha, sigma, log_snr = map(jnp.asarray, (level.alpha, level.sigma, level.log_snr))
    if prediction == "mean":
        of_x0 = weight(weighting, level, "x0")
        return of_x0 / diffusion.posterior_scales(diffusion.schedule_of_mean(schedule), level.t)[0] ** 2
    if prediction not in _V_ERROR:
        raise ValueError(f"prediction: expected one of {diffusion.PREDICTIONS}, received {prediction!r}")
    ratio = weighting.weight(log_snr)
    factors = (alpha, sigma, alpha**2 + sigma**2, alpha + sigma)
    for factor, a, b in zip(factors, _V_ERROR[prediction], _V_ERROR[weighting.of], strict=True):
        ratio = ratio * factor ** (a - b)
    return ratio


_V_ERROR = {"eps": (-2, 0, 2, 0), "x0": (0, -2, 2, 0), "v": (0, 0, 0, 0), "score": (-2, 2, 2, 0), "flow": (0, 0, 2, -2)}
"""The squared error of v over that of each, as powers of alpha, sigma, alpha^2 + sigma^2 and alpha + sigma: exponents cancel
before 0 / 0 can arise."""
