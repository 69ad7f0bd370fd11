import types

import jax
import jax.numpy as jnp

from ddpm_jax.devices import sharding
from ddpm_jax.training import memory


def test_bytes_and_operations_are_those_of_products_of_matrices():
    def kept(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding.replicated(sharding.make_mesh()))

    w, x = kept(500, 300), kept(1000, 500)
    state = types.SimpleNamespace(params={"w": w}, opt_state=(w, w), ema={"a": kept(500_000, 600)})
    lowered = jax.jit(lambda w, x: (x @ w) @ w.T).lower(w, x)
    line = memory.describe(state, lowered, lowered.compile())
    assert "parameters 0.6 MB, optimizer 1.2 MB, averages 1.20 GB" in line
    assert "during a step 1.2 MB more" in line, "the first product, 1000 x 300 floats"
    assert "6e+08 floating-point" in line, "2 x 2 x 1000 x 500 x 300"
