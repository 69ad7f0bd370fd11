"""Classifier-free guidance and autoguidance: the difference of two predictions, extrapolated."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ddpm_jax import arguments, diffusion
from ddpm_jax.denoiser import Denoise, Denoised, Predict, check_denoise, evaluated
from ddpm_jax.guidance.scales import Interval, checked_interval, checked_scale, scale_at
from ddpm_jax.schedules import Level, safe_divide

PredictGiven = Callable[[jax.Array, jax.Array, Any], jax.Array]
"""(x_t [B, ...], t [B], condition) -> the network's output [B, ...]; the condition is a pytree of arrays [B, ...], or None."""


def interleave(conditional: ArrayLike, unconditional: ArrayLike) -> jax.Array:
    """The 2B conditions, interleaved, (c_0, u_0, c_1, u_1, ...), as `classifier_free` expects them.

    Args:
        conditional: Labels or other conditions [B, ...].
        unconditional: The null condition, a scalar or [...]; or one per example, [B, ...].

    Returns:
        [2B, ...].

    Raises:
        ValueError: unconditional has neither shape.
    """
    conditional, unconditional = jnp.asarray(conditional), jnp.asarray(unconditional)
    each, one = conditional.shape, conditional.shape[1:]
    if unconditional.shape not in (each, one):
        raise ValueError(f"unconditional: expected shape {each} or {one}, received {unconditional.shape}")
    pairs = jnp.stack([conditional, jnp.broadcast_to(unconditional, each).astype(conditional.dtype)], axis=1)
    return pairs.reshape(-1, *one)


def conditional(predict: PredictGiven, condition: Any, unconditional: Any, scale: ArrayLike = 1.0) -> Predict:
    """Binds a network to a condition, with classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598).

        output = output_u + scale (output_c - output_u)

    At a given x_t, eps, x0, v, flow and score are affine functions of each other, so this equals `classifier_free` for each of
    them, with one network evaluation per step, on B examples if scale is 0 or 1, otherwise on 2B (see `interleave`).

    Args:
        predict: The network, (x_t [B, ...], t [B], condition) -> [B, ...].
        condition: A pytree of arrays [B, ...], such as labels; a scalar applies to all examples. None: unconditional.
        unconditional: The null condition, the same pytree of arrays [...]; with a condition also [B, ...].
        scale: A number, or [B]. 0 is unconditional, 1 conditional, above 1 guided.

    Returns:
        The Predict. Output channels beyond those of x_t, a learned variance, are the conditional ones.

    Raises:
        TypeError: predict is no function.
        ValueError: a scale of two dimensions or more, or not finite; conditions of different pytrees; when called, of
            incompatible shapes.

    >>> network = lambda x_t, t, labels: x_t * labels[:, None]
    >>> predict = conditional(network, jnp.array([3, 7]), unconditional=0, scale=2.0)
    >>> print(predict(jnp.ones((2, 1)), jnp.zeros(2))[:, 0])
    [ 6. 14.]
    """
    arguments.check_function("predict", predict, "a function (x_t, t, condition) -> output")
    if condition is None or _is(scale, 0):
        return functools.partial(_predict_unconditional, predict, unconditional)
    if _is(scale, 1):
        return functools.partial(_predict_conditional, predict, condition)
    expected: Any = jax.tree.structure(condition)
    received: Any = jax.tree.structure(unconditional)
    if expected != received:
        raise ValueError(f"unconditional: expected the pytree of condition, {expected}, received {received}")
    return functools.partial(_predict_guided, predict, condition, unconditional, checked_scale(scale))


def _predict_unconditional(predict: PredictGiven, unconditional: Any, x_t: jax.Array, t: jax.Array) -> jax.Array:
    return predict(x_t, t, jax.tree.map(lambda a: _for_each(a, len(x_t)), unconditional))


def _predict_conditional(predict: PredictGiven, condition: Any, x_t: jax.Array, t: jax.Array) -> jax.Array:
    return predict(x_t, t, _given(condition, x_t))


def _predict_guided(
    predict: PredictGiven, condition: Any, unconditional: Any, scale: jax.Array, x_t: jax.Array, t: jax.Array
) -> jax.Array:
    both = jax.tree.map(interleave, _given(condition, x_t), unconditional)
    output = predict(jnp.repeat(x_t, 2, axis=0), jnp.repeat(t, 2), both)
    output_c, output_u = output[::2], output[1::2]
    out = output_c + (scale_at(scale, x_t) - 1) * (output_c - output_u)
    is_prediction = jnp.arange(out.shape[-1]) < x_t.shape[-1]  # the rest is a learned variance
    return jnp.where(is_prediction, out, output_c).astype(output.dtype)


def _given(condition: Any, x_t: jax.Array) -> Any:
    """The condition of each example [B, ...]; ValueError if it is one of another number of examples."""
    for a in jax.tree.leaves(condition):
        if jnp.shape(a)[:1] not in ((), x_t.shape[:1]):
            raise ValueError(
                f"condition: expected a scalar or one for each of {len(x_t)} examples, received shape {jnp.shape(a)}"
            )
    return jax.tree.map(lambda a: a if jnp.ndim(a) else _for_each(a, len(x_t)), condition)


