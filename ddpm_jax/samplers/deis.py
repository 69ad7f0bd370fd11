"""DEIS: eps extrapolated by a polynomial, the rest integrated exactly (Zhang & Chen 2022, arXiv 2204.13902)."""

from __future__ import annotations

import math

import numpy as np

from ddpm_jax.samplers import base
from ddpm_jax.samplers.multistep import Coefficients, delayed, half_log_snr, multistep, orders
from ddpm_jax.schedules import Array, Level

VARIABLES = ("log_rho", "rho")


@base.picklable
def deis(order: int = 3, variable: str = "log_rho", lower_order_final: bool = False) -> base.Sampler:
    """AB-DEIS (Eq. 14 of the paper): a polynomial through the last values of eps.

        x_s / alpha_s = x_t / alpha_t + sum_j C_j eps_j,    C_j = integral of l_j d rho from rho_t to rho_s

    with rho = sigma / alpha, eps_j the output j steps before, and l_j Lagrange's polynomials in log rho or in rho; a
    Gauss-Legendre rule of 24 points gives the integrals to rounding error. In log rho, order 1 is DDIM (as it is in rho), and
    order 2 is the multistep DPM-Solver-2 for eps in its "heun" form. In rho, order 4 is the LMS sampler of k-diffusion.

    One network evaluation per step. The first steps have the lower order that the steps before them allow, and those next to
    alpha = 0, from sigma = 0, or in log rho to sigma = 0 have order 1. `order` is that of the formula: the first step, of
    order 1, leaves an error that falls with order 2, and in the end so does the whole method's. That error is small if the
    grid starts at nearly pure noise. Grids are monotone, in either direction.

    Args:
        order: 1 to 4: the degree of the polynomial, plus 1.
        variable: "log_rho" or "rho": the polynomial's variable.
        lower_order_final: Whether the last steps have orders ..., 2, 1, which is more stable with few steps.

    Returns:
        The Sampler.

    Raises:
        ValueError: an unknown order or variable.
    """
    if order not in (1, 2, 3, 4):
        raise ValueError(f"order: expected 1, 2, 3 or 4, received {order}")
    if variable not in VARIABLES:
        raise ValueError(f"variable: expected one of {VARIABLES}, received {variable!r}")

    def plan(levels: Level) -> Coefficients:
        base.check_num_steps(levels, order, "deis")
        base.check_monotone(levels, "deis")
        t, s = base.endpoints(levels)
        xp = t.alpha.__array_namespace__()
        lam = half_log_snr(levels)

        # C_1, C_2, ... of the order that each step can have; at order 1 there are none
        reached = orders(levels, order, lower_order_final, end_too=variable == "rho")[:, None]
        c = xp.zeros((len(reached), order - 1))
        for k in range(2, order + 1):
            c_k = lagrange_integrals(lam, k, variable)[:, 1:]
            c = xp.where(reached == k, xp.pad(c_k, ((0, 0), (0, order - k))), c)

        # the l_j sum to 1, and so the C_j to rho_s - rho_t: x_s = alpha_s x0 + sigma_s eps + alpha_s sum_j C_j (eps_j - eps)
        past = s.alpha[:, None] * c
        zero = 0 * s.alpha
        return Coefficients(t, x=zero, x0=s.alpha, eps=s.sigma - past.sum(1), past=past, std=zero)

    return multistep(plan, "eps", order - 1, order)


def lagrange_integrals(lam: Array, order: int, variable: str) -> Array:
    """C_j of every step, [N, order], for lambda = -log rho at the levels [N + 1]."""
    # the variable of the polynomials at the levels, and d rho = (d rho / du) du
    xp = lam.__array_namespace__()
    u = -lam if variable == "log_rho" else xp.exp(-lam)
    drho_du = xp.exp if variable == "log_rho" else xp.ones_like

    # Gauss-Legendre nodes and weights [N, 24], from u_t to u_s
    nodes, weights = np.polynomial.legendre.leggauss(24)
    width = (u[1:] - u[:-1])[:, None]
    at = u[:-1, None] + width * (1 + nodes[None]) / 2
    drho = drho_du(at) * width * weights[None] / 2

    # l_j(u) = product over m != j of (u - u_m) / (u_j - u_m), with u_j the level j steps before
    past = [delayed(u[:-1], j)[:, None] for j in range(order)]
    integrals = []
    for j in range(order):
        factors = [(at - past[m]) / nonzero(past[j] - past[m]) for m in range(order) if m != j]
        integrals.append((math.prod(factors, start=xp.ones((1, 1))) * drho).sum(1))
    return xp.stack(integrals, axis=1)


def nonzero(a: Array) -> Array:
    """a, with 1 instead of 0: before the first step `delayed` repeats its level, which no step then uses."""
    xp = a.__array_namespace__()
    return xp.where(a == 0, 1.0, a)
