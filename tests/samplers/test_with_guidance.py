"""Every sampler on every grid under every guidance: compiled, mapped over the grids, and differentiated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampler_checks import KEY, SCHEDULE
from test_every_method import METHODS

from ddpm_jax import guidance, samplers
from ddpm_jax.denoiser import make_denoise
from ddpm_jax.samplers import grids

SPACED = [grids.spaced(SCHEDULE, 6, spacing) for spacing in ("leading", "linspace", "trailing", "quadratic")]
IN_LOG_SNR = [grids.uniform_log_snr(SCHEDULE, 6), grids.karras(SCHEDULE, 6), grids.exponential(SCHEDULE, 6, 2.0)]
GRIDS = jax.tree.map(lambda *a: jnp.stack([jnp.asarray(each, jnp.float32) for each in a]), *SPACED, *IN_LOG_SNR)
LABELS = guidance.interleave(jnp.arange(1, 5), 0)
SCALES = jnp.linspace(0, 3, 4)
NAMES = ["euler churn", "heun", "dpm_solver_pp 2S", "dpm_solver_pp 3M", "unipc 3", "pndm", "dpm_solver_pp 2M SDE", "langevin"]
NAMES += ["analytic_dpm", "inpaint"]  # each way to step, and each table of another shape
MEASURED = guidance.gaussian_likelihood(lambda x0: x0[:, :1], jnp.full((4, 1), 0.3), 0.1)
FURTHER = {
    "interval and rescale": lambda denoise: denoise,
    "classifier": lambda denoise: guidance.classifier(denoise, lambda x, level: -jnp.sum((x - 0.2) ** 2, axis=1), 0.5),
    "autoguidance": lambda denoise: guidance.autoguidance(denoise, lambda x, level: denoise(0.9 * x, level), 1.5),
    "dps": lambda denoise: guidance.dps(denoise, MEASURED, 0.1),
}


def ends(sampler, further, w, levels):
    """The sum of samples of a network that scales its input by w, and the samples."""

    def predict(x_t, t):
        return 0.7 * jnp.tanh(w * x_t + LABELS[:, None] / 3 + t[:, None] / 1000)

    denoise = make_denoise(SCHEDULE, predict, clip=False)
    guided = guidance.classifier_free(denoise, SCALES, (-6.0, 6.0), rescale=0.7)
    thresholded = guidance.dynamic_threshold(further(guided), limit=2.0)
    x = samplers.sample(KEY, sampler, thresholded, levels, (4, 3))
    return jnp.sum(x**2), x


def assert_runs(sampler, further):
    over_grids = jax.vmap(jax.grad(lambda w, levels: ends(sampler, further, w, levels), has_aux=True), (None, 0))
    gradient, x = jax.jit(over_grids)(0.7, GRIDS)
    assert x.shape == (7, 4, 3)
    assert np.isfinite(x).all() and np.abs(x).max() < 10
    assert np.isfinite(gradient).all() and np.all(gradient != 0)
    assert len(np.unique(np.round(x.reshape(7, -1), 3), axis=0)) == 7, "grids matter"


@pytest.mark.parametrize("name", NAMES)
def test_every_sampler_on_every_grid_guided(name):
    assert_runs(METHODS[name], FURTHER["interval and rescale"])


@pytest.mark.parametrize("name", [name for name in FURTHER if name != "interval and rescale"])
def test_every_guidance_on_every_grid(name):
    assert_runs(samplers.unipc(2), FURTHER[name])
