"""The loop outside of jit: compiled once, and with the present values of all that the denoiser closes over."""

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax import samplers, schedules
from ddpm_jax.denoiser import make_denoise
from ddpm_jax.samplers import grids, programs

KEY, SCHEDULE = jax.random.key(0), schedules.linear(1000)
LEVELS, X = grids.spaced(SCHEDULE, 5), jnp.linspace(-1, 1, 12).reshape(4, 3)
COMPILED = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, *_, **__: COMPILED.append(name) if "backend_compile" in name else None
)


def end(scale, x=X):
    denoise = make_denoise(SCHEDULE, lambda x_t, t: scale * jax.nn.relu(x_t), clip=False)
    return samplers.sample(None, samplers.ddim(), denoise, LEVELS, (4, 3), x_init=x)


def test_a_loop_of_calls_compiles_once_also_with_new_parameters():
    scales = [jnp.float32(i / 10) for i in range(5)]
    first, *_ = [end(scale) for scale in scales[:2]]
    before = len(COMPILED)
    found = [end(scale) for scale in scales]
    assert len(COMPILED) == before
    np.testing.assert_array_equal(found[0], first)
    for scale, x in zip(scales, found, strict=True):
        np.testing.assert_allclose(x, jax.jit(end)(scale), rtol=1e-5, atol=1e-5)
    assert len(np.unique(np.stack(found)[:, 3, 2])) == 5


def test_random_samples_in_a_loop_compile_once():
    denoise = make_denoise(SCHEDULE, lambda x_t, t: 0.1 * x_t)
    draw = lambda i: samplers.sample(jax.random.key(i), samplers.ddpm(), denoise, LEVELS, (4, 3))  # noqa: E731
    first = draw(0)
    before = len(COMPILED)
    assert not np.array_equal(draw(1), first)
    np.testing.assert_array_equal(draw(0), first)
    assert len(COMPILED) == before


def test_what_a_denoiser_closes_over_is_read_at_every_call():
    parameters = {"w": jnp.float32(0.1)}
    denoise = make_denoise(SCHEDULE, lambda x_t, t: parameters["w"] * jax.nn.relu(x_t), clip=False)
    before = samplers.sample(None, samplers.ddim(), denoise, LEVELS, (4, 3), x_init=X)
    parameters["w"] = jnp.float32(0.2)
    after = samplers.sample(None, samplers.ddim(), denoise, LEVELS, (4, 3), x_init=X)
    np.testing.assert_array_equal(before, end(jnp.float32(0.1)))
    np.testing.assert_array_equal(after, end(jnp.float32(0.2)))
    assert not np.allclose(before, after)


def test_functions_of_python_are_those_of_the_call():
    def end_on_host(scale):
        host = lambda x: np.float32(scale) * np.asarray(x)  # noqa: E731
        predict = lambda x_t, t: jax.pure_callback(host, jax.typeof(x_t), x_t, vmap_method="sequential")  # noqa: E731
        denoise = make_denoise(SCHEDULE, predict, clip=False)
        return samplers.sample(None, samplers.ddim(), denoise, LEVELS, (4, 3), x_init=X)

    for scale in (0.1, 0.2):
        np.testing.assert_allclose(end_on_host(scale), jax.jit(lambda s=scale: end_on_host(s))(), rtol=1e-5, atol=1e-5)
    assert not np.allclose(end_on_host(0.1), end_on_host(0.2))


def test_no_parameters_are_held():
    parameters = jnp.ones((1, 3))
    end(parameters)
    held = weakref.ref(parameters)
    del parameters
    gc.collect()
    assert held() is None


def test_transformations_around_it_leak_nothing():
    with jax.checking_leaks():
        x = end(0.5)
        np.testing.assert_allclose(jax.jit(end)(0.5), x, rtol=1e-5, atol=1e-5)
        slope = jax.grad(lambda scale: end(scale).sum())(0.5)
    np.testing.assert_allclose(slope, (end(0.501).sum() - end(0.499).sum()) / 0.002, rtol=0.02)


def test_the_precision_is_that_of_the_call():
    before = end(0.5)
    with jax.enable_x64(True):
        x = end(0.5, np.asarray(X, np.float64))
    assert x.dtype == jnp.float64
    np.testing.assert_allclose(x, before, rtol=1e-4, atol=1e-4)


def test_few_programs_are_kept():
    assert programs.first.cache_info().currsize <= programs.MOST
