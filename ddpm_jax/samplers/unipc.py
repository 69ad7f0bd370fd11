"""UniPC: a predictor and a corrector of any order for one network call a step (Zhao et al. 2023, arXiv 2302.04867)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ddpm_jax.samplers import base, multistep
from ddpm_jax.samplers.dpm_solver import psi
from ddpm_jax.schedules import Array, Level

VARIANTS = ("bh1", "bh2")


def unipc(order: int = 3, variant: str = "bh2", corrector: bool = True, lower_order_final: bool = False) -> base.Sampler:
    """UniPC-p, for x0 in lambda = log(alpha / sigma), multistep (Theorem 3.1 and Corollary 3.2).

    Step i first corrects the x that it was given, with the output at that x itself, and then predicts the next:

        x_t <- (sigma_t / sigma_r) x_r + alpha_t (psi1(h') x0_r + B(h') sum_m c_m (x0_m - x0_r) / r_m)      UniC-p
        x_s  = (sigma_s / sigma_t) x_t + alpha_s (psi1(h)  x0_t + B(h)  sum_m a_m (x0_m - x0_t) / r_m)      UniP-p

    where r is the level before t, m runs over earlier outputs (and, in the corrector, the new one), r_m is their distance
    in units of h, and the weights solve sum_m r_m^(n - 1) a_m = n! psi_(n + 1)(h) / B, but for those of a single
    unknown, which are 1/2. With the corrector it is of order p + 1.

    One network call a step; the last x is not corrected, since no call is made there. Steps next to an infinite lambda
    are of order 1, without correction. Grids go one way, either way.

    Args:
        order: p: 1, 2 or 3.
        variant: B(h): "bh1", h; or "bh2", 1 - exp(-h), the better with guidance or many steps.
        corrector: Whether to correct.
        lower_order_final: Whether the last steps are of order ..., 2, 1, which is steadier with few steps.

    Returns:
        The Sampler.

    Raises:
        ValueError: an unknown order or variant.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"order: expected 1, 2 or 3, received {order}")
    if variant not in VARIANTS:
        raise ValueError(f"variant: expected one of {VARIANTS}, received {variant!r}")

    def plan(levels: Level) -> multistep.Coefficients:
        base.check_num_steps(levels, order, "unipc")
        base.check_monotone(levels, "unipc")
        t, s = base.endpoints(levels)
        lam = multistep.half_log_snr(levels)
        xp, h = multistep.namespace(lam), lam[1:] - lam[:-1]
        reached = multistep.orders(levels, order, lower_order_final)
        finite = (t.alpha > 0) & (t.sigma > 0) & (s.alpha > 0) & (s.sigma > 0)
        noisy = t.sigma > 0
        x_scale = xp.where(noisy, s.sigma / xp.where(noisy, t.sigma, 1.0), 0.0)[:, None]
        predict, correct = (
            s.alpha[:, None] * outputs(xp, h, xp.where(noisy, reached, 0), order, variant, new) for new in (False, True)
        )
        # the correction made in step i is of the interval before it: columns x, x before, outputs 0..p
        correct = xp.concatenate([0 * x_scale, x_scale, correct[:, : order + 1]], axis=1)
        corrects = xp.concatenate([xp.zeros(1, bool), finite[:-1] & corrector])[:, None]
        correct = xp.where(corrects, multistep.delayed(correct), np.eye(order + 3)[:1])
        predict = xp.concatenate([0 * x_scale, 0 * x_scale, predict[:, 1 : order + 1], 0 * x_scale], axis=1)
        # a row's columns: x, kept (x before, outputs 1..p), output 0, and eps, which is not used
        rows = [
            xp.concatenate([a[:, :2], a[:, 3:], a[:, 2:3], 0 * x_scale], axis=1) for a in (x_scale * correct + predict, correct)
        ]
        matrix = xp.stack([*rows, *multistep.shifted(xp, len(h), order, "x0", num_before=2)], axis=1)
        return multistep.Coefficients(t, matrix, 0 * h)

    return multistep.linear_method(plan, 1 + order)


def outputs(xp: Any, h: Array, reached: Array, order: int, variant: str, new: bool) -> Array:
    """Weights [N, 1 + order] of the outputs (new, at t, one before, ...) in the update of x, without alpha_s.

    Args:
        xp: numpy or jax.numpy.
        h: Steps in lambda [N].
        reached: Order of each step [N], 0 for a step that starts at the clean end, where x is x0.
        order: The largest of them.
        variant: "bh1" or "bh2".
        new: Whether the output at the step's end is known, as it is to the corrector.

    Returns:
        The weights.
    """
    psi1 = psi(xp, h, 1)[0][:, None]
    at_t = np.eye(1 + order)[1:2]
    weights = xp.where((reached == 0)[:, None], 1.0, psi1) * at_t
    for k in range(1, order + 1):
        distances = [-sum(multistep.delayed(h, j + 1) for j in range(m)) / h for m in range(1, k)]
        distances, used = ([1 + 0 * h, *distances], [0, *range(2, k + 1)]) if new else (distances, range(2, k + 1))
        if not distances:
            continue
        rho = solve(xp, h, xp.stack(distances, axis=1), variant) / xp.stack(distances, axis=1)
        change = sum(rho[:, i : i + 1] * (np.eye(1 + order)[j : j + 1] - at_t) for i, j in enumerate(used))
        weights = weights + xp.where((reached == k)[:, None], change, 0.0)
    return weights


def solve(xp: Any, h: Array, distances: Array, variant: str) -> Array:
    """B(h) a_m as `unipc` has them, [N, M], for differences at the given distances [N, M] in units of h."""
    num = distances.shape[1]
    psis = psi(xp, h, num + 1)
    scale = h if variant == "bh1" else psis[0]
    if num == 1:
        return (scale / 2)[:, None]
    powers = xp.stack([distances**n for n in range(num)], axis=1)
    right = xp.stack([math.factorial(n) * psis[n] for n in range(1, num + 1)], axis=1)
    return xp.linalg.solve(powers, right[..., None])[..., 0]
