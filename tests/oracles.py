"""Diffusion of Gaussian and Gaussian-mixture data in closed form: numpy, float64, nothing of ddpm_jax.

Data are one-dimensional mixtures: component k has weight w[k], mean m[k], variance v[k]. Noised, x_t = alpha x0 + sigma eps
is a mixture of the same weights, means alpha m and variances alpha^2 v + sigma^2. Functions that samplers call take the
array namespace, numpy or jax.numpy, as `xp`.
"""

import itertools

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


def mixture_flow(x, log_snr_t, log_snr_s, w, m, v, num_steps=3000):
    """Where the probability-flow ODE takes x, at levels of unit variance, for a mixture: Runge and Kutta's fourth order.

    With rho = sigma / alpha and z = x / alpha the ODE is dz / d log rho = z - E[x0 | x].
    """

    def slope(log_rho, z):
        alpha = 1 / np.sqrt(1 + np.exp(2 * log_rho))
        return z - posterior_mean(alpha * z, alpha, alpha * np.exp(log_rho), w, m, v)

    at, step = -log_snr_t / 2, (log_snr_t - log_snr_s) / 2 / num_steps
    z = x * np.sqrt(1 + np.exp(-log_snr_t))
    for _ in range(num_steps):
        k1 = slope(at, z)
        k2 = slope(at + step / 2, z + step / 2 * k1)
        k3 = slope(at + step / 2, z + step / 2 * k2)
        k4 = slope(at + step, z + step * k3)
        z, at = z + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4), at + step
    return z / np.sqrt(1 + np.exp(-log_snr_s))


def push(mean, var, step, added):
    """Moments after a step that is affine in x and then adds independent noise of variance `added`."""
    slope = step(1.0) - step(0.0)
    return step(mean), slope**2 * var + added


def edm_moments(rho, m, v, amount, low, high, noise, heun):
    """Algorithm 2 of Karras et al. 2022, with rho_hat at most rho[0], for one Gaussian: moments after sigmas rho [N + 1].

    It starts from N(0, rho[0]^2); the last rho may be 0, and then the moments are those of the data's estimate.
    """
    mean, var = 0.0, rho[0] ** 2

    def denoised(x, at):
        return m + v / (v + at**2) * (x - m)

    for now, after in itertools.pairwise(rho):
        gamma = min(amount / (len(rho) - 1), np.sqrt(2) - 1) if low <= now <= high else 0.0
        hat = min(now + gamma * now, rho[0])
        var += noise**2 * (hat**2 - now**2)

        def step(x, hat=hat, after=after):
            d = (x - denoised(x, hat)) / hat
            x_next = x + (after - hat) * d
            if heun and after > 0:
                x_next = x + (after - hat) * (d + (x_next - denoised(x_next, after)) / after) / 2
            return x_next

        mean, var = push(mean, var, step, 0.0)
    return mean, var


def euler_ancestral_moments(rho, m, v, eta, noise):
    """Moments that k-diffusion's sample_euler_ancestral ends with for one Gaussian, in its own variables."""
    mean, var = 0.0, rho[0] ** 2
    for now, after in itertools.pairwise(rho):
        up = min(after, eta * np.sqrt(after**2 * (now**2 - after**2) / now**2))
        down = np.sqrt(after**2 - up**2)

        def step(x, now=now, down=down):
            return x + (x - m - v / (v + now**2) * (x - m)) / now * (down - now)

        mean, var = push(mean, var, step, (noise * up) ** 2)
    return mean, var


def sde_multistep_moments(alpha, sigma, m, v, points=4000):
    """Mean and variance at the end of the second-order multistep SDE solver for one Gaussian; levels [N + 1], last (1, 0).

    dx/dlambda's exact solution x_s = (sigma_s / sigma_t) e^-h x_t + 2 alpha_s int e^(-2 (lambda_s - l)) x0(l) dl + noise, with
    x0(l) on the line through its last two values, integrated by the midpoint rule; the first and last steps hold x0.
    """
    lam = np.log(alpha[:-1] / sigma[:-1])
    # moments of (x, the x0 before): mean [2] and covariance [2, 2]
    mean, cov = np.zeros(2), np.diag([1.0, 0.0])
    for i in range(len(lam)):
        slope = alpha[i] * v / (alpha[i] ** 2 * v + sigma[i] ** 2)
        x0 = np.array([slope, 0.0]), m * (1 - slope * alpha[i])  # as a row and a constant
        if i == len(lam) - 1:
            row, constant, added = *x0, 0.0
        else:
            h = lam[i + 1] - lam[i]
            u = h * (np.arange(points) + 0.5) / points
            kernel = 2 * alpha[i + 1] * np.exp(-2 * (h - u)) * h / points
            share = np.zeros(points) if i == 0 else u / (lam[i] - lam[i - 1])
            now, before = np.sum(kernel * (1 + share)), -np.sum(kernel * share)
            row = now * x0[0] + np.array([sigma[i + 1] / sigma[i] * np.exp(-h), before])
            constant, added = now * x0[1], sigma[i + 1] ** 2 * (1 - np.exp(-2 * h))
        matrix = np.stack([row, x0[0]])
        mean = matrix @ mean + np.array([constant, x0[1]])
        cov = matrix @ cov @ matrix.T + np.diag([added, 0.0])
    return mean[0], cov[0, 0]


def power_weights(num_updates, num_steps, width):
    """Weights of the parameters of every step in a power function's average after num_updates, by its recursion, [num_steps].

    Gamma of a width by bisection of the variance of the density (gamma + 1) k^gamma on [0, 1], from its first two moments.
    """
    low, high = 0.0, 1e4
    for _ in range(200):
        gamma = (low + high) / 2
        variance = (gamma + 1) / (gamma + 3) - ((gamma + 1) / (gamma + 2)) ** 2
        low, high = (gamma, high) if variance > width**2 else (low, gamma)
    weights = np.zeros(num_steps)
    for n in range(1, num_updates + 1):
        kept = (1 - 1 / n) ** (gamma + 1)
        weights *= kept
        weights[n - 1] = 1 - kept
    return weights


def linear_gaussian(w, variance, x):
    """Posterior mean, its diagonal standard deviation and log p(x) of x = W z + noise, W with orthogonal columns.

    Probabilistic PCA, Tipping & Bishop 1999, section 3.2: posterior M^-1 W^T x, sigma^2 M^-1, M = W^T W + sigma^2 I.
    """
    m = w.T @ w + variance * np.eye(w.shape[1])
    covariance = w @ w.T + variance * np.eye(len(w))
    quadratic = np.einsum("bi,ij,bj->b", x, np.linalg.inv(covariance), x)
    evidence = -0.5 * (quadratic + np.linalg.slogdet(2 * np.pi * covariance)[1])
    return x @ w @ np.linalg.inv(m), np.sqrt(variance / np.diag(m)), evidence
