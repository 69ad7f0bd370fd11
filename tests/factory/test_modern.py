"""Flow matching, EDM and DiT from a config: each against the library's own call."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import config, factory, losses, networks, preconditioning, schedules
from ddpm_jax.config import Config, Diffusion, Loss, Sample
from ddpm_jax.config.cli import UsageError

FLOW = Diffusion(schedule="flow", prediction="flow")
EDM = Diffusion(schedule="flow", prediction="edm", sigma_data=0.7)


def network(x, t):
    return jnp.sin(x) + t[:, None]


def test_the_edm_loss_is_that_of_the_library_at_the_level_of_t():
    x0, ids, t = jnp.linspace(-1, 1, 6).reshape(2, 3), jnp.arange(2), jnp.array([0.2, 0.8])
    loss = factory.make_loss(Loss(), EDM, factory.make_schedule(EDM))(jax.random.key(0), network, x0, ids, t)
    expected = losses.edm(jax.random.key(0), network, x0, 0.7, ids=ids, sigma=t / (1 - t))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_an_edm_model_is_preconditioned_then_clipped():
    made, schedule = Config(workdir="", diffusion=EDM), schedules.flow()
    x_t, level = jnp.linspace(-2, 2, 6).reshape(2, 3), schedule.level(0.4)

    class Network:
        def apply(self, params, x, t):
            return network(x, t)

    expected = preconditioning.edm(network, 0.7)(x_t, level)
    for clip in (False, True):
        denoised = factory.bind(made, Network(), schedule, {}, clip)(x_t, level)
        np.testing.assert_allclose(denoised.x0, jnp.clip(expected.x0, -1, 1) if clip else expected.x0, atol=1e-6)


@pytest.mark.parametrize(("shift", "mean"), [(1.0, -1.2), (3.0, -1.2 + np.log(3))])
def test_log_normal_times_are_those_of_edm_and_of_sd3(shift, mean):
    """log(sigma / alpha) is normal: 4,000 draws, five standard errors. SD3's shift adds log k."""
    diffusion = Diffusion(schedule="flow", prediction="flow", shift=shift)
    schedule = factory.make_schedule(diffusion)
    loss = Loss(times="log_normal", times_mean=-1.2, times_std=1.2)
    memory, draw = factory.make_times(loss, diffusion, schedule, 8)
    t, weights = draw(jax.random.key(0), memory, jnp.arange(4000))
    log_s = -np.asarray(schedule.level(t).log_snr) / 2
    assert abs(log_s.mean() - mean) < 5 * 1.2 / np.sqrt(4000)
    assert abs(log_s.std() - 1.2) < 5 * 1.2 / np.sqrt(8000)
    np.testing.assert_array_equal(weights, 1)


def test_the_grid_of_edm():
    """The first three and the last two of the 18 noise levels of Karras et al. 2022, Eq. 5, from 80 to 0.002."""
    sample = Sample(sampler="heun", steps=18, grid="karras", sigma_range=(0.002, 80.0))
    levels = factory.make_levels(sample, EDM, factory.make_schedule(EDM))
    assert levels.sigma[-1] == 0
    s = (levels.sigma / levels.alpha)[:-1]
    np.testing.assert_allclose(s[[0, 1, 2, -2, -1]], [80, 57.58598472, 40.7855738, 0.00752802, 0.002], rtol=1e-6)


def test_the_options_of_a_dit_reach_it():
    options = config.DiT(width=32, depth=2, num_heads=4, patch=4, num_classes=10, qk_norm=True, dtype="bfloat16")
    made = factory.make_network(Config(workdir="", network=options, diffusion=FLOW), (8, 8, 1))
    assert made == networks.DiT(32, 2, 4, 4, num_classes=11, qk_norm=True, time_scale=1000.0, dtype=jnp.dtype("bfloat16"))
    learned = Config(workdir="", network=options, diffusion=Diffusion(variance="learned"))
    assert (factory.make_network(learned, (8, 8, 1)).out_channels, made.out_channels) == (2, None)
    assert factory.make_network(learned, (8, 8, 1)).time_scale == 1


@pytest.mark.parametrize(
    ("diffusion", "loss", "said"),
    [
        (Diffusion(schedule="flow", shift=0.0), Loss(), "--diffusion.shift: shift: expected a finite number above 0"),
        (Diffusion(schedule="cosine", shift=3.0), Loss(), "--diffusion.shift: expected with --diffusion.schedule flow"),
        (Diffusion(schedule="flow"), Loss(), "--diffusion.prediction: expected v, x0 or flow with --diffusion.schedule flow"),
        (Diffusion(schedule="flow", prediction="mean"), Loss(), "--diffusion.prediction: expected eps, x0, v, score, flow or"),
        (
            Diffusion(schedule="flow", prediction="flow", variance="learned"),
            Loss(kind="hybrid"),
            "--diffusion.variance: expected fixed_small or fixed_large",
        ),
        (
            Diffusion(schedule="flow", prediction="edm", sigma_data=0.0),
            Loss(),
            "--diffusion.sigma_data: sigma_data: expected a finite number above 0, received 0",
        ),
        (Diffusion(prediction="v", sigma_data=0.7), Loss(), "--diffusion.sigma_data: expected with --diffusion.prediction edm"),
        (EDM, Loss(weighting="min_snr"), "--loss: expected kind simple, weighting none, distance l2 with"),
        (Diffusion(prediction="edm", zero_terminal_snr=True), Loss(), "--diffusion.zero_terminal_snr: expected False with"),
        (Diffusion(), Loss(times="log_normal"), "--loss.times: expected another for the discrete schedule linear"),
        (FLOW, Loss(times_mean=-1.2), "--loss.times: expected log_normal with --loss.times_mean"),
        (FLOW, Loss(times="importance"), "--loss.times: expected uniform, stratified or log_normal"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(diffusion, loss, said):
    def make():
        schedule = factory.make_schedule(diffusion)
        factory.make_loss(loss, diffusion, schedule)
        factory.make_times(loss, diffusion, schedule, 8)

    with pytest.raises(UsageError, match=said):
        make()


@pytest.mark.parametrize(
    ("sample", "said"),
    [
        (Sample(sigma_range=(0.002, 80.0)), "--sample.sigma_range: expected with --sample.grid log_snr, karras or exponential"),
        (
            Sample(grid="karras", sigma_range=(80.0, 0.002)),
            "--sample.sigma_range: expected two numbers, 0 < smallest < largest",
        ),
    ],
)
def test_ranges_of_grids_that_do_not_fit_are_refused(sample, said):
    with pytest.raises(UsageError, match=said):
        factory.make_levels(sample, EDM, factory.make_schedule(EDM))


def test_ranges_beyond_those_of_a_schedule_are_refused():
    cosine = Diffusion(schedule="cosine")
    with pytest.raises(UsageError, match=r"--sample.sigma_range: log_snr: expected"):
        factory.make_levels(Sample(grid="karras", sigma_range=(1e-9, 80.0)), cosine, factory.make_schedule(cosine))
