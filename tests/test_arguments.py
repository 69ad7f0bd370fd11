"""Wrong objects at the public functions: one line, "argument: expected ..., received ..."."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import denoiser, diffusion, guidance, likelihood, losses, samplers, schedules
from ddpm_jax.denoiser import make_denoise
from ddpm_jax.networks import UNet
from ddpm_jax.samplers import grids
from ddpm_jax.schedules import continuous

KEY, SCHEDULE = jax.random.key(0), schedules.linear(1000)
LEVELS, X = grids.spaced(SCHEDULE, 10), jnp.linspace(-1, 1, 12).reshape(4, 3)
UNET = UNet(channels=8)


def predict(x_t, t):
    return x_t * t[:, None] / 1000


DENOISE = make_denoise(SCHEDULE, predict)


def sample(key=KEY, sampler=samplers.ddim(), denoise=DENOISE, levels=LEVELS, shape=(4, 3), **options):  # noqa: B008
    return samplers.sample(key, sampler, denoise, levels, shape, **options)


def of_labels(num):
    return make_denoise(SCHEDULE, lambda x_t, t: x_t * jnp.arange(num)[:, None], clip=False)


MISTAKES = {
    "sampler not called": (lambda: sample(sampler=samplers.ddim), "sampler: expected a Sampler .* the function ddim"),
    "sampler's class": (lambda: sample(sampler=samplers.Sampler), "sampler: expected .* the class Sampler"),
    "denoise and levels swapped": (lambda: sample(denoise=LEVELS, levels=DENOISE), "denoise: expected .* received a Level"),
    "schedule for levels": (lambda: sample(levels=SCHEDULE), "levels: expected a grid .* received a Schedule"),
    "levels of other lengths": (lambda: sample(levels=LEVELS._replace(t=LEVELS.t[1:])), "levels: expected a grid"),
    "predict for denoise": (lambda: sample(denoise=predict), "denoise: expected .* received a Predict"),
    "array for Denoised": (lambda: sample(denoise=lambda x, level: x), r"denoise: expected .* returns float32\[4, 3\]"),
    "network for denoise": (lambda: sample(denoise=UNET), "denoise: expected .* the network UNet without parameters"),
    "network for predict": (lambda: make_denoise(SCHEDULE, UNET), "predict: expected .* the network UNet without parameters"),
    "negative shape": (lambda: sample(shape=(-4, 3)), "shape: expected integers, .* received a tuple"),
    "int for key": (lambda: sample(key=0), "key: expected a typed key .* received 0"),
    "legacy key": (lambda: sample(key=jax.random.PRNGKey(0)), r"key: expected a typed key .* received uint32\[2\]"),
    "two keys": (lambda: sample(key=jax.random.split(KEY)), "key: expected one key"),
    "one size for shape": (lambda: sample(shape=4), "shape: expected integers, .* received 4"),
    "integer x_init": (lambda: sample(x_init=jnp.ones((4, 3), int)), "x_init: expected a floating-point array"),
    "float ids": (lambda: sample(ids=jnp.ones(4)), r"ids: expected integers \[B\]"),
    "schedule and predict swapped": (lambda: make_denoise(predict, SCHEDULE), "schedule: expected .* the function predict"),
    "schedule not called": (lambda: make_denoise(schedules.linear, predict), "schedule: expected .* the function linear"),
    "grid of no schedule": (lambda: grids.spaced(LEVELS, 5), "schedule: expected .* received a Level"),
    "half a step": (lambda: grids.spaced(SCHEDULE, 2.5), "num_steps: expected an integer, received 2.5"),
    "reversed schedule": (lambda: grids.reversed(SCHEDULE), "levels: expected a grid"),
    "integer images": (lambda: samplers.sdedit(KEY, samplers.ddim(), DENOISE, LEVELS, X.astype(int), 0.5), "x0: expected"),
    "sampler in a sampler": (lambda: samplers.inpaint(samplers.ddim, X, X > 0), "sampler: expected a Sampler"),
    "predictor": (lambda: samplers.langevin(samplers.ddim), "predictor: expected a Sampler"),
    "x_t of another shape": (lambda: diffusion.q_posterior(SCHEDULE, X, X[:2], 3), "x_t: expected the shape of x0"),
    "too many times": (lambda: diffusion.q_sample(SCHEDULE, X, np.array([1, 2]), X), "t: expected a scalar or shape"),
    "times of a loss": (lambda: losses.simple(KEY, SCHEDULE, predict, X, t=np.array([1, 2])), "t: expected a scalar or"),
    "loss of integers": (lambda: losses.simple(KEY, SCHEDULE, predict, X.astype(int)), "x0: expected floating-point"),
    "swapped in a loss": (lambda: losses.simple(KEY, predict, SCHEDULE, X), "schedule: expected .* the function predict"),
    "tuple of a network": (lambda: losses.simple(KEY, SCHEDULE, lambda x, t: (x, {}), X), "predict: expected an array"),
    "bound of a predict": (lambda: likelihood.bound(KEY, schedules.linear(5), predict, X), "denoise: .* received a Predict"),
    "guidance of B labels": (
        lambda: guidance.classifier_free(of_labels(4), 2.0)(X, SCHEDULE.level(9)), "denoise: expected .* 2B = 8 .* for B = 4"),
    "labels of another batch": (
        lambda: guidance.conditional(lambda x, t, y: x, jnp.arange(3), 0, 2.0)(X, jnp.zeros(4)), "condition: expected .* 4"),
    "scale of NaN": (lambda: guidance.classifier_free(DENOISE, float("nan")), "scale: expected finite numbers, received nan"),
    "infinite scales": (lambda: guidance.dps(DENOISE, lambda x, level: x, jnp.array([1, jnp.inf])), "scale: expected finite"),
    "no scale": (lambda: guidance.classifier(DENOISE, lambda x, level: x, None), "scale: expected a number .* received None"),
    "no log-probability": (lambda: guidance.classifier(DENOISE, X), "log_prob: expected a function"),
    "traced betas": (lambda: jax.vmap(schedules.from_betas)(jnp.full((3, 10), 0.01)), "betas: expected known values"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_wrong_objects_are_refused_in_one_line(name):
    mistake, expected = MISTAKES[name]
    with pytest.raises((TypeError, ValueError), match=f"^{expected}") as error:
        mistake()
    assert "\n" not in str(error.value)


def test_a_network_that_is_bound_to_its_parameters_is_a_function():
    network, x = UNet(channels=8, multipliers=(1,), num_blocks=1, num_groups=4), jnp.ones((2, 8, 8, 1))
    params = jax.tree.map(lambda a: a + 0.1, network.init(KEY, x, jnp.zeros(2)))
    found, expected = (
        sample(denoise=make_denoise(SCHEDULE, predict), shape=x.shape)
        for predict in (network.bind(params), lambda x_t, t: network.apply(params, x_t, t))
    )
    np.testing.assert_array_equal(found, expected)


def test_an_error_within_a_network_is_its_own():
    def broken(x_t, t):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        sample(denoise=make_denoise(SCHEDULE, broken))
    with pytest.raises(KeyError, match="mine"):
        guidance.classifier_free(make_denoise(SCHEDULE, broken), 2.0)(X, SCHEDULE.level(9))


def test_the_checks_work_where_all_is_traced():
    def everything(key, schedule, x, scale):
        denoise = guidance.classifier_free(make_denoise(schedule, predict, clip=False), scale)
        levels = grids.spaced(schedule, 3, "trailing")
        end = samplers.sample(key, samplers.ddpm(), denoiser.clipped(denoise), levels, x.shape)
        return end, losses.simple(key, schedule, predict, x), diffusion.q_sample(schedule, x, 5, x)

    found = jax.eval_shape(everything, KEY, SCHEDULE, X, 2.0)
    assert [a.shape for a in found] == [(4, 3), (4,), (4, 3)]


def test_a_schedule_may_be_an_argument_of_jit_and_vmap():
    def end(schedule):
        denoise = make_denoise(schedule, predict)
        return samplers.sample(None, samplers.ddim(), denoise, grids.spaced(schedule, 5), (4, 3), x_init=X)

    both = [schedules.linear(100), schedules.cosine(100)]
    mapped = jax.vmap(end)(jax.tree.map(lambda *a: jnp.stack(a), *both))
    for i in range(2):
        np.testing.assert_allclose(jax.jit(end)(both[i]), end(both[i]), atol=1e-5)
        np.testing.assert_allclose(mapped[i], end(both[i]), atol=1e-5)
    with pytest.raises(TypeError, match="schedule: expected known values"):
        jax.jit(lambda schedule: grids.karras(schedule, 5).alpha)(both[0])


def test_starting_from_noise_at_a_level_with_signal_gives_a_warning():
    short = schedules.linear(200)
    with pytest.warns(UserWarning, match=r"levels: expected nearly pure noise .* alpha = 0.37 at t = 196"):
        sample(denoise=make_denoise(short, predict), levels=grids.spaced(short, 50))
    with pytest.warns(UserWarning, match="levels: expected nearly pure noise"):
        jax.jit(lambda key: samplers.sample_path(key, samplers.ddim(), DENOISE, grids.at(SCHEDULE, [99]), (4, 3)))(KEY)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sample(levels=grids.at(SCHEDULE, [99]), x_init=X)
        for schedule in (SCHEDULE, schedules.cosine(1000)):
            sample(levels=grids.spaced(schedule, 20))


@pytest.mark.parametrize("schedule", [schedules.jsd(10), continuous.cosine(-np.inf, np.inf)], ids=["jsd", "continuous"])
def test_eps_without_signal_gives_a_warning(schedule):
    for prediction in ("eps", "score"):
        with pytest.warns(UserWarning, match=f"prediction: expected v, flow or x0 .* received {prediction}"):
            make_denoise(schedule, predict, prediction)
        with pytest.warns(UserWarning, match="prediction: expected v, flow or x0"):
            losses.simple(KEY, schedule, predict, X, prediction)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_denoise(schedule, predict, "v")
        make_denoise(SCHEDULE, predict, "eps")


def test_data_outside_the_range_of_clipping_give_a_warning():
    sdedit = lambda denoise, x: samplers.sdedit(KEY, samplers.ddim(), denoise, LEVELS, x, 0.5)  # noqa: E731
    filled = lambda denoise, x: sample(sampler=samplers.inpaint(samplers.ddim(), x, X > 0), denoise=denoise)  # noqa: E731
    for use, name in ((sdedit, "x0"), (filled, "known")):
        with pytest.warns(UserWarning, match=f"{name}: expected values from -1.0 to 1.0, .* received -3 to 3"):
            use(DENOISE, 3 * X)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            use(DENOISE, X)
            use(make_denoise(SCHEDULE, predict, clip=False), 3 * X)
