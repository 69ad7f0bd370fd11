"""DEIS: eps extrapolated by a polynomial, the rest integrated exactly (Zhang & Chen 2022, arXiv 2204.13902)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ddpm_jax.samplers import base, multistep
from ddpm_jax.schedules import Array, Level

VARIABLES = ("log_rho", "rho")


def deis(order: int = 3, variable: str = "log_rho", lower_order_final: bool = False) -> base.Sampler:
    """AB-DEIS (Eq. 14 of the paper): a polynomial through the last values of eps.

        x_s / alpha_s = x_t / alpha_t + sum_j C_j eps_j,    C_j = integral of l_j d rho from rho_t to rho_s

    with rho = sigma / alpha and l_j Lagrange's polynomials, in log rho or in rho; Gauss-Legendre's rule with 24 points
    gives the integrals to rounding. In log rho it is also the multistep DPM-Solver for eps; in rho, and of order 4, it is
    what k-diffusion names LMS.

    One network call a step. Order 1 is DDIM. The first steps are of the lower order that their history allows, and
    of order 1 those next to alpha = 0, from sigma = 0, or in log rho to sigma = 0. Grids go one way, either way.

    Args:
        order: 1 to 4: the degree of the polynomial, plus 1.
        variable: "log_rho" or "rho": what it is a polynomial in.
        lower_order_final: Whether the last steps are of order ..., 2, 1, which is steadier with few steps.

    Returns:
        The Sampler.

    Raises:
        ValueError: an unknown order or variable.
    """
    if order not in (1, 2, 3, 4):
        raise ValueError(f"order: expected 1, 2, 3 or 4, received {order}")
    if variable not in VARIABLES:
        raise ValueError(f"variable: expected one of {VARIABLES}, received {variable!r}")

    def plan(levels: Level) -> multistep.Coefficients:
        base.check_num_steps(levels, order, "deis")
        base.check_monotone(levels, "deis")
        t, s = base.endpoints(levels)
        lam = multistep.half_log_snr(levels)
        xp = multistep.namespace(lam)
        reached = multistep.orders(levels, order, lower_order_final, end_too=variable == "rho")[:, None]
        weights = xp.zeros((len(reached), order))
        for k in range(2, order + 1):
            integrals = lagrange_integrals(xp, lam, k, variable)
            weights = weights + xp.where(reached == k, xp.pad(integrals, ((0, 0), (0, order - k))), 0.0)
        weights = s.alpha[:, None] * weights
        # C_0 is what is left of their sum, rho_s - rho_t, so x_s is DDIM's plus multiples of eps_j - eps_0
        return multistep.multistep(t, 0 * s.alpha, weights[:, 1:], s.alpha, s.sigma - weights[:, 1:].sum(1), "eps", 0 * s.alpha)

    return multistep.linear_method(plan, order - 1)


def lagrange_integrals(xp: Any, lam: Array, order: int, variable: str) -> Array:
    """C_j of every step, [N, order], for lambda = -log rho at the levels [N + 1]."""
    nodes, node_weights = np.polynomial.legendre.leggauss(24)
    u = -lam if variable == "log_rho" else xp.exp(-lam)
    width = (u[1:] - u[:-1])[:, None]
    points = u[:-1, None] + width * (1 + nodes[None]) / 2
    measure = width * node_weights[None] / 2 * (xp.exp(points) if variable == "log_rho" else 1.0)
    past = [multistep.delayed(u[:-1], j)[:, None] for j in range(order)]
    basis = []
    for j in range(order):
        others = [m for m in range(order) if m != j]
        apart = [xp.where(past[j] == past[m], 1.0, past[j] - past[m]) for m in others]  # equal before the first step
        basis.append(math.prod(((points - past[m]) / a for m, a in zip(others, apart, strict=True)), start=xp.ones((1, 1))))
    return xp.stack([(b * measure).sum(1) for b in basis], axis=1)
