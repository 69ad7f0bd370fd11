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


def test_a_table_remembers_the_outputs_of_earlier_steps():
    """x_s = x_t + 10 * (x0 now) + 100 * (x0 one step ago) + 1000 * (x0 two ago), with x0 = 1, 2, 3 in turn."""
    one = np.ones(3)
    c = multistep.multistep(BOTH_ENDS, one, np.tile([[100.0, 1000.0]], (3, 1)), 10 * one, 0 * one, "x0", 0 * one)
    sampler = multistep.linear_method(lambda levels: c, 2)
    x = jnp.zeros((2, 1))
    state, ends = sampler.init(x), []
    for i in range(3):
        row = multistep.Coefficients(BOTH_ENDS, c.matrix[i], c.std[i])
        x, state, _ = sampler.step(None, lambda x, level, i=i: Denoised(x * 0 + i + 1, 0 * x), x * 0, state, row)
        ends.append(float(x[0, 0]))
    assert ends == [10, 20 + 100, 30 + 200 + 1000]
