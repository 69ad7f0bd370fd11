import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.training import ema


@pytest.mark.parametrize("warmup", [False, True])
def test_the_first_update_is_a_copy(warmup):
    assert ema.update(jnp.float32(5.0), jnp.float32(7.0), jnp.int32(0), 0.999, warmup) == 7.0


def test_then_it_is_the_weighted_sum_of_all_parameters():
    """ema_n = d^n p_0 + (1 - d) sum_k d^(n-k) p_k."""
    p, average = np.random.default_rng(0).normal(size=20), jnp.float32(0.0)
    for n in range(20):
        average = ema.update(average, jnp.float32(p[n]), jnp.int32(n), 0.9)
    weights = 0.1 * 0.9 ** np.arange(19, -1, -1)
    weights[0] = 0.9**19
    np.testing.assert_allclose(average, weights @ p, rtol=1e-5)


def test_warm_up_forgets_the_start_and_ends_at_the_decay():
    plain = warm = jnp.float32(0.0)
    for n in range(200):
        value = jnp.float32(1.0 if n else 0.0)
        plain = ema.update(plain, value, jnp.int32(n), 0.9999)
        warm = ema.update(warm, value, jnp.int32(n), 0.9999, warmup=True)
    assert plain < 0.03
    assert warm > 0.999
    late = [ema.update(jnp.float32(0.0), jnp.float32(1.0), jnp.int32(10**7), 0.9999, warmup) for warmup in (True, False)]
    assert late[0] == late[1]
