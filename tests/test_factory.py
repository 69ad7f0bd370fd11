import dataclasses
from typing import get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import config, factory, samplers
from ddpm_jax.cli import UsageError
from ddpm_jax.config import Diffusion, Loss, Sample
from ddpm_jax.denoiser import make_denoise

NAMES = {
    "schedule": get_args(get_type_hints(Diffusion)["schedule"]),
    "weighting": get_args(get_type_hints(Loss)["weighting"]),
}


@pytest.mark.parametrize("grid", get_args(config.Grid))
@pytest.mark.parametrize("method", get_args(config.Method))
def test_every_sampler_on_every_grid(method, grid):
    """Data at one point, known to the model: all of them end there."""
    diffusion = Diffusion()
    schedule = factory.make_schedule(diffusion)
    sample = Sample(sampler=method, grid=grid, steps=6)
    sampler, levels = factory.make_sampler(sample, diffusion, schedule), factory.make_levels(sample, diffusion, schedule)
    denoise = make_denoise(schedule, lambda x, t: jnp.full_like(x, 0.3), "x0")
    x = samplers.sample(jax.random.key(0), sampler, denoise, levels, (2, 4))
    np.testing.assert_allclose(x, 0.3, atol=1e-4)


@pytest.mark.parametrize("name", NAMES["schedule"])
@pytest.mark.parametrize("zero", [False, True])
def test_every_schedule(name, zero):
    schedule = factory.make_schedule(Diffusion(schedule=name, num_steps=50, zero_terminal_snr=zero, beta_end=0.3))
    assert schedule.num_steps == 50
    assert np.all(np.diff(schedule.alpha_bar) < 0)
    assert (schedule.alpha_bar[-1] == 0) == (zero or name == "jsd")


@pytest.mark.parametrize("diffusion", [Diffusion(prediction="mean"), Diffusion(variance="learned_raw")])
def test_models_of_whole_times_refuse_fractional_ones(diffusion):
    schedule = factory.make_schedule(diffusion)
    with pytest.raises(UsageError, match="expected whole times"):
        factory.make_levels(Sample(grid="karras", steps=10), diffusion, schedule)
    assert len(factory.make_levels(Sample(steps=10), diffusion, schedule).t) == 11


def test_a_network_that_learns_its_variance_has_twice_the_channels():
    base = config.Config(workdir="runs/base")
    learned = dataclasses.replace(base, diffusion=Diffusion(variance="learned"))
    assert factory.make_network(base, (8, 8, 3)).out_channels is None
    assert factory.make_network(learned, (8, 8, 3)).out_channels == 6


@pytest.mark.parametrize("weighting", NAMES["weighting"])
def test_every_weighting_is_a_loss(weighting):
    diffusion = Diffusion()
    of = factory.make_loss(Loss(weighting=weighting), diffusion, factory.make_schedule(diffusion))
    x0, ids, t = jnp.zeros((2, 3)), jnp.arange(2), jnp.array([10, 500])
    loss = of(jax.random.key(0), lambda x, t: jnp.zeros_like(x), x0, ids, t)
    assert loss.shape == (2,)
    assert np.all(loss > 0)
