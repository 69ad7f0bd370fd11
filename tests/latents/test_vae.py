"""The bound in closed form: a linear Gaussian autoencoder is probabilistic PCA (Tipping & Bishop 1999)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracles
import pytest

from ddpm_jax.latents import vae

KEY = jax.random.key(0)
VARIANCE = 0.3
W = np.linalg.qr(np.random.default_rng(0).normal(size=(5, 2)))[0] * [2.0, 0.7]
X = np.random.default_rng(1).normal(size=(4, 5))
MEAN, STD, EVIDENCE = oracles.linear_gaussian(W, VARIANCE, X)


def model(x, wider=1.0):
    mean, std, _ = oracles.linear_gaussian(W, VARIANCE, x)
    return lambda _: (jnp.asarray(mean), jnp.broadcast_to(wider * std, mean.shape)), lambda z: z @ W.T


def test_the_bound_is_the_evidence_at_the_exact_posterior():
    with jax.enable_x64(True):
        encode, decode = model(X)
        rate, _ = vae.terms(KEY, encode, decode, jnp.asarray(X))
        expected_error = ((X - MEAN @ W.T) ** 2).sum(1) + (STD**2 * (W**2).sum(0)).sum()
        bound = -(rate + vae.distortion(expected_error, 5, np.log(VARIANCE)))
        np.testing.assert_allclose(bound, EVIDENCE, rtol=0, atol=1e-6)
        for num in (1, 3):  # all weights are equal
            weighted = vae.importance_weighted(KEY, encode, decode, jnp.asarray(X), num, np.log(VARIANCE))
            np.testing.assert_allclose(weighted, EVIDENCE, rtol=0, atol=1e-6)


def test_the_estimate_is_unbiased_and_keyed_per_example():
    x = np.repeat(X[:1], 4000, axis=0)
    elbo = np.asarray(vae.elbo(KEY, *model(x), jnp.asarray(x), np.log(VARIANCE)))
    assert abs(elbo.mean() - EVIDENCE[0]) < 4 * elbo.std() / np.sqrt(4000)
    part = vae.elbo(KEY, *model(x[:2]), jnp.asarray(x[:2]), np.log(VARIANCE), ids=np.array([7, 3]))
    np.testing.assert_allclose(part, elbo[[7, 3]], rtol=1e-5)


def test_the_importance_weighted_bound_rises_to_the_evidence():
    x = np.repeat(X[:1], 2000, axis=0)
    bounds = [
        np.asarray(vae.importance_weighted(KEY, *model(x, 1.6), jnp.asarray(x), num, np.log(VARIANCE))) for num in (1, 4, 64)
    ]
    means, errors = np.mean(bounds, axis=1), np.std(bounds, axis=1) / np.sqrt(2000)
    assert means[1] - means[0] > 4 * np.hypot(*errors[:2])
    assert means[2] - means[1] > 4 * np.hypot(*errors[1:])
    assert -0.03 < means[2] - EVIDENCE[0] < 4 * errors[2]


def test_training_reaches_the_pca_optimum():
    rng = np.random.default_rng(2)
    data = rng.normal(size=(1024, 2)) @ W.T + np.sqrt(VARIANCE) * rng.normal(size=(1024, 5))
    eigenvalues, vectors = np.linalg.eigh(data.T @ data / len(data))
    discarded = eigenvalues[:3].mean()
    x = jnp.asarray(data, jnp.float32)
    parts = lambda p: (lambda x: (x @ p["a"], jnp.broadcast_to(jnp.exp(p["s"]), (len(x), 2))), lambda z: z @ p["w"])  # noqa: E731
    optimizer = optax.adam(optax.cosine_decay_schedule(0.03, 600))

    def step(carry, i):
        params, state = carry
        loss = lambda p: -vae.elbo(jax.random.fold_in(KEY, i), *parts(p), x).mean()  # noqa: E731
        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return (optax.apply_updates(params, updates), state), None

    params = {"a": 0.1 * jax.random.normal(KEY, (5, 2)), "s": jnp.zeros(2), "w": 0.1 * jax.random.normal(KEY, (2, 5))}
    (params, _), _ = jax.jit(lambda carry: jax.lax.scan(step, carry, jnp.arange(600)))((params, optimizer.init(params)))

    # W W^T = U (L - sigma^2) U^T, and sigma^2 is the mean of the discarded eigenvalues.
    squared_error = vae.terms(jax.random.key(1), *parts(params), x).squared_error
    np.testing.assert_allclose(jnp.exp(vae.optimal_log_variance(squared_error, 5)), discarded, rtol=0.05)
    expected = vectors[:, 3:] * (eigenvalues[3:] - discarded) @ vectors[:, 3:].T
    np.testing.assert_allclose(params["w"].T @ params["w"], expected, atol=0.05 * eigenvalues[-1])


def test_the_optimal_variance_maximises_the_bound():
    best, *others = (vae.elbo(KEY, *model(X), jnp.asarray(X), log_variance).mean() for log_variance in (None, -2.0, 0.0, 1.0))
    assert best > max(others)


def test_bad_input():
    encode, decode = model(X)
    with pytest.raises(ValueError, match="num: expected at least 1, received 0"):
        vae.importance_weighted(KEY, encode, decode, jnp.asarray(X), 0, 0.0)
    with pytest.raises(ValueError, match="decode: expected an output of the shape of x"):
        vae.elbo(KEY, encode, lambda z: z, jnp.asarray(X))
    with pytest.raises(TypeError, match="x: expected a floating-point array"):
        vae.elbo(KEY, encode, decode, jnp.zeros((4, 5), int))
