"""The sampling loop that all methods share.

A grid (the sampling timesteps) is N + 1 noise levels, and each step goes from one to the next. A sampler's `plan` computes the
coefficients of all steps beforehand, in float64 if the levels are concrete, special ends included; `sample` scans `step` over
them.
"""

from __future__ import annotations

import functools
import operator
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, ParamSpec

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ddpm_jax import arguments, denoiser, keys
from ddpm_jax.denoiser import Denoise, Denoised
from ddpm_jax.samplers import programs
from ddpm_jax.schedules import Array, Level

P = ParamSpec("P")

MOST_SIGNAL = 0.2
"""Share of signal at the first level, alpha / hypot(alpha, sigma), above which starting from noise gives a warning."""


class Functions(NamedTuple):
    """The fields of a Sampler."""

    plan: Callable[[Level], Any]
    init: Callable[[jax.Array], Any]
    step: Callable[[jax.Array | None, Denoise, jax.Array, Any, Any], tuple[jax.Array, Any, Denoised]]
    order: int = 1
    nfe: int = 1


class Sampler(Functions):
    """A sampling method; the function that makes it binds its hyperparameters.

    Attributes:
        plan: (levels [N + 1]) -> coefficients, a pytree of arrays over the N steps.
        init: (x) -> the state carried from step to step, () if there is none.
        step: (keys [B] or None, denoise, x, state, coefficients) -> (x, state, denoised).
        order: Order of convergence of its formula, that of the drift if it is stochastic.
        nfe: Network evaluations per step.
        recipe: (function, args, kwargs) that make it, for pickling (see `picklable`); None if it is made otherwise.
    """

    recipe: tuple[Callable[..., Sampler], tuple, dict[str, Any]] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), tuple(self)) if self.recipe is None else (_made, self.recipe)


def _made(make: Callable[..., Sampler], args: tuple, kwargs: dict[str, Any]) -> Sampler:
    return make(*args, **kwargs)


def picklable(make: Callable[P, Sampler]) -> Callable[P, Sampler]:
    """Makes the samplers of a module's function picklable: they are pickled as its name and arguments."""

    @functools.wraps(make)
    def remembering(*args: P.args, **kwargs: P.kwargs) -> Sampler:
        sampler = Sampler(*make(*args, **kwargs))
        sampler.recipe = (remembering, args, kwargs)
        return sampler

    return remembering


def sample(
    key: jax.Array | None,
    sampler: Sampler,
    denoise: Denoise,
    levels: Level,
    shape: Sequence[int],
    ids: ArrayLike | None = None,
    x_init: jax.Array | None = None,
    remat: bool = False,
) -> jax.Array:
    """Samples along a grid of levels, in memory that does not grow with the number of steps.

    Outside of `jit`, calls of the same network, method, number of steps and shapes share one compiled program. Each call still
    traces the network, which a `jax.jit` around `sample` does once.

    Args:
        key: A typed key. May be None if nothing is random: x_init is given and the sampler is deterministic.
        sampler: The method, e.g. `ddim(eta=0.0)`.
        denoise: The denoiser, from `make_denoise`.
        levels: The grid [N + 1], e.g. from `grids.spaced`.
        shape: [B, ...], the shape of the samples.
        ids: Global sample indices, integers [B], 0..B-1 by default: sample i depends on (key, ids[i]) alone.
        x_init: The initial x [B, ...]; by default hypot(alpha, sigma) * noise at the first level.
        remat: Whether the backward pass rematerializes each step: it then stores N copies of x and the state, and one
            step's activations instead of N steps'.

    Returns:
        The samples, [B, ...].

    Raises:
        TypeError: a missing key, or an argument that is not what it should be, such as a sampler that has not been called.
        ValueError: a grid that the sampler does not accept, or an x_init or ids of the wrong shape.

    Warns:
        UserWarning: x_init is not given, and the first level has more than a tenth of signal, which noise has not.

    Example:
        Standard normal data, for which the optimal network predicts eps = sigma_t x_t:

        >>> import jax
        >>> from ddpm_jax import samplers, schedules
        >>> from ddpm_jax.denoiser import make_denoise
        >>> schedule = schedules.linear(1000)
        >>> denoise = make_denoise(schedule, lambda x_t, t: schedule.sigma[t][:, None] * x_t, clip=False)
        >>> levels = samplers.grids.spaced(schedule, 50)
        >>> x = samplers.sample(jax.random.key(0), samplers.ddpm(), denoise, levels, shape=(1000, 2))
        >>> x.shape, round(float(x.std()), 1)
        ((1000, 2), 1.0)
    """
    return _sample(key, sampler, denoise, levels, shape, ids, x_init, lambda x, denoised: None, remat)[0]