def classifier_free(denoise: Denoise, scale: ArrayLike, interval: Interval | None = None, rescale: float = 0.0) -> Denoise:
    """Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598): one network evaluation per step, on 2B examples.

        eps = eps_u + scale (eps_c - eps_u),    x0 = x0_u + scale (x0_c - x0_u)

    Args:
        denoise: Unclipped, from a network bound to 2B interleaved conditions (see `interleave`), so that a batch that is
            sharded by examples stays so.
        scale: A number, or [B]. 0 is unconditional, 1 conditional, above 1 guided: 1 + w in the paper's Eq. 6.
        interval: The range of log_snr in which the scale applies; outside it is 1 (Kynkäänniemi et al. 2024, arXiv
            2404.07724). Everywhere by default.
        rescale: In [0, 1], how far the standard deviation of each example's x0 is moved back to that of the conditional x0
            (section 3.4 of Lin et al. 2023, arXiv 2305.08891); eps is recomputed. The paper uses 0.7.

    Returns:
        The Denoise, for batches of B. Its fraction is the conditional one.

    Raises:
        TypeError: denoise is no function.
        ValueError: a scale of two dimensions or more, or not finite; an empty interval, a rescale out of range; when called,
            a scale for another number of examples, or a network bound to B conditions instead of 2B.

    >>> from ddpm_jax import denoiser, schedules
    >>> labels, schedule = interleave(jnp.array([3, 7]), 0), schedules.linear(1000)
    >>> denoise = denoiser.make_denoise(schedule, lambda x_t, t: x_t * labels[:, None], clip=False)
    >>> print(classifier_free(denoise, scale=2.0)(jnp.ones((2, 1)), schedule.level(500)).eps[:, 0])
    [ 6. 14.]
    """
    check_denoise(denoise)
    scale = checked_scale(scale)
    interval = checked_interval(interval)
    if not 0 <= rescale <= 1:
        raise ValueError(f"rescale: expected 0 to 1, received {rescale}")
    return functools.partial(_classifier_free, denoise, scale, interval, rescale)


def _classifier_free(
    denoise: Denoise, scale: jax.Array, interval: Interval, rescale: float, x_t: jax.Array, level: Level
) -> Denoised:
    both = _of_both(denoise, x_t, level)
    conditional, unconditional = (jax.tree.map(lambda a, i=i: a[i::2], both) for i in (0, 1))
    out = _extrapolated(unconditional, conditional, scale_at(scale, x_t, level, interval))
    return _rescaled(out, conditional, x_t, level, rescale) if rescale else out


def _of_both(denoise: Denoise, x_t: jax.Array, level: Level) -> Denoised:
    """The predictions for 2B examples, two of each; ValueError if the network takes B alone."""
    doubled = Level(*(jnp.repeat(a, 2) if jnp.ndim(a) else a for a in level))
    try:
        return evaluated(denoise, jnp.repeat(x_t, 2, axis=0), doubled)
    except Exception as error:
        try:
            jax.eval_shape(denoise, x_t, level)
        except Exception:
            raise error from None
        raise ValueError(f"denoise: expected a network bound to 2B = {2 * len(x_t)} conditions, from guidance.interleave, "
                         f"received one for B = {len(x_t)}") from error  # fmt: skip


def autoguidance(denoise: Denoise, weaker: Denoise, scale: ArrayLike, interval: Interval | None = None) -> Denoise:
    """Guides a model by a weaker version of itself (Karras et al. 2024, arXiv 2406.02507).

        x0 = x0_weaker + scale (x0 - x0_weaker),    and so eps

    Args:
        denoise: The model, unclipped.
        weaker: A smaller or less trained one, unclipped, with the same schedule.
        scale: A number, or [B]; 0 is the weaker model, 1 the model itself.
        interval: As for `classifier_free`.

    Returns:
        The Denoise: one evaluation of each network per step.

    Raises:
        ValueError: As `classifier_free`.
    """
    check_denoise(denoise)
    arguments.check_function("weaker", weaker, "a function (x_t, Level) -> Denoised, as denoise")
    return functools.partial(_autoguidance, denoise, weaker, checked_scale(scale), checked_interval(interval))


def _autoguidance(
    denoise: Denoise, weaker: Denoise, scale: jax.Array, interval: Interval, x_t: jax.Array, level: Level
) -> Denoised:
    start, end = evaluated(weaker, x_t, level), evaluated(denoise, x_t, level)
    return _extrapolated(start, end, scale_at(scale, x_t, level, interval))


def _extrapolated(start: Denoised, end: Denoised, scale: jax.Array) -> Denoised:
    """start + scale (end - start), exactly `end` at scale 1; the fraction is that of `end`."""
    x0, eps = (b + (scale - 1) * (b - a) for a, b in zip(start[:2], end[:2], strict=True))
    return Denoised(x0, eps, end.fraction)


def _rescaled(guided: Denoised, conditional: Denoised, x_t: jax.Array, level: Level, rescale: float) -> Denoised:
    """x0 with its standard deviation moved back to the conditional one; eps is recomputed."""
    axes = tuple(range(1, x_t.ndim))
    before, after = (jnp.std(a.x0, axis=axes, keepdims=True) for a in (conditional, guided))
    x0 = (rescale * safe_divide(before, after, 1.0) + (1 - rescale)) * guided.x0
    return Denoised(x0, diffusion.eps_from_x0(level, x_t, x0), guided.fraction)


def _is(scale: ArrayLike, number: int) -> bool:
    """Whether the scale is concrete and equal to a number."""
    return not isinstance(scale, jax.core.Tracer) and np.ndim(scale) == 0 and bool(np.equal(scale, number))


def _for_each(a: ArrayLike, batch: int) -> jax.Array:
    """[...] -> [B, ...], repeated for each example."""
    return jnp.broadcast_to(a, (batch, *jnp.shape(a)))
