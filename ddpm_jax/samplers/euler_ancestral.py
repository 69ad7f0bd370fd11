"""Euler ancestral: Euler's step to a level less noisy than s, then noise up to s (Crowson's k-diffusion, 2022)."""

from __future__ import annotations

from ddpm_jax.samplers import base
from ddpm_jax.samplers.multistep import Coefficients, multistep
from ddpm_jax.schedules import Level


@base.picklable
def euler_ancestral(eta: float = 1.0, noise: float = 1.0) -> base.Sampler:
    """The sampler that k-diffusion calls sample_euler_ancestral, in x / alpha and rho = sigma / alpha.

        x_s / alpha_s = x_t / alpha_t + (down - rho_t) eps + up * noise
        up = min(rho_s, eta rho_s sqrt(1 - rho_s^2 / rho_t^2)),    down = sqrt(rho_s^2 - up^2)

    With noise = 1 and eta up to 1 it is DDIM with that eta. One network evaluation per step; stochastic unless eta is 0.
    Grids go towards the data.

    Args:
        eta: 0: deterministic; 1: ancestral sampling; at least 0.
        noise: Scale of the added noise (k-diffusion's s_noise), about 1.

    Returns:
        The Sampler.

    Raises:
        ValueError: eta or noise below 0.
    """
    if not 0 <= eta < float("inf"):
        raise ValueError(f"eta: expected a finite number of at least 0, received {eta}")
    if not noise >= 0:
        raise ValueError(f"noise: expected at least 0, received {noise}")

    def plan(levels: Level) -> Coefficients:
        base.check_decreasing(levels, "euler_ancestral")
        t, s, r = base.ratios(levels)  # r = rho_s / rho_t
        xp = r.__array_namespace__()
        rho_s = s.sigma / s.alpha
        up = xp.minimum(rho_s, eta * rho_s * (1 - r**2) ** 0.5)
        down = (rho_s**2 - up**2) ** 0.5
        # x_t / alpha_t - rho_t eps = x0, which is finite also at alpha_t = 0
        none = xp.zeros((len(r), 0))
        return Coefficients(t, x=0 * r, x0=s.alpha, eps=s.alpha * down, past=none, std=noise * s.alpha * up)

    return multistep(plan, "eps", num_past=0, order=1, stochastic=eta > 0 and noise > 0)
