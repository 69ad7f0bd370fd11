"""Euler ancestral: Euler's step to a level less noisy than s, then noise up to s (Crowson's k-diffusion, 2022)."""

from __future__ import annotations

from ddpm_jax.samplers import base, multistep
from ddpm_jax.schedules import Level


def euler_ancestral(eta: float = 1.0, noise: float = 1.0) -> base.Sampler:
    """The sampler that k-diffusion names sample_euler_ancestral, in x / alpha and rho = sigma / alpha.

        x_s / alpha_s = x_t / alpha_t + (down - rho_t) eps + up * noise
        up = min(rho_s, eta rho_s sqrt(1 - rho_s^2 / rho_t^2)),    down = sqrt(rho_s^2 - up^2)

    With noise = 1 and eta up to 1 it is DDIM with that eta. One network call a step; stochastic unless eta is 0. Grids go
    towards the data.

    Args:
        eta: The share of noise that is drawn anew, at least 0.
        noise: The scale of what is drawn (k-diffusion's s_noise), about 1.

    Returns:
        The Sampler.

    Raises:
        ValueError: eta or noise below 0.
    """
    if not eta >= 0:
        raise ValueError(f"eta: expected at least 0, received {eta}")
    if not noise >= 0:
        raise ValueError(f"noise: expected at least 0, received {noise}")

    def plan(levels: Level) -> multistep.Coefficients:
        base.check_decreasing(levels, "euler_ancestral")
        t, s, _, gain = base.ratios(levels)
        xp = multistep.namespace(gain)
        up = xp.minimum(1.0, eta * gain**0.5)  # in units of rho_s
        eps = s.sigma * (1 - up**2) ** 0.5
        nothing = 0 * s.alpha
        return multistep.multistep(t, nothing, nothing[:, None][:, :0], s.alpha, eps, "eps", noise * s.sigma * up)

    return multistep.linear_method(plan, 0, stochastic=eta > 0 and noise > 0)
