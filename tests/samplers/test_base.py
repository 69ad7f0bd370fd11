import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import samplers, schedules
from ddpm_jax.denoiser import make_denoise
from ddpm_jax.networks import UNet
from ddpm_jax.samplers import grids
from ddpm_jax.schedules import Level

SCHEDULE = schedules.linear(1000)
KEY = jax.random.key(0)
METHODS = {
    "ddpm large": samplers.ddpm("fixed_large"),
    "ddpm small": samplers.ddpm("fixed_small"),
    "ddim 0": samplers.ddim(0.0),
    "ddim 0.5": samplers.ddim(0.5),
    "ddim 1": samplers.ddim(1.0),
}
every_method = pytest.mark.parametrize("sampler", METHODS.values(), ids=METHODS.keys())


def predict(x_t, t):
    """Depends on both arguments, per example."""
    return jnp.tanh(x_t + jnp.reshape(t, (-1,) + (1,) * (x_t.ndim - 1)) / 1000)


@every_method
def test_the_scan_is_a_python_loop(sampler):
    levels, shape = grids.spaced(SCHEDULE, 7), (3, 4)
    denoise = make_denoise(SCHEDULE, predict)
    final, path = samplers.sample_path(KEY, sampler, denoise, levels, shape)
    assert path.shape == (7, 3, 4)
    x = hypothetical_start = samplers.base.initial_noise(KEY, levels, shape, jnp.arange(3))
    plan = jax.tree.map(lambda a: jnp.asarray(a), sampler.plan(levels))
    for i in range(7):
        keys = samplers.base.keys.stream(KEY, "noise")
        keys = samplers.base.keys.per_example(jax.random.fold_in(keys, i), jnp.arange(3))
        x, _, _ = sampler.step(keys, denoise, x, sampler.init(x), jax.tree.map(lambda a, i=i: a[i], plan))
        np.testing.assert_allclose(path[i], x, atol=1e-6)
    np.testing.assert_array_equal(final, path[-1])
    assert not np.allclose(final, hypothetical_start)


@every_method
def test_a_sample_does_not_depend_on_its_batch(sampler):
    levels, denoise = grids.spaced(SCHEDULE, 5), make_denoise(SCHEDULE, predict)
    draw = lambda ids: samplers.sample(KEY, sampler, denoise, levels, (len(ids), 3), ids=jnp.asarray(ids))  # noqa: E731
    whole = draw(range(8))
    np.testing.assert_allclose(draw([5]), whole[5:6], atol=1e-6)
    np.testing.assert_allclose(draw([7, 2, 4]), whole[jnp.array([7, 2, 4])], atol=1e-6)
    np.testing.assert_array_equal(whole, samplers.sample(KEY, sampler, denoise, levels, (8, 3)))
    assert len(np.unique(np.asarray(whole).round(4), axis=0)) == 8


def test_a_unet_samples_the_same_images_in_any_batch_size():
    network = UNet(channels=16, multipliers=(1,), num_blocks=1, attention_resolutions=(), num_groups=8)
    shapes = jax.eval_shape(network.init, KEY, jnp.zeros((1, 8, 8, 1)), jnp.zeros((1,), jnp.int32))
    leaves, tree = jax.tree.flatten(shapes)
    random = [0.1 * jax.random.normal(jax.random.key(i), leaf.shape) for i, leaf in enumerate(leaves)]
    denoise = make_denoise(SCHEDULE, lambda x, t: network.apply(jax.tree.unflatten(tree, random), x, t))
    levels = grids.spaced(SCHEDULE, 10)
    draw = jax.jit(lambda ids: samplers.sample(KEY, samplers.ddpm(), denoise, levels, (len(ids), 8, 8, 1), ids=ids))
    whole = draw(jnp.arange(64))
    parts = jnp.concatenate([draw(jnp.arange(i, i + 16)) for i in range(0, 64, 16)])
    np.testing.assert_allclose(parts, whole, atol=1e-5)
    assert np.std(np.asarray(whole), axis=0).min() > 1e-3


@every_method
def test_memory_does_not_grow_with_the_number_of_steps(sampler):
    """Each step's coefficients and key take a few bytes; x takes 64 KiB, and 990 more copies would take 64 MiB."""
    shape = (16, 1024)

    def temporary_bytes(num_steps):
        levels = grids.spaced(SCHEDULE, num_steps)
        draw = jax.jit(lambda key: samplers.sample(key, sampler, make_denoise(SCHEDULE, predict), levels, shape))
        return draw.lower(KEY).compile().memory_analysis().temp_size_in_bytes

    assert temporary_bytes(1000) - temporary_bytes(10) < 990 * 64


