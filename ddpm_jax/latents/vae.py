"""The evidence lower bound of a variational autoencoder (Kingma & Welling 2014, arXiv 1312.6114), as rate and distortion.

    log p(x) >= -rate - distortion,    rate = KL(q(z | x) || N(0, I)),    distortion = -E_q log N(x; decode(z), sigma^2 I)

in nats, summed over dimensions. `likelihood.bits_per_dimension` turns them into bits per dimension.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ddpm_jax import arguments, keys
from ddpm_jax.diffusion import Gaussian
from ddpm_jax.likelihood import normal_kl

NORMAL = Gaussian(0.0, 1.0, 0.0)  # type: ignore[arg-type]
Encode = Callable[[jax.Array], tuple[jax.Array, jax.Array]]
"""x [B, ...] -> mean and standard deviation of q(z | x), each [B, ...]."""
Decode = Callable[[jax.Array], jax.Array]
"""z [B, ...] -> the mean of p(x | z), [B, ...]."""


class Terms(NamedTuple):
    """What the bound is made of, each [B], summed over dimensions.

    Attributes:
        rate: KL(q(z | x) || N(0, I)), in nats.
        squared_error: ||x - decode(z)||^2 at one z from q(z | x).
    """

    rate: jax.Array
    squared_error: jax.Array


def terms(key: jax.Array, encode: Encode, decode: Decode, x: jax.Array, ids: ArrayLike | None = None) -> Terms:
    """Rate and squared error at one reparameterised sample, z = mean + std eps.

    Args:
        key: A typed key.
        encode: x -> (mean, std) of q(z | x), std > 0.
        decode: z -> mean of p(x | z).
        x: Data [B, ...], floating-point.
        ids: Global example indices, integers [B], 0..B-1 by default: example i's noise depends on (key, ids[i]) alone.

    Returns:
        Both in float32 (float64 under `jax_enable_x64`).

    Raises:
        TypeError: no key, no function, or an x that is not floating-point.
        ValueError: a mean and std of different shapes, or an output of another shape than x.
    """
    mean, std = _encode(encode, decode, x)
    z = mean + std * _noise(key, mean, keys.global_ids(ids, len(x)))
    return Terms(_sum(normal_kl(Gaussian(mean, std**2, 2 * jnp.log(std)), NORMAL)), _error(decode, z, x))


def optimal_log_variance(squared_error: jax.Array, num_dims: int) -> jax.Array:
    """The shared variance that maximises the bound over the batch, sigma^2 = MSE (Rybkin et al. 2020, arXiv 2006.13202).

    Args:
        squared_error: [B], summed over dimensions.
        num_dims: Dimensions per example.

    Returns:
        log sigma^2, a scalar. It is differentiable: (n / 2) log MSE is the sigma-VAE's loss.
    """
    return jnp.log(jnp.mean(squared_error) / num_dims)


def distortion(squared_error: jax.Array, num_dims: int, log_variance: ArrayLike) -> jax.Array:
    """-log N(x; decode(z), sigma^2 I) = (||x - decode(z)||^2 / sigma^2 + n log(2 pi sigma^2)) / 2, in nats, [B]."""
    return 0.5 * (squared_error * jnp.exp(-jnp.asarray(log_variance)) + num_dims * (log_variance + math.log(2 * math.pi)))


def elbo(
    key: jax.Array,
    encode: Encode,
    decode: Decode,
    x: jax.Array,
    log_variance: ArrayLike | None = None,
    ids: ArrayLike | None = None,
) -> jax.Array:
    """The evidence lower bound, estimated with one z per example: -(rate + distortion).

    Args:
        key, encode, decode, x, ids: As for `terms`.
        log_variance: The decoder's log sigma^2, fixed or learned; None: the optimum over the batch.

    Returns:
        [B], in nats, summed over dimensions.

    Raises:
        As `terms`.

    >>> import jax, jax.numpy as jnp
    >>> from ddpm_jax.latents import vae
    >>> encode = lambda x: (jnp.zeros((len(x), 1)), jnp.ones((len(x), 1)))  # q(z | x) is the prior: no rate
    >>> bound = vae.elbo(jax.random.key(0), encode, lambda z: jnp.zeros((len(z), 2)), jnp.zeros((3, 2)), log_variance=0.0)
    >>> bound.shape, round(float(bound[0]), 4)  # -log(2 pi)
    ((3,), -1.8379)
    """
    rate, squared_error = terms(key, encode, decode, x, ids)
    num_dims = math.prod(x.shape[1:])
    if log_variance is None:
        log_variance = optimal_log_variance(squared_error, num_dims)
    return -(rate + distortion(squared_error, num_dims, log_variance))


def importance_weighted(
    key: jax.Array,
    encode: Encode,
    decode: Decode,
    x: jax.Array,
    num: int,
    log_variance: ArrayLike,
    ids: ArrayLike | None = None,
) -> jax.Array:
    """The importance-weighted bound of Burda et al. 2015 (arXiv 1509.00519), which tends to log p(x) as num grows.

        log (1 / K) sum_k p(x | z_k) p(z_k) / q(z_k | x),    z_k from q(z | x)

    Args:
        key, encode, decode, x, ids: As for `terms`.
        num: K, at least 1; for 1 it is the bound, with the rate estimated at z too. Computed one after another.
        log_variance: The decoder's log sigma^2.

    Returns:
        [B], in nats, summed over dimensions.

    Raises:
        As `terms`; ValueError: num below 1.
    """
    arguments.check_integer("num", num)
    if num < 1:
        raise ValueError(f"num: expected at least 1, received {num}")
    mean, std = _encode(encode, decode, x)
    ids, num_dims = keys.global_ids(ids, len(x)), math.prod(x.shape[1:])

    def log_weight(k: jax.Array) -> jax.Array:
        eps = _noise(key, mean, ids, k)
        z = mean + std * eps
        log_ratio = _sum(0.5 * (eps**2 - z**2) + jnp.log(std))  # log p(z) - log q(z | x)
        return log_ratio - distortion(_error(decode, z, x), num_dims, log_variance)

    return jax.nn.logsumexp(jax.lax.map(log_weight, jnp.arange(num)), axis=0) - math.log(num)


def _encode(encode: Encode, decode: Decode, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and std, in float32 at least."""
    arguments.check_floating("x", x)
    arguments.check_function("encode", encode, "a function x -> (mean, std)")
    arguments.check_function("decode", decode, "a function z -> mean of x")
    mean, std = (jnp.asarray(a, jnp.promote_types(a.dtype, jnp.float32)) for a in encode(x))
    arguments.check_shape("std", std, mean.shape, "the shape of the mean")
    return mean, std


def _noise(key: jax.Array, mean: jax.Array, ids: ArrayLike, k: ArrayLike = 0) -> jax.Array:
    per_example = keys.fold(keys.per_example(keys.stream(key, "latent"), ids), k)
    return keys.draw(jax.random.normal, per_example, mean.shape[1:], mean.dtype)


def _error(decode: Decode, z: jax.Array, x: jax.Array) -> jax.Array:
    output = decode(z)
    arguments.check_shape("decode", output, x.shape, "an output of the shape of x")
    dtype = jnp.promote_types(jnp.result_type(x, output), jnp.float32)
    return _sum((x.astype(dtype) - output.astype(dtype)) ** 2)


def _sum(a: jax.Array) -> jax.Array:
    return jnp.sum(a, axis=range(1, a.ndim))