def sample_path(
    key: jax.Array | None,
    sampler: Sampler,
    denoise: Denoise,
    levels: Level,
    shape: Sequence[int],
    ids: ArrayLike | None = None,
    x_init: jax.Array | None = None,
    keep: Callable[[jax.Array, Denoised], Any] = lambda x, denoised: x,
    remat: bool = False,
) -> tuple[jax.Array, Any]:
    """Samples, and stores something at every step: memory grows with the number of steps.

    Args:
        key, sampler, denoise, levels, shape, ids, x_init, remat: Same as for `sample`.
        keep: (x after the step, the prediction it used) -> the pytree to store; by default x.

    Returns:
        The samples [B, ...], and the stored pytrees, stacked over the steps [N, ...] in their order.

    Raises:
        Same as `sample`.
    """
    arguments.check_function("keep", keep, "a function (x, Denoised) -> the pytree to store")
    return _sample(key, sampler, denoise, levels, shape, ids, x_init, keep, remat)


def _sample(
    key: jax.Array | None,
    sampler: Sampler,
    denoise: Denoise,
    levels: Level,
    shape: Sequence[int],
    ids: ArrayLike | None,
    x_init: jax.Array | None,
    keep: Callable[[jax.Array, Denoised], Any],
    remat: bool,
) -> tuple[jax.Array, Any]:
    """As `sample_path`."""
    shape = checked_shape(shape)
    check_arguments(sampler, denoise, levels)
    ids = jnp.asarray(keys.global_ids(ids, shape[0]))
    if x_init is None:
        _warn_signal(levels)
    x = initial_noise(key, levels, shape, ids) if x_init is None else _checked_start(x_init, shape)

    # all coefficients beforehand, then one scan over the steps, each with its own noise
    noise_key = None if key is None else keys.stream(key, "noise")
    plan = jax.tree.map(lambda a: _at_precision_of(x, a), sampler.plan(levels))
    evaluate = functools.partial(denoiser.evaluated, denoise)

    def loop(x: jax.Array, state: Any, noise_key: jax.Array | None, ids: jax.Array, plan: Any):
        def body(carry, xs):
            (x, state), (index, coefficients) = carry, xs
            step_keys = None if noise_key is None else keys.per_example(jax.random.fold_in(noise_key, index), ids)
            x_next, state, denoised = sampler.step(step_keys, evaluate, x, state, coefficients)
            x_next = x_next.astype(x.dtype)
            return (x_next, state), keep(x_next, denoised)

        body = jax.checkpoint(body, prevent_cse=False) if remat else body
        return jax.lax.scan(body, (x, state), (jnp.arange(len(levels.alpha) - 1), plan))

    (x, _), kept = programs.call(loop, x, sampler.init(x), noise_key, ids, plan)
    return x, kept


def check_sampler(sampler: Any, name: str = "sampler") -> None:
    """Raises TypeError unless a sampler has the functions of a Sampler; `samplers.ddim` without () has not."""
    if isinstance(sampler, type) or not all(callable(getattr(sampler, name, None)) for name in ("plan", "init", "step")):
        raise TypeError(f"{name}: expected a Sampler such as samplers.ddim(), received {arguments.described(sampler)}")


def check_arguments(sampler: Any, denoise: Any, levels: Any) -> None:
    """Raises TypeError or ValueError unless they are a Sampler, a function, and a grid of one step or more."""
    check_sampler(sampler)
    denoiser.check_denoise(denoise)
    arguments.check_grid(levels)
    if len(levels.alpha) < 2:
        raise ValueError(f"levels: expected a grid [N + 1], N at least 1, received shape {np.shape(levels.alpha)}")


def checked_shape(shape: Any) -> tuple[int, ...]:
    """The shape of samples as a tuple, [B, ...], or TypeError."""
    try:
        sizes = tuple(map(operator.index, shape))
    except TypeError:
        sizes = ()
    if not sizes or min(sizes) < 0:
        raise TypeError(
            f"shape: expected integers, the batch size first, such as (16, 32, 32, 3), received {arguments.described(shape)}"
        )
    return sizes


def _checked_start(x_init: Any, shape: tuple[int, ...]) -> jax.Array:
    arguments.check_floating("x_init", x_init)
    arguments.check_shape("x_init", x_init, shape, "shape")
    return x_init


def _warn_signal(levels: Level) -> None:
    """Warns if the first level of a grid has signal, and its values are known: noise is no sample of it."""
    if is_traced(levels):
        return
    alpha, sigma = float(levels.alpha[0]), float(levels.sigma[0])
    signal = alpha / np.hypot(alpha, sigma)
    if signal > MOST_SIGNAL:
        warnings.warn(f"levels: expected nearly pure noise at the first level, where samples start from noise, received "
                      f"alpha = {signal:.2f} at t = {levels.t[0]}; use a noisier schedule or grid, or pass x_init",
                      stacklevel=4)  # fmt: skip


