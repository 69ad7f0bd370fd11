"""Properties of every sampler; test_base.py has them for DDPM and DDIM."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampler_checks import KEY, SCHEDULE, orders

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
    "ddim": samplers.ddim(),
}
STOCHASTIC = {
    "euler churn": samplers.euler(SCHEDULE, CHURN),
    "heun churn": samplers.heun(SCHEDULE, CHURN),
    "euler_ancestral": samplers.euler_ancestral(),
    "dpm_solver_pp 2M SDE": samplers.dpm_solver_pp(2, sde=True),
    "langevin": samplers.langevin(samplers.ddpm("fixed_small"), num_corrections=2),
    "analytic_dpm": samplers.analytic_dpm(np.linspace(0.5, 1, 1000)),
    "inpaint": samplers.inpaint(samplers.dpm_solver_pp(2), KNOWN, MASK),
    "restart": samplers.restart(samplers.heun()),
    "repaint": samplers.repaint(samplers.ddpm(), KNOWN, MASK),
}
METHODS = DETERMINISTIC | STOCHASTIC
RESTARTS = {"restart", "repaint"}  # a step is traced once more, for the shape of its prediction; grids are not traced
every_method = pytest.mark.parametrize("name", METHODS)
# each kind of step once: multistep methods share theirs
STEPS = ["euler", "heun", "dpm_solver_pp 2S", "unipc 3", *(name for name in STOCHASTIC if name != "euler_ancestral")]
every_step = pytest.mark.parametrize("name", STEPS)


def predict(x_t, t):
    """Depends on both arguments, per example."""
    return jnp.tanh(x_t + jnp.reshape(t, (-1,) + (1,) * (x_t.ndim - 1)) / 1000)


DENOISE = make_denoise(SCHEDULE, predict)


def grid(name):
    return grids.back_and_forth(GRID, 2, 2) if name in RESTARTS else GRID


@every_method
def test_its_network_evaluations_per_step(name):
    called = []

    def counted(x_t, t):
        jax.debug.callback(called.append, t)
        return predict(x_t, t)

    key, levels = KEY if name in STOCHASTIC else None, grid(name)
    x = samplers.sample(key, METHODS[name], make_denoise(SCHEDULE, counted), levels, (4, 3), x_init=KNOWN)
    jax.block_until_ready(x)
    jax.effects_barrier()
    assert len(called) == METHODS[name].nfe * np.sum(np.diff(levels.sigma) < 0)


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_its_order_of_convergence(name):
    """At step sizes for which the first steps, of lower order, do not count yet."""
    found, _ = orders(METHODS[name])
    assert np.all(np.abs(found - METHODS[name].order) < 0.6)


@pytest.mark.parametrize("sampler", [samplers.deis(3), samplers.deis(4), samplers.dpm_solver_pp(3)], ids=["3", "4", "3M"])
def test_the_error_of_the_first_step_remains(sampler):
    """It is of order 1: on a grid that starts at less noise it counts, and the method as a whole is of order 2."""
    found, _ = orders(sampler, (160, 320), ends=(-4.0, 4.0))
    assert abs(found[0] - 2) < 0.2


def test_a_wrapper_has_its_samplers_order_and_evaluations():
    for inner in (samplers.heun(), samplers.unipc(2)):
        for wrapped in (samplers.inpaint(inner, KNOWN, MASK), samplers.repaint(inner, KNOWN, MASK), samplers.restart(inner)):
            assert (wrapped.order, wrapped.nfe) == (inner.order, inner.nfe)
        corrected = samplers.langevin(inner, num_corrections=3)
        assert (corrected.order, corrected.nfe) == (inner.order, inner.nfe + 3)


@every_step
def test_the_scan_is_a_python_loop_and_traces_once(name):
    sampler, traces = METHODS[name], []

    def counted(x_t, t):
        traces.append(t)
        return predict(x_t, t)

    levels = grid(name)
    num_steps = len(levels.alpha) - 1
    denoise = make_denoise(SCHEDULE, counted)
    key = KEY if name in STOCHASTIC else None
    draw = jax.jit(lambda x: samplers.sample_path(key, sampler, denoise, levels, (4, 3), x_init=x))
    x = KNOWN[::-1] / 2
    final, path = draw(x)
    traced = len(traces)
    assert traced <= sampler.nfe * (1 + (name in RESTARTS))
    np.testing.assert_array_equal(draw(x)[0], final)
    assert len(traces) == traced
    assert path.shape == (num_steps, 4, 3)
    np.testing.assert_array_equal(final, path[-1])

    state, plan = sampler.init(x), jax.tree.map(lambda a: jnp.asarray(a, jnp.result_type(a)), sampler.plan(levels))
    step = jax.jit(lambda keys, x, state, c: sampler.step(keys, denoise, x, state, c)[:2])
    for i in range(num_steps):
        step_key = jax.random.fold_in(samplers.base.keys.stream(KEY, "noise"), i)
        keys = samplers.base.keys.per_example(step_key, jnp.arange(4))
        x, state = step(keys if key is not None else None, x, state, jax.tree.map(lambda a, i=i: a[i], plan))
        np.testing.assert_allclose(path[i], x, atol=1e-5)


@pytest.mark.parametrize("name", ["dpm_solver_pp 2S", "unipc 3", "heun churn", "dpm_solver_pp 2M SDE", "langevin"])
def test_a_sample_does_not_depend_on_its_batch(name):
    key, start = KEY if name in STOCHASTIC else None, jnp.sin(jnp.arange(192.0)).reshape(64, 3)

    def draw(ids):
        return samplers.sample(key, METHODS[name], DENOISE, GRID, (len(ids), 3), ids=ids, x_init=start[ids])

    whole = draw(np.arange(64))
    np.testing.assert_allclose(draw(np.arange(20, 27)), whole[20:27], atol=1e-5)
    np.testing.assert_allclose(draw(np.array([5])), whole[5:6], atol=1e-5)
    assert np.std(whole) > 0.1


def value_and_gradients(name, levels):
    """The samples, and the gradients of their squares with respect to x_init and to the network."""

    def total(x, scale):
        denoise = make_denoise(SCHEDULE, lambda x, t: scale * predict(x, t), clip=False)
        end = samplers.sample(KEY if name in STOCHASTIC else None, METHODS[name], denoise, levels, (4, 3), x_init=x)
        return jnp.sum(end**2), end

    x = jnp.linspace(-1, 1, 12).reshape(4, 3)
    return jax.jit(jax.grad(total, (0, 1), has_aux=True))(x, 0.9)


@every_step
def test_values_and_gradients_are_finite_up_to_the_clean_end(name):
    gradients, x = value_and_gradients(name, GRID)
    assert all(np.isfinite(a).all() and np.abs(a).max() > 1e-6 for a in (*gradients, x))


@pytest.mark.parametrize("name", ["euler", "heun", "dpm_solver_pp 2S", "unipc 3"])
def test_inversion_from_the_clean_end_is_finite(name):
    gradients, x = value_and_gradients(name, grids.reversed(GRID))
    assert all(np.isfinite(a).all() and np.abs(a).max() > 1e-6 for a in (*gradients, x))


@pytest.mark.parametrize("name", ["dpm_solver_pp 3M", "repaint"])
def test_vmap(name):
    def end(scale):
        denoise = make_denoise(SCHEDULE, lambda x, t: scale * predict(x, t))
        return samplers.sample(KEY, METHODS[name], denoise, GRID, (4, 3), x_init=KNOWN)

    np.testing.assert_allclose(jax.vmap(end)(jnp.array([0.5, 0.9]))[1], end(0.9), atol=1e-4)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in RESTARTS])
def test_the_levels_may_be_traced(name):
    with jax.enable_x64(True):
        levels = Level(*(np.asarray(a, np.float64) for a in GRID))
        traced = jax.jit(METHODS[name].plan)(levels)
    for a, b in zip(jax.tree.leaves(traced), jax.tree.leaves(METHODS[name].plan(levels)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)


@every_method
def test_no_coefficient_is_infinite_at_either_end(name):
    """To the clean end; from pure noise, as schedules of zero terminal signal start; and in reverse, for inversion."""
    from_noise = Level(GRID.t, np.append(0.0, GRID.alpha[1:]), np.append(1.0, GRID.sigma[1:]))
    ways = [GRID, from_noise] + [grids.reversed(a) for a in (GRID, from_noise) if name in DETERMINISTIC]
    for levels in ways:
        assert all(np.isfinite(a).all() for a in jax.tree.leaves(METHODS[name].plan(levels)))


@pytest.mark.parametrize("name", ["dpm_solver_pp 3M", "heun"])
def test_dtype_is_that_of_the_start(name):
    x_init = jax.random.normal(KEY, (4, 3), jnp.bfloat16)
    x = samplers.sample(None, METHODS[name], DENOISE, GRID, x_init.shape, x_init=x_init)
    assert x.dtype == jnp.bfloat16
    assert np.isfinite(np.asarray(x, np.float32)).all()


@pytest.mark.parametrize("name", STOCHASTIC)
def test_a_stochastic_sampler_needs_a_key(name):
    with pytest.raises(TypeError, match="key"):
        samplers.sample(None, METHODS[name], DENOISE, GRID, (4, 3), x_init=jnp.zeros((4, 3)))


@every_method
def test_the_network_is_traced_once_whatever_the_number_of_steps(name):
    traces = []

    def counted(x_t, t):
        traces.append(t)
        return predict(x_t, t)

    def equations(num_steps):
        denoise, levels = make_denoise(SCHEDULE, counted), grids.spaced(SCHEDULE, num_steps)
        key = KEY if name in STOCHASTIC else None
        draw = lambda x: samplers.sample(key, METHODS[name], denoise, levels, (4, 3), x_init=x)  # noqa: E731
        return str(jax.make_jaxpr(draw)(KNOWN)).count(" = ")

    few, calls = equations(8), len(traces)
    assert calls <= METHODS[name].nfe * (1 + (name in RESTARTS))
    if name in STEPS:
        assert equations(80) == few
        assert len(traces) == 2 * calls


def test_rematerialisation_saves_memory_and_changes_nothing():
    """Activations, of 64 KiB each, are stored for 50 steps or for one."""
    levels, x = grids.spaced(SCHEDULE, 50), jnp.ones((16, 1024))

    def network(x_t, t):
        for _ in range(6):
            x_t = jnp.sin(x_t) + 0.1 * jnp.cos(3 * x_t)
        return x_t

    def gradient(remat):
        def total(x):
            denoise = make_denoise(SCHEDULE, network, clip=False)
            return samplers.sample(None, samplers.dpm_solver_pp(2), denoise, levels, x.shape, x_init=x, remat=remat).sum()

        return jax.jit(jax.grad(total)).lower(x).compile()

    whole, saved = gradient(False), gradient(True)
    np.testing.assert_allclose(saved(x), whole(x), rtol=1e-3, atol=1e-5)
    assert saved.memory_analysis().temp_size_in_bytes < whole.memory_analysis().temp_size_in_bytes / 2
    assert saved.memory_analysis().temp_size_in_bytes < (50 * 3 + 40) * x.nbytes


@every_method
def test_it_can_be_pickled(name):
    sampler, levels = METHODS[name], grid(name)
    again = pickle.loads(pickle.dumps(sampler))
    assert (again.order, again.nfe) == (sampler.order, sampler.nfe)
    plan, found = (jax.tree.leaves(a.plan(levels)) for a in (sampler, again))
    assert all(np.array_equal(a, b) for a, b in zip(plan, found, strict=True))
    if name in STEPS:
        draw = lambda sampler: samplers.sample(KEY, sampler, DENOISE, levels, (4, 3), x_init=KNOWN)  # noqa: E731
        np.testing.assert_array_equal(draw(again), draw(sampler))


def test_a_sampler_with_other_functions_has_no_recipe_of_its_own():
    changed = samplers.ddim()._replace(step=predict)
    assert changed.recipe is None and pickle.loads(pickle.dumps(samplers.Sampler(predict, predict, predict))).step is predict
    with pytest.raises((AttributeError, pickle.PicklingError), match="ddim"):
        pickle.dumps(changed)
