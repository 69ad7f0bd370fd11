"""Diffusion of Gaussian and Gaussian-mixture data in closed form: numpy, float64, nothing of ddpm_jax.

Data are one-dimensional mixtures: component k has weight w[k], mean m[k], variance v[k]. Noised, x_t = alpha x0 + sigma eps
is a mixture of the same weights, means alpha m and variances alpha^2 v + sigma^2. Functions that samplers call take the
array namespace, numpy or jax.numpy, as `xp`.
"""

import numpy as np


def log_snr_grid(start, end, num_steps):
    """Alpha and sigma, [num_steps + 1], uniform in log(alpha^2 / sigma^2)."""
    log_snr = np.linspace(start, end, num_steps + 1)
    return np.sqrt(1 / (1 + np.exp(-log_snr))), np.sqrt(1 / (1 + np.exp(log_snr)))


def posterior_mean(x, alpha, sigma, w, m, v, xp=np):
    """E[x0 | x_t = x] of a mixture, x of any shape."""
    x = x[..., None]
    shape = (1,) * (x.ndim - 1) + (-1,)
    w, m, v = (xp.reshape(xp.asarray(a, x.dtype), shape) for a in (w, m, v))
    variance = alpha**2 * v + sigma**2
    log_weight = xp.log(w) - 0.5 * (xp.log(variance) + (x - alpha * m) ** 2 / variance)
    weight = xp.exp(log_weight - xp.max(log_weight, axis=-1, keepdims=True))
    weight = weight / xp.sum(weight, axis=-1, keepdims=True)
    return xp.sum(weight * (m + alpha * v / variance * (x - alpha * m)), axis=-1)


def gaussian_flow(x, alpha_t, sigma_t, alpha_s, sigma_s, m, v):
    """Where the probability-flow ODE takes x from level t to level s, for one Gaussian: it keeps the standard score."""
    spread = np.sqrt((alpha_s**2 * v + sigma_s**2) / (alpha_t**2 * v + sigma_t**2))
    return alpha_s * m + spread * (x - alpha_t * m)


def reverse_step(x0, x_t, alpha_t, sigma_t, alpha_s, sigma_s):
    """Mean and variance of q(x_s | x_t, x0), as the product of the densities of x_s given x0 and of x_t given x_s."""
    gain = alpha_t / alpha_s
    added = sigma_t**2 - gain**2 * sigma_s**2
    precision = 1 / sigma_s**2 + gain**2 / added
    return (alpha_s * x0 / sigma_s**2 + gain * x_t / added) / precision, 1 / precision


def ancestral_moments(alpha, sigma, m, v, variance):
    """Mean and variance that ancestral sampling of one Gaussian ends with, given the exact E[x0 | x_t].

    alpha, sigma: [N + 1], noisiest first, the last (1, 0). It starts from N(0, 1), and each step's mean is linear in x_t.
    """
    mean, var = 0.0, 1.0
    for i in range(len(alpha) - 2):
        t, s = (alpha[i], sigma[i]), (alpha[i + 1], sigma[i + 1])

        def step_mean(x, t=t, s=s):
            x0 = m + t[0] * v / (t[0] ** 2 * v + t[1] ** 2) * (x - t[0] * m)
            return reverse_step(x0, x, *t, *s)[0]

        small = reverse_step(0.0, 0.0, *t, *s)[1]
        large = t[1] ** 2 - (t[0] / s[0]) ** 2 * s[1] ** 2
        slope = step_mean(1.0) - step_mean(0.0)
        mean, var = step_mean(mean), slope**2 * var + {"fixed_small": small, "fixed_large": large}[variance]
    a, b = alpha[-2], sigma[-2]
    slope = a * v / (a**2 * v + b**2)
    return m + slope * (mean - a * m), slope**2 * var