def initial_noise(key: jax.Array | None, levels: Level, shape: Sequence[int], ids: ArrayLike) -> jax.Array:
    """The initial x [B, ...] at a grid's first level: hypot(alpha, sigma) * noise, exact for standard normal data.

    Raises:
        TypeError: no key.
    """
    example_keys = None if key is None else keys.per_example(keys.stream(key, "init"), ids)
    return jnp.hypot(jnp.asarray(levels.alpha[0]), jnp.asarray(levels.sigma[0])) * normal(example_keys, shape)


def normal(example_keys: jax.Array | None, shape: Sequence[int]) -> jax.Array:
    """Standard normal noise [B, ...], example i from key i.

    Raises:
        TypeError: no keys.
    """
    if example_keys is None:
        raise TypeError("key: expected a typed key such as jax.random.key(0), received None")
    return keys.draw(jax.random.normal, example_keys, tuple(shape[1:]))


def split(example_keys: jax.Array | None, num: int) -> list[jax.Array | None]:
    """Splits each example's key into `num` independent ones: num lists of keys [B]; None stays None."""
    if example_keys is None:
        return [None] * num
    return [jax.vmap(jax.random.fold_in, (0, None))(example_keys, i) for i in range(num)]


def in_float64(levels: Level) -> Level:
    """The levels as numpy float64 if they are concrete, so that coefficients are computed in it; as JAX arrays if traced."""
    if is_traced(levels):
        return Level(*map(jnp.asarray, levels))
    return Level(np.asarray(levels.t), np.asarray(levels.alpha, np.float64), np.asarray(levels.sigma, np.float64))


def endpoints(levels: Level) -> tuple[Level, Level]:
    """The levels t and s that each step of a grid [N + 1] goes from and to, each a Level [N] (see `in_float64`)."""
    levels = in_float64(levels)
    return Level(*(a[:-1] for a in levels)), Level(*(a[1:] for a in levels))


def ratios(levels: Level) -> tuple[Level, Level, Array]:
    """t, s and r = (alpha_t sigma_s) / (alpha_s sigma_t), for every step of a grid towards the data.

    1 - r^2 = 1 - exp(log_snr_t - log_snr_s) is the fraction of x_t's noise that the step can remove: in Eq. 7 of
    Ho et al. 2020 the variance and the weight of x0 are multiples of it. No term divides by alpha_t or sigma_s, which may be 0.
    """
    t, s = endpoints(levels)
    return t, s, (t.alpha * s.sigma) / (s.alpha * t.sigma)


def is_traced(levels: Level) -> bool:
    """Whether the values of the levels are unknown, as in a function under `jit` that takes them as arguments."""
    return any(isinstance(a, jax.core.Tracer) for a in levels)


def check_decreasing(levels: Level, method: str) -> None:
    """Checks that every step of a grid goes towards the data, if its values are known.

    Raises:
        ValueError: a step stays at its noise level, or goes to a noisier one.
    """
    if not is_traced(levels):
        _check_steps(levels, np.diff(_angle(levels)) >= 0, f"{method} expected every level less noisy than the one before")


def check_monotone(levels: Level, method: str) -> None:
    """Checks that a grid is monotone, towards the data or towards noise, if its values are known.

    Raises:
        ValueError: a step stays at its noise level, or goes the other way than the first.
    """
    if not is_traced(levels):
        change = np.diff(_angle(levels))
        _check_steps(levels, change * np.sign(change[0]) <= 0, f"{method} expected levels that go one way, all different")


def check_distinct(levels: Level, method: str) -> None:
    """Raises ValueError if a step of a grid stays at its noise level and the grid's values are known."""
    if not is_traced(levels):
        _check_steps(levels, np.diff(_angle(levels)) == 0, f"{method} expected neighbouring levels that differ")


def check_num_steps(levels: Level, num_steps: int, method: str) -> None:
    """Raises ValueError if a grid has fewer than num_steps steps."""
    if len(levels.alpha) - 1 < num_steps:
        raise ValueError(f"levels: {method} expected at least {num_steps} steps, received {len(levels.alpha) - 1}")


def _angle(levels: Level) -> np.ndarray:
    """The noise level as an angle, 0 at clean data and pi / 2 at pure noise: finite at both ends, unlike log_snr."""
    return np.arctan2(np.asarray(levels.sigma), np.asarray(levels.alpha))


def _check_steps(levels: Level, wrong: np.ndarray, expected: str) -> None:
    """Raises ValueError naming the first wrong step, if there is one."""
    if np.any(wrong):
        step = int(np.argmax(wrong))
        raise ValueError(f"levels: {expected}, received t = {levels.t[step]} then {levels.t[step + 1]}")


def _at_precision_of(x: jax.Array, a: ArrayLike) -> jax.Array:
    """Coefficients in the precision of x, but at least float32; integers as they are."""
    a = jnp.asarray(a)
    return a.astype(jnp.promote_types(x.dtype, jnp.float32)) if jnp.issubdtype(a.dtype, jnp.floating) else a
