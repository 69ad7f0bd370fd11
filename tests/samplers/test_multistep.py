import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.denoiser import Denoised
from ddpm_jax.samplers import multistep
from ddpm_jax.schedules import Level

ALPHA = np.array([0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0])
BOTH_ENDS = Level(np.arange(7)[::-1], ALPHA, np.sqrt(1 - ALPHA**2))
UP = Level(*(a[::-1] for a in BOTH_ENDS))


@pytest.mark.parametrize("levels", [BOTH_ENDS, UP])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((3, False), [1, 1, 2, 3, 3, 1]),  # step 1 must not look back at an infinite lambda, nor step 2 twice
        ((3, True), [1, 1, 2, 3, 2, 1]),
        ((1, False), [1] * 6),
    ],
)
def test_orders_next_to_both_ends(levels, options, expected):
    np.testing.assert_array_equal(multistep.orders(levels, *options), expected)


def test_orders_may_be_full_to_the_clean_end_alone():
    np.testing.assert_array_equal(multistep.orders(BOTH_ENDS, 3, False, end_too=True), [1, 1, 2, 3, 3, 3])
    np.testing.assert_array_equal(multistep.orders(UP, 3, False, end_too=True), [1, 1, 2, 3, 3, 1])


def test_lambda_is_finite_at_both_ends():
    lam = multistep.half_log_snr(BOTH_ENDS)
    np.testing.assert_allclose(lam[1:-1], np.log(ALPHA[1:-1] / BOTH_ENDS.sigma[1:-1]), rtol=1e-12)
    np.testing.assert_array_equal(lam[[0, -1]], [-multistep.FARTHEST, multistep.FARTHEST])
    traced = jax.jit(multistep.half_log_snr)(BOTH_ENDS)
    np.testing.assert_allclose(traced, lam, rtol=1e-5)
    gradient = jax.grad(lambda alpha: multistep.half_log_snr(BOTH_ENDS._replace(alpha=alpha)).sum())(jnp.asarray(ALPHA))
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("output", ["x0", "eps"])
def test_past_outputs_are_those_of_the_steps_before(output):
    """x_s = 10 (now) + 100 (one step before) + 1000 (two before), with outputs 1, 2, 3 in turn."""
    one = np.ones(3)
    now = {"x0": 0 * one, "eps": 0 * one} | {output: 10 * one}
    plan = multistep.Coefficients(BOTH_ENDS, x=0 * one, **now, past=np.tile([[100.0, 1000.0]], (3, 1)), std=0 * one)
    sampler = multistep.multistep(lambda levels: plan, output, num_past=2, order=3)
    x = jnp.zeros((2, 1))
    state, ends = sampler.init(x), []
    for i in range(3):
        c = plan._replace(level=None, past=plan.past[i], **{name: getattr(plan, name)[i] for name in ("x", "x0", "eps", "std")})
        outputs = Denoised(0 * x, 0 * x)._replace(**{output: 0 * x + i + 1})
        x, state, _ = sampler.step(None, lambda x, level, outputs=outputs: outputs, x, state, c)
        ends.append(float(x[0, 0]))
    assert ends == [10, 20 + 100, 30 + 200 + 1000]
