"""Every schedule x parameterisation x variance x loss x sampler: finite, in the right shape and dtype, compiled.

The network has a single parameter. One program is vmapped over the tables of all schedules; it runs all losses and
samplers and differentiates them.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import diffusion, losses, samplers, schedules
from ddpm_jax.denoiser import VARIANCES, make_denoise
from ddpm_jax.losses import weightings
from ddpm_jax.schedules import continuous

SCHEDULES = {
    "linear": schedules.linear(6, 1e-3, 0.5),
    "quadratic": schedules.quadratic(6, 1e-3, 0.5),
    "constant": schedules.constant(6, 0.3),
    "warmup": schedules.warmup(6, 0.5, 1e-3, 0.5),
    "jsd": schedules.jsd(6),
    "cosine": schedules.cosine(6),
    "sigmoid": schedules.sigmoid(6),
    "zero_terminal_snr": schedules.zero_terminal_snr(schedules.linear(6, 1e-3, 0.5)),
    "continuous": continuous.linear_vp().schedule(6),
}
SAMPLERS = {"ddpm": None, "ddim, eta 0.5": samplers.ddim(0.5)}
OTHERS = {
    "ddim": samplers.ddim(),
    "euler_ancestral": samplers.euler_ancestral(),
    "heun": samplers.heun(),
    "dpm_solver_pp": samplers.dpm_solver_pp(3),
    "dpm_solver_pp_sde": samplers.dpm_solver_pp(2, sde=True),
    "unipc": samplers.unipc(2),
    "deis": samplers.deis(3),
    "pndm": samplers.pndm(),
    "langevin": samplers.langevin(samplers.ddpm()),
}


TABLES = jax.tree.map(lambda *tables: jnp.stack(tables), *SCHEDULES.values())
LEVELS = jax.tree.map(lambda *a: jnp.stack(a), *(samplers.grids.spaced(schedule) for schedule in SCHEDULES.values()))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("prediction", diffusion.PREDICTIONS)
def test_finite(prediction, variance, dtype):
    learned = variance.startswith("learned")
    x0 = jnp.linspace(-1, 1, 12, dtype=dtype).reshape(3, 4)

    def everything(w, key, schedule, levels):
        def predict(x_t, t):
            output = (w * x_t).astype(dtype)
            return jnp.concatenate([output, output], axis=-1) if learned else output

        plain = lambda x_t, t: predict(x_t, t)[..., :4]  # noqa: E731
        weighted = {"weighting": weightings.p2(), "distance": "huber"}
        loss = {
            "simple": losses.simple(key, schedule, plain, x0, prediction),
            "huber": losses.simple(key, schedule, plain, x0, prediction, **weighted),
            "vlb": losses.vlb(key, schedule, predict, x0, prediction, variance),
        }
        if learned:
            loss["hybrid"] = losses.hybrid(key, schedule, predict, x0, prediction, variance)
        denoise = make_denoise(schedule, predict, prediction, variance=variance)
        noise = jax.random.normal(key, x0.shape, dtype)
        methods = SAMPLERS | {"ddpm": samplers.ddpm(variance.removesuffix("_raw"))}
        x = {k: samplers.sample(key, s, denoise, levels, x0.shape, x_init=noise) for k, s in methods.items()}
        return sum(jnp.sum(a.astype(jnp.float32)) for a in [*loss.values(), *x.values()]), (loss, x)

    over_schedules = jax.vmap(jax.grad(everything, has_aux=True), (None, None, 0, 0))
    run = jax.jit(over_schedules, compiler_options={"xla_backend_optimization_level": "0"})
    fast_to_compile = jax.random.key(0, impl="unsafe_rbg")
    gradient, (loss, x) = run(0.3, fast_to_compile, TABLES, LEVELS)
    assert gradient.shape == (len(SCHEDULES),)
    finite = {"gradient": gradient, **loss, **x}
    for name, each in finite.items():
        bad = ~np.isfinite(each.astype(jnp.float32)).reshape(len(SCHEDULES), -1).all(axis=1)
        assert not bad.any(), (name, [schedule for schedule, is_bad in zip(SCHEDULES, bad, strict=True) if is_bad])
    assert all(each.shape == (len(SCHEDULES), 3) and each.dtype == jnp.float32 for each in loss.values())
    assert all(each.shape == (len(SCHEDULES), 3, 4) and each.dtype == dtype for each in x.values())


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("method", OTHERS)
def test_the_other_samplers_are_finite(method, dtype):
    """On every schedule, for every parameterisation."""
    noise = jnp.linspace(-2, 2, 12, dtype=dtype).reshape(3, 4)

    def everything(w, key, schedule, levels):
        def draw(prediction):
            denoise = make_denoise(schedule, lambda x_t, t: (w * x_t).astype(dtype), prediction)
            return samplers.sample(key, OTHERS[method], denoise, levels, noise.shape, x_init=noise)

        x = {prediction: draw(prediction) for prediction in diffusion.PREDICTIONS}
        return sum(jnp.sum(a.astype(jnp.float32)) for a in x.values()), x

    over_schedules = jax.vmap(jax.grad(everything, has_aux=True), (None, None, 0, 0))
    run = jax.jit(over_schedules, compiler_options={"xla_backend_optimization_level": "0"})
    gradient, x = run(0.3, jax.random.key(0, impl="unsafe_rbg"), TABLES, LEVELS)
    for name, each in {"gradient": gradient, **x}.items():
        bad = ~np.isfinite(each.astype(jnp.float32)).reshape(len(SCHEDULES), -1).all(axis=1)
        assert not bad.any(), (name, [schedule for schedule, is_bad in zip(SCHEDULES, bad, strict=True) if is_bad])
    assert all(each.shape == (len(SCHEDULES), 3, 4) and each.dtype == dtype for each in x.values())
