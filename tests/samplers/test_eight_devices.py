"""Every sampler on eight devices, guided: the samples are those of one device, whatever the division into batches."""

import os
import subprocess
import sys

CODE = """
import jax, jax.numpy as jnp, numpy as np
from test_every_method import DETERMINISTIC, GRID, KEY, KNOWN, MASK, METHODS, SCHEDULE
from ddpm_jax import guidance, samplers
from ddpm_jax.devices import sharding
from ddpm_jax.denoiser import clipped, make_denoise

mesh = sharding.make_mesh()
assert mesh.size == 8
METHODS |= {"ddpm": samplers.ddpm(), "ddim": samplers.ddim(0.5)}
for name in ("inpaint", "repaint"):  # their known pixels are of one batch
    wrap = getattr(samplers, name)
    METHODS[name] = lambda x, wrap=wrap: wrap(samplers.ddpm(), x[:, ::-1] / 2, jnp.ones_like(x).at[:, 1:].set(0))

def predict(x_t, t, labels):
    return jnp.tanh(x_t + labels[:, None] / 3 + t[:, None] / 1000)

def draw(name, ids):
    x = jnp.sin(jnp.arange(48.0)).reshape(16, 3)[ids]
    sampler = METHODS[name](x) if callable(METHODS[name]) else METHODS[name]
    labels = guidance.interleave(1 + ids % 3, 0)
    denoise = make_denoise(SCHEDULE, lambda x, t: predict(x, t, labels), clip=False)
    guided = clipped(guidance.classifier_free(denoise, 1 + ids / 8.0))
    return samplers.sample(KEY, sampler, guided, GRID, x.shape, ids, x_init=x)

compiled = jax.jit(draw, static_argnums=0)
for name in METHODS:
    shared = compiled(name, sharding.put_ids(mesh, range(16)))
    assert len(shared.sharding.device_set) == 8, name
    alone = compiled(name, jnp.arange(5, 12))
    assert len(alone.sharding.device_set) == 1, name
    np.testing.assert_allclose(shared[5:12], alone, atol=1e-5, err_msg=name)
    assert np.std(alone) > 0.1
print("sampled", len(METHODS))
"""


def test_eight_devices_draw_what_one_does():
    here = os.path.dirname(__file__)
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([here, os.path.dirname(here), os.environ.get("PYTHONPATH", "")]),
    }
    result = subprocess.run([sys.executable, "-c", CODE], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "sampled 23\n"
