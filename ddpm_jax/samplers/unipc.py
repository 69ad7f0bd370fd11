"""UniPC: predictor-corrector of any order with one network evaluation per step (Zhao et al. 2023, arXiv 2302.04867)."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import numpy as np

from ddpm_jax.denoiser import Denoise
from ddpm_jax.samplers import base
from ddpm_jax.samplers.dpm_solver import psi
from ddpm_jax.samplers.multistep import append, delayed, half_log_snr, no_past, orders, weighted_sum
from ddpm_jax.schedules import Array, Level, safe_divide

VARIANTS = ("bh1", "bh2")


class Coefficients(NamedTuple):
    """Those of the two equations, one row per step.

        x_t <- c.keep x_t + c.before x_r + c.new x0_t + sum_m c.old[m] x0_m      (UniC)
        x_s = c.x x_t + c.x0 x0_t + sum_m c.past[m] x0_m                         (UniP)

    Attributes:
        level: The level at which the network is evaluated, each [N].
        keep, before, new, x, x0: [N].
        old: [N, p], the newest first.
        past: [N, p - 1], the newest first.
    """

    level: Level
    keep: Array
    before: Array
    new: Array
    old: Array
    x: Array
    x0: Array
    past: Array


@base.picklable
def unipc(order: int = 3, variant: str = "bh2", corrector: bool = True, lower_order_final: bool = False) -> base.Sampler:
    """UniPC-p, for x0 in lambda = log(alpha / sigma), multistep (Theorem 3.1 and Corollary 3.2).

    Each step first corrects its x_t, given the output x0_t at the uncorrected one, and then predicts x_s:

        x_t <- (sigma_t / sigma_r) x_r + alpha_t (psi1(h') x0_r + B(h') sum_m a'_m (x0_m - x0_r) / r'_m)     UniC-p
        x_s  = (sigma_s / sigma_t) x_t + alpha_s (psi1(h)  x0_t + B(h)  sum_m a_m (x0_m - x0_t) / r_m)       UniP-p

    where r is the level before t, m runs over earlier outputs (in UniC also x0_t), and r_m = (lambda_m - lambda_t) / h; a prime
    marks the step from r. The paper's R_p a_p = phi_p / B is sum_m r_m^(n - 1) a_m = n! psi_(n + 1)(h) / B(h), n = 1, 2, ...; a
    single a_m is 1/2. With the corrector the method is of order p + 1.

    One network evaluation per step; the last x is not corrected, since that would need another. Steps next to an infinite
    lambda have order 1 and no correction. Grids are monotone, in either direction.

    Args:
        order: p: 1, 2 or 3.
        variant: B(h): "bh1", h; or "bh2", 1 - exp(-h), which is better with guidance or with many steps.
        corrector: Whether to correct.
        lower_order_final: Whether the last steps have orders ..., 2, 1, which is more stable with few steps.

    Returns:
        The Sampler.

    Raises:
        ValueError: an unknown order or variant.
    """
    if order not in (1, 2, 3):
        raise ValueError(f"order: expected 1, 2 or 3, received {order}")
    if variant not in VARIANTS:
        raise ValueError(f"variant: expected one of {VARIANTS}, received {variant!r}")

    def plan(levels: Level) -> Coefficients:
        base.check_num_steps(levels, order, "unipc")
        base.check_monotone(levels, "unipc")
        t, s = base.endpoints(levels)
        xp = t.alpha.__array_namespace__()
        lam = half_log_snr(levels)
        h = lam[1:] - lam[:-1]
        reached = orders(levels, order, lower_order_final)[:, None]
        x = safe_divide(s.sigma, t.sigma)

        # UniP: weights of (x0_t, x0 one step before, ...); at the clean end x_t is x0, and x_s = alpha_s x0
        predict = updates(h, reached, order, variant, new=False)
        predict = s.alpha[:, None] * xp.where(t.sigma[:, None] > 0, predict, np.eye(order)[:1])

        # UniC, over the same step: weights of (x0_s, x0_t, x0 one step before, ...)
        correct = s.alpha[:, None] * updates(h, reached, order, variant, new=True)

        # x_s is corrected at the next step, if lambda is finite at both ends
        finite = (t.alpha > 0) & (t.sigma > 0) & (s.alpha > 0) & (s.sigma > 0) & corrector
        corrects = xp.concatenate([xp.zeros(1, bool), finite[:-1]])
        correct = xp.where(corrects[:, None], delayed(correct), 0.0)
        return Coefficients(
            t,
            keep=xp.where(corrects, 0.0, 1.0), before=xp.where(corrects, delayed(x), 0.0),
            new=correct[:, 0], old=correct[:, 1:],
            x=x, x0=predict[:, 0], past=predict[:, 1:],
        )  # fmt: skip

    def init(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        (x_before,) = no_past(x, 1)
        return x_before, no_past(x, order)

    def step(keys: jax.Array | None, denoise: Denoise, x: jax.Array, state: tuple, c: Coefficients):
        x_before, past = state
        denoised = denoise(x, c.level)
        # UniC: correct x_t
        x_t = c.keep * x + c.before * x_before + c.new * denoised.x0 + weighted_sum(c.old, past)
        # UniP: predict x_s
        x_s = c.x * x_t + c.x0 * denoised.x0 + weighted_sum(c.past, past[:-1])
        return x_s, (x_t, append(denoised.x0, past)), denoised

    return base.Sampler(plan, init, step, order + corrector)


def updates(h: Array, reached: Array, order: int, variant: str, new: bool) -> Array:
    """psi1(h) x0_t + B(h) sum_m a_m (x0_m - x0_t) / r_m, as weights of the outputs, of the order that each step can have.

    Args:
        h: Steps in lambda [N].
        reached: The order of each step [N, 1].
        order: The largest of them.
        variant: "bh1" or "bh2".
        new: Whether the output x0_s at the step's end is known, as it is to the corrector.

    Returns:
        Weights [N, order] of (x0_t, x0 one step before, ...); with `new`, [N, 1 + order] of (x0_s, x0_t, ...).
    """
    xp = h.__array_namespace__()
    weights = update(h, 1, order, variant, new)
    for p in range(2, order + 1):
        weights = xp.where(reached == p, update(h, p, order, variant, new), weights)
    return weights


def update(h: Array, p: int, order: int, variant: str, new: bool) -> Array:
    """The weights of `updates` if every step has order p."""
    xp = h.__array_namespace__()
    outputs = np.eye(new + order)[:, None]  # weights [1, new + order] of each output
    x0_t, before = outputs[int(new)], outputs[new + 1 :]

    # D_m = x0_m - x0_t at r_m = (lambda_m - lambda_t) / h
    r = [-sum(delayed(h, j) for j in range(1, m + 1)) / h for m in range(1, p)]
    d = [before[m - 1] - x0_t for m in range(1, p)]
    if new:
        r, d = [*r, xp.ones_like(h)], [*d, outputs[0] - x0_t]

    psi1 = psi(h, 1)[0][:, None]
    if not r:
        return psi1 * x0_t
    b_a = scaled_coefficients(h, xp.stack(r, axis=1), variant)
    return psi1 * x0_t + sum(b_a[:, m : m + 1] * d[m] / r[m][:, None] for m in range(len(r)))


def scaled_coefficients(h: Array, r: Array, variant: str) -> Array:
    """B(h) a_m as in `unipc`, [N, M], for differences at r [N, M]; B cancels unless M = 1."""
    xp = h.__array_namespace__()
    num = r.shape[1]
    psis = psi(h, num + 1)
    if num == 1:
        b = h if variant == "bh1" else psis[0]
        return b[:, None] / 2
    vandermonde = xp.stack([r ** (n - 1) for n in range(1, num + 1)], axis=1)
    right = xp.stack([math.factorial(n) * psis[n] for n in range(1, num + 1)], axis=1)
    return xp.linalg.solve(vandermonde, right[..., None])[..., 0]