@every_method
def test_the_network_is_traced_once_and_not_again_on_the_second_call(sampler):
    traces = []

    def counted(x_t, t):
        traces.append(t)
        return predict(x_t, t)

    levels = grids.spaced(SCHEDULE, 20)
    draw = jax.jit(lambda key: samplers.sample(key, sampler, make_denoise(SCHEDULE, counted), levels, (4, 3)))
    first = draw(KEY)
    assert len(traces) == 1
    np.testing.assert_array_equal(draw(KEY), first)
    assert not np.array_equal(draw(jax.random.key(1)), first)
    assert len(traces) == 1


@every_method
def test_vmap_and_grad(sampler):
    levels = grids.spaced(SCHEDULE, 10)

    def draw(scale, key=KEY):
        denoise = make_denoise(SCHEDULE, lambda x, t: scale * predict(x, t), clip=False)
        return samplers.sample(key, sampler, denoise, levels, (4, 3))

    np.testing.assert_allclose(jax.vmap(draw)(jnp.array([0.5, 0.9]))[1], draw(0.9), rtol=1e-4, atol=1e-5)
    keys = jax.random.split(KEY, 2)
    np.testing.assert_allclose(jax.vmap(lambda k: draw(0.9, k))(keys)[1], draw(0.9, keys[1]), rtol=1e-4, atol=1e-5)
    total = lambda scale: jnp.sum(draw(scale) ** 2)  # noqa: E731
    np.testing.assert_allclose(jax.grad(total)(0.9), (total(0.901) - total(0.899)) / 0.002, rtol=0.02)


@every_method
def test_the_levels_may_be_traced(sampler):
    levels = grids.spaced(SCHEDULE, 10)
    draw = lambda levels: samplers.sample(KEY, sampler, make_denoise(SCHEDULE, predict), levels, (4, 3))  # noqa: E731
    np.testing.assert_allclose(jax.jit(draw)(levels), draw(levels), atol=1e-4)


@every_method
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_dtype_and_shape_are_those_of_the_start(sampler, dtype):
    x_init = jax.random.normal(KEY, (2, 4, 4, 1), dtype)
    x = samplers.sample(KEY, sampler, make_denoise(SCHEDULE, predict), grids.spaced(SCHEDULE, 5), x_init.shape, x_init=x_init)
    assert x.dtype == dtype
    assert x.shape == x_init.shape
    assert np.isfinite(np.asarray(x, np.float32)).all()


def test_the_start_is_noise_at_the_scale_of_the_first_level():
    """200,000 samples: the relative standard error of the standard deviation is 1 / sqrt(400,000) = 0.0016."""
    levels = Level(np.array([9, 0]), np.array([0.6, 1.0]), np.array([2.0, 0.0]))
    x = samplers.base.initial_noise(KEY, levels, (200, 1000), jnp.arange(200))
    assert abs(np.std(x) / np.hypot(0.6, 2.0) - 1) < 4 * 0.0016


def test_keep_decides_what_of_the_path_is_kept():
    levels = grids.spaced(SCHEDULE, 6)
    _, x0 = samplers.sample_path(
        KEY, samplers.ddpm(), make_denoise(SCHEDULE, predict), levels, (2, 3), keep=lambda x, denoised: denoised.x0
    )
    assert x0.shape == (6, 2, 3)
    assert np.abs(x0).max() <= 1


def test_a_missing_key_is_an_error():
    denoise, levels, x = make_denoise(SCHEDULE, predict), grids.spaced(SCHEDULE, 3), jnp.zeros((2, 3))
    samplers.sample(None, samplers.ddim(), denoise, levels, (2, 3), x_init=x)
    with pytest.raises(TypeError, match="key"):
        samplers.sample(None, samplers.ddim(), denoise, levels, (2, 3))
    for stochastic in (samplers.ddpm(), samplers.ddim(1.0)):
        with pytest.raises(TypeError, match="key"):
            samplers.sample(None, stochastic, denoise, levels, (2, 3), x_init=x)


def test_mistakes_are_refused():
    denoise, levels = make_denoise(SCHEDULE, predict), grids.spaced(SCHEDULE, 3)
    with pytest.raises(ValueError, match="x_init"):
        samplers.sample(KEY, samplers.ddim(), denoise, levels, (2, 3), x_init=jnp.zeros((2, 4)))
    with pytest.raises(ValueError, match="ids"):
        samplers.sample(KEY, samplers.ddim(), denoise, levels, (2, 3), ids=jnp.arange(3))
    with pytest.raises(ValueError, match="levels"):
        samplers.sample(KEY, samplers.ddim(), denoise, SCHEDULE.level(3), (2, 3))
    backwards = Level(*(a[::-1] for a in levels))
    for one_way in (samplers.ddpm(), samplers.ddim(0.5)):
        with pytest.raises(ValueError, match="less noisy"):
            samplers.sample(KEY, one_way, denoise, backwards, (2, 3))
