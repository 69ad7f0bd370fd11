"""What every sampler promises, whatever its method; the first ones' promises stand in test_base.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampler_checks import KEY, SCHEDULE

from ddpm_jax import samplers
from ddpm_jax.denoiser import make_denoise
from ddpm_jax.samplers import Churn, grids
from ddpm_jax.schedules import Level

GRID = grids.spaced(SCHEDULE, 8)
KNOWN = jnp.linspace(-1, 1, 12).reshape(4, 3)
MASK = jnp.tile(jnp.array([1.0, 0.0, 0.0]), (4, 1))
CHURN = Churn(2.0)
DETERMINISTIC = {
    "euler": samplers.euler(),
    "heun": samplers.heun(),
    "dpm_solver_pp 1": samplers.dpm_solver_pp(1),
    "dpm_solver_pp 2M": samplers.dpm_solver_pp(2),
    "dpm_solver_pp 3M": samplers.dpm_solver_pp(3, lower_order_final=True),
    "dpm_solver_pp 2S": samplers.dpm_solver_pp_2s(SCHEDULE),
    "unipc 1": samplers.unipc(1),
    "unipc 2": samplers.unipc(2, "bh1"),
    "unipc 3": samplers.unipc(3),
    "deis": samplers.deis(3),
    "deis rho": samplers.deis(2, "rho"),
    "pndm": samplers.pndm(),
}
STOCHASTIC = {
    "euler churn": samplers.euler(SCHEDULE, CHURN),
    "heun churn": samplers.heun(SCHEDULE, CHURN),
    "euler_ancestral": samplers.euler_ancestral(),
    "dpm_solver_pp 2M SDE": samplers.dpm_solver_pp(2, sde=True),
    "langevin": samplers.langevin(samplers.ddpm("fixed_small"), num_corrections=2),
    "analytic_dpm": samplers.analytic_dpm(np.linspace(0.5, 1, 1000)),
    "inpaint": samplers.inpaint(samplers.dpm_solver_pp(2), KNOWN, MASK),
    "repaint": samplers.repaint(samplers.ddpm(), KNOWN, MASK),
}
METHODS = DETERMINISTIC | STOCHASTIC
CALLS = {"heun": 2, "heun churn": 2, "dpm_solver_pp 2S": 2, "langevin": 2}  # times that a step's network is traced
BOUND = ("inpaint", "repaint")  # to four known examples
every_method = pytest.mark.parametrize("name", METHODS)


def predict(x_t, t):
    """Depends on both arguments, per example."""
    return jnp.tanh(x_t + jnp.reshape(t, (-1,) + (1,) * (x_t.ndim - 1)) / 1000)


DENOISE = make_denoise(SCHEDULE, predict)


@every_method
def test_the_scan_is_a_python_loop_and_traces_once(name):
    sampler, traces = METHODS[name], []

    def counted(x_t, t):
        traces.append(t)
        return predict(x_t, t)

    levels = grids.back_and_forth(GRID, 2, 2) if name == "repaint" else GRID
    num_steps = len(levels.alpha) - 1
    denoise = make_denoise(SCHEDULE, counted)
    draw = jax.jit(lambda key: samplers.sample_path(key, sampler, denoise, levels, (4, 3)))
    final, path = draw(KEY)
    traced = len(traces)
    assert traced <= CALLS.get(name, 1) * (2 if name == "repaint" else 1)
    np.testing.assert_array_equal(draw(KEY)[0], final)
    assert len(traces) == traced
    assert path.shape == (num_steps, 4, 3)
    np.testing.assert_array_equal(final, path[-1])

    x = samplers.base.initial_noise(KEY, levels, (4, 3), jnp.arange(4))
    state, plan = sampler.init(x), jax.tree.map(lambda a: jnp.asarray(a, jnp.result_type(a)), sampler.plan(levels))
    step = jax.jit(lambda keys, x, state, c: sampler.step(keys, denoise, x, state, c)[:2])
    for i in range(num_steps):
        keys = samplers.base.keys.stream(KEY, "noise")
        keys = samplers.base.keys.per_example(jax.random.fold_in(keys, i), jnp.arange(4))
        x, state = step(keys, x, state, jax.tree.map(lambda a, i=i: a[i], plan))
        np.testing.assert_allclose(path[i], x, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in BOUND])
def test_a_sample_does_not_depend_on_its_batch(name):
    draw = lambda ids: samplers.sample(KEY, METHODS[name], DENOISE, GRID, (len(ids), 3), ids=ids)  # noqa: E731
    whole = draw(np.arange(64))
    np.testing.assert_allclose(draw(np.arange(20, 27)), whole[20:27], atol=1e-5)
    np.testing.assert_allclose(draw(np.array([5])), whole[5:6], atol=1e-5)
    assert len(np.unique(np.asarray(whole).round(4), axis=0)) == 64


@every_method
def test_values_and_gradients_are_finite_up_to_the_clean_end(name):
    """With respect to the start and to the network, with and without rematerialisation; and under vmap."""

    def end(x, scale, remat=False):
        denoise = make_denoise(SCHEDULE, lambda x, t: scale * predict(x, t), clip=False)
        return samplers.sample(KEY, METHODS[name], denoise, GRID, (4, 3), x_init=x, remat=remat)

    total = lambda x, scale: jnp.sum(end(x, scale) ** 2) + jnp.sum(end(x, scale, True))  # noqa: E731
    x, scales = jnp.linspace(-1, 1, 12).reshape(4, 3), jnp.array([0.5, 0.9])
    for gradient in jax.jit(jax.vmap(jax.grad(total, (0, 1)), (None, 0)))(x, scales):
        assert np.isfinite(gradient).all()
        assert np.all(np.abs(gradient).reshape(2, -1).max(axis=1) > 1e-6)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_inversion_from_the_clean_end_is_finite(name):
    up = grids.reversed(GRID)

    def end(x):
        return samplers.sample(None, METHODS[name], make_denoise(SCHEDULE, predict, clip=False), up, (4, 3), x_init=x)

    x = jnp.linspace(-1, 1, 12).reshape(4, 3)
    value, gradient = jax.jit(lambda x: (end(x), jax.grad(lambda x: end(x).sum())(x)))(x)
    assert np.isfinite(value).all()
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("name", [name for name in METHODS if name != "repaint"])
def test_the_levels_may_be_traced(name):
    draw = lambda levels: samplers.sample(KEY, METHODS[name], DENOISE, levels, (4, 3))  # noqa: E731
    np.testing.assert_allclose(jax.jit(draw)(GRID), draw(GRID), atol=2e-3)


@every_method
def test_a_grid_may_start_at_pure_noise(name):
    """As schedules of zero terminal signal do."""
    levels = Level(GRID.t, np.append(0.0, GRID.alpha[1:]), np.append(1.0, GRID.sigma[1:]))
    assert all(np.isfinite(a).all() for a in jax.tree.leaves(METHODS[name].plan(levels)))


@pytest.mark.parametrize("name", ["dpm_solver_pp 3M", "unipc 3", "heun", "langevin"])
def test_dtype_is_that_of_the_start(name):
    x_init = jax.random.normal(KEY, (4, 3), jnp.bfloat16)
    x = samplers.sample(KEY, METHODS[name], DENOISE, GRID, x_init.shape, x_init=x_init)
    assert x.dtype == jnp.bfloat16
    assert np.isfinite(np.asarray(x, np.float32)).all()


@pytest.mark.parametrize("name", STOCHASTIC)
def test_a_stochastic_sampler_needs_a_key(name):
    with pytest.raises(TypeError, match="key"):
        samplers.sample(None, METHODS[name], DENOISE, GRID, (4, 3), x_init=jnp.zeros((4, 3)))


def test_a_deterministic_sampler_needs_none():
    for sampler in DETERMINISTIC.values():
        jax.eval_shape(lambda s=sampler: samplers.sample(None, s, DENOISE, GRID, (4, 3), x_init=jnp.zeros((4, 3))))


def test_rematerialisation_saves_memory_and_changes_nothing():
    """A step's 20 activations of 64 KiB are kept for 50 steps, or for one."""
    levels, x = grids.spaced(SCHEDULE, 50), jnp.ones((16, 1024))

    def network(x_t, t):
        for _ in range(20):
            x_t = jnp.sin(x_t) + 0.1 * jnp.cos(3 * x_t)
        return x_t

    def gradient(remat):
        def total(x):
            denoise = make_denoise(SCHEDULE, network, clip=False)
            return samplers.sample(None, samplers.dpm_solver_pp(2), denoise, levels, x.shape, x_init=x, remat=remat).sum()

        return jax.jit(jax.grad(total)).lower(x).compile()

    whole, saved = gradient(False), gradient(True)
    np.testing.assert_allclose(saved(x), whole(x), rtol=1e-3, atol=1e-5)
    assert saved.memory_analysis().temp_size_in_bytes < whole.memory_analysis().temp_size_in_bytes / 4
    assert saved.memory_analysis().temp_size_in_bytes < (50 * 3 + 40) * x.nbytes
