import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import denoiser, diffusion, guidance, samplers, schedules
from ddpm_jax.denoiser import Denoised, make_denoise
from ddpm_jax.samplers import grids
from ddpm_jax.schedules import Level

SCHEDULE = schedules.linear(1000)
KEY = jax.random.key(0)
LEVEL = SCHEDULE.level(400)
X_T = jax.random.normal(KEY, (6, 4))
LABELS = jnp.array([1, 2, 3, 4, 5, 6])


def predict(x_t, t, labels):
    """A network that knows its labels; 0 is the unconditional one."""
    return jnp.tanh(x_t + labels[:, None] / 3 + t[:, None] / 1000)


def bound(labels):
    return make_denoise(SCHEDULE, lambda x, t: predict(x, t, labels), clip=False)


DOUBLED = bound(guidance.interleave(LABELS, 0))
CONDITIONAL, UNCONDITIONAL = bound(LABELS), bound(0 * LABELS)


def normal_data(mean, variance):
    """The exact Denoise of normal data, each number its own."""

    def denoise(x, level):
        gain = level.alpha * variance / (level.alpha**2 * variance + level.sigma**2)
        x0 = mean + gain * (x - level.alpha * mean)
        return Denoised(x0, diffusion.eps_from_x0(level, x, x0))

    return denoise


def assert_same(ours, theirs, **tolerance):
    for a, b in zip(ours[:2], theirs[:2], strict=True):
        np.testing.assert_allclose(a, b, **({"atol": 2e-5} | tolerance))


def test_interleave_alternates():
    np.testing.assert_array_equal(guidance.interleave(jnp.array([5, 6]), 0), [5, 0, 6, 0])
    np.testing.assert_array_equal(guidance.interleave(jnp.array([5, 6]), jnp.array([1, 2])), [5, 1, 6, 2])
    np.testing.assert_array_equal(guidance.interleave(jnp.ones((2, 3)), jnp.zeros(3))[:, 0], [1, 0, 1, 0])
    with pytest.raises(ValueError, match="unconditional"):
        guidance.interleave(jnp.ones((2, 3)), jnp.zeros(2))


@pytest.mark.parametrize("level", [LEVEL, SCHEDULE.level(jnp.array([0, 10, 100, 400, 700, 999]))], ids=["one", "each"])
def test_scale_one_is_conditional_and_zero_unconditional(level):
    assert_same(guidance.classifier_free(DOUBLED, 1.0)(X_T, level), CONDITIONAL(X_T, level), rtol=1e-4)
    assert_same(guidance.classifier_free(DOUBLED, 0.0)(X_T, level), UNCONDITIONAL(X_T, level), rtol=1e-4)
    own = guidance.classifier_free(DOUBLED, jnp.array([0.0, 1.0, 0.0, 1.0, 0.0, 1.0]))(X_T, level)
    assert_same([a[1::2] for a in own[:2]], [a[1::2] for a in CONDITIONAL(X_T, level)[:2]], rtol=1e-4)
    assert_same([a[::2] for a in own[:2]], [a[::2] for a in UNCONDITIONAL(X_T, level)[:2]], rtol=1e-4)


def test_a_larger_scale_goes_on_along_the_line_from_one_network_call():
    calls = []

    def counted(x, t):
        calls.append(x.shape)
        return predict(x, t, guidance.interleave(LABELS, 0))

    guided = guidance.classifier_free(make_denoise(SCHEDULE, counted, clip=False), 4.0)(X_T, LEVEL)
    assert calls == [(12, 4)]
    for a, c, u in zip(guided[:2], CONDITIONAL(X_T, LEVEL)[:2], UNCONDITIONAL(X_T, LEVEL)[:2], strict=True):
        np.testing.assert_allclose((a - c) / (c - u), 3, rtol=1e-3)
    np.testing.assert_allclose(diffusion.add_noise(LEVEL, guided.x0, guided.eps), X_T, atol=1e-5)


def test_guidance_holds_within_its_interval_alone():
    log_snr = SCHEDULE.log_snr
    guided = guidance.classifier_free(DOUBLED, 5.0, interval=(log_snr[600], log_snr[200]))
    for t, inside in ((900, False), (601, False), (590, True), (210, True), (199, False), (0, False)):
        level = SCHEDULE.level(t)
        same = np.allclose(guided(X_T, level).eps, CONDITIONAL(X_T, level).eps, atol=1e-5)
        assert same is not inside
    clean = Level(np.float32(0), np.float32(1), np.float32(0))
    assert all(np.isfinite(a).all() for a in guided(X_T, clean)[:2])


def test_rescaling_gives_the_conditional_standard_deviation_back():
    before = np.std(CONDITIONAL(X_T, LEVEL).x0, axis=1)
    plain, half, whole = (guidance.classifier_free(DOUBLED, 6.0, rescale=r)(X_T, LEVEL) for r in (0.0, 0.5, 1.0))
    np.testing.assert_allclose(np.std(whole.x0, axis=1), before, rtol=1e-4)
    np.testing.assert_allclose(half.x0, (plain.x0 + whole.x0) / 2, rtol=1e-4)
    np.testing.assert_allclose(diffusion.add_noise(LEVEL, whole.x0, whole.eps), X_T, atol=1e-5)


def test_autoguidance_leads_away_from_the_weaker_model():
    strong, weak = CONDITIONAL(X_T, LEVEL), UNCONDITIONAL(X_T, LEVEL)
    assert_same(guidance.autoguidance(CONDITIONAL, UNCONDITIONAL, 1.0)(X_T, LEVEL), strong)
    assert_same(guidance.autoguidance(CONDITIONAL, UNCONDITIONAL, 0.0)(X_T, LEVEL), weak)
    further = guidance.autoguidance(CONDITIONAL, UNCONDITIONAL, 3.0)(X_T, LEVEL)
    np.testing.assert_allclose(further.x0 - strong.x0, 2 * (strong.x0 - weak.x0), rtol=1e-3, atol=1e-5)


def log_normal(mean, variance):
    """log p(x_t) of noised normal data, but for a constant."""

    def log_prob(x, level):
        spread = level.alpha**2 * variance + level.sigma**2
        return -jnp.sum((x - level.alpha * mean) ** 2, axis=tuple(range(1, x.ndim))) / (2 * spread)

    return log_prob


def test_an_exact_classifier_gives_the_exact_conditional():
    """p(x | y) = p(x) p(y | x) / p(y) with p(y | x_t) = q(x_t | y) p(y) / q(x_t): both normal here."""
    whole, within = (0.1, 1.0), (0.6, 0.2)
    log_prob = lambda x, level: log_normal(*within)(x, level) - log_normal(*whole)(x, level)  # noqa: E731
    guided = guidance.classifier(normal_data(*whole), log_prob)
    for t in (0, 100, 500, 999):
        level = SCHEDULE.level(t)
        assert_same(guided(X_T, level), normal_data(*within)(X_T, level), rtol=2e-3, atol=2e-4)
    scaled = guidance.classifier(normal_data(*whole), log_prob, jnp.array([0.0, 1, 0, 1, 0, 1]))(X_T, LEVEL)
    assert_same([a[::2] for a in scaled[:2]], [a[::2] for a in normal_data(*whole)(X_T, LEVEL)[:2]])
    assert_same([a[1::2] for a in scaled[:2]], [a[1::2] for a in normal_data(*within)(X_T, LEVEL)[:2]], rtol=1e-3)


@pytest.mark.parametrize("std", [0.0, 0.5])
def test_a_measurement_of_normal_data_gives_the_exact_posterior(std):
    """The mean of two numbers times sqrt 2 is an orthonormal row: the posterior's mean and variance are in closed form."""
    measure = lambda x0: (x0[:, :1] + x0[:, 1:]) / np.sqrt(2)  # noqa: E731
    shape, measured = (10_000, 2), jnp.full((10_000, 1), 1.2)
    likelihood = guidance.gaussian_likelihood(measure, measured, std)
    denoise = guidance.dps(normal_data(0.0, 1.0), likelihood)
    x = samplers.sample(KEY, samplers.dpm_solver_pp(2), denoise, grids.uniform_log_snr(SCHEDULE, 60), shape)
    along, across = np.asarray(measure(x))[:, 0], np.asarray(x[:, 0] - x[:, 1]) / np.sqrt(2)
    mean, var = 1.2 / (1 + std**2), std**2 / (1 + std**2)
    assert abs(along.mean() - mean) < 4 * np.sqrt(var / 10_000) + 5e-3
    assert abs(along.std() - np.sqrt(var)) < 4 * np.sqrt(var / 20_000) + 2e-2
    assert abs(across.mean()) < 4 / 100
    assert abs(across.std() - 1) < 4 / np.sqrt(20_000)


def test_dps_follows_its_gradient_through_the_network():
    """Against a finite difference of log p(y | x0(x_t)) in one direction."""
    likelihood = guidance.gaussian_likelihood(lambda x0: x0[:, :2], jnp.ones((6, 2)), 0.3, data_std=0.0)
    guided = guidance.dps(CONDITIONAL, likelihood, 0.5)(X_T, LEVEL)
    direction = jnp.sin(jnp.arange(24.0)).reshape(6, 4)
    along = lambda h: likelihood(CONDITIONAL(X_T + h * direction, LEVEL).x0, LEVEL)  # noqa: E731
    slope = (along(1e-2) - along(-1e-2)) / 2e-2
    found = jnp.sum((CONDITIONAL(X_T, LEVEL).eps - guided.eps) * direction, axis=1) / LEVEL.sigma
    np.testing.assert_allclose(found, 0.5 * slope, rtol=1e-2)
    np.testing.assert_allclose(diffusion.add_noise(LEVEL, guided.x0, guided.eps), X_T, atol=1e-4)


def test_every_guidance_is_finite_at_both_ends():
    likelihood = guidance.gaussian_likelihood(lambda x0: x0[:, :2], jnp.ones((6, 2)), 0.0)
    for denoise in (
        guidance.classifier_free(DOUBLED, 3.0, interval=(-1, 1), rescale=0.7),
        guidance.autoguidance(CONDITIONAL, UNCONDITIONAL, 3.0),
        guidance.classifier(CONDITIONAL, log_normal(0.0, 1.0)),
        guidance.dps(normal_data(0.0, 1.0), likelihood),
        guidance.dynamic_threshold(CONDITIONAL),
    ):
        both = jax.jit(lambda level, d=denoise: (d(X_T, level)[:2], jax.grad(lambda x: d(x, level).x0.sum())(X_T)))
        for alpha in (0.0, 1.0):
            level = Level(np.float32(0), np.float32(alpha), np.float32(1 - alpha))
            assert all(np.isfinite(a).all() for a in jax.tree.leaves(both(level)))


def test_dynamic_thresholding():
    """x0 of -2.5, -1, 0, 1, 5: the 3/4 quantile of |x0| is 2.5, and without it, at most 1, it is a static clip."""
    x0 = jnp.array([[-2.5, -1.0, 0.0, 1.0, 5.0], [0.1, 0.2, 0.3, 0.4, 0.5]])
    raw = lambda x, level: Denoised(x0, x)  # noqa: E731
    x_t = jnp.ones((2, 5))
    out = guidance.dynamic_threshold(raw, 0.75)(x_t, LEVEL)
    np.testing.assert_allclose(out.x0, [[-1, -0.4, 0, 0.4, 1], [0.1, 0.2, 0.3, 0.4, 0.5]], rtol=1e-6)
    np.testing.assert_allclose(diffusion.add_noise(LEVEL, out.x0, out.eps), x_t, atol=1e-5)
    limited = guidance.dynamic_threshold(raw, 0.75, limit=1.0, rederive_eps=False)(x_t, LEVEL)
    assert_same(limited, denoiser.clipped(raw, rederive_eps=False)(x_t, LEVEL))


def test_guidance_samples_as_it_should_and_each_by_its_own_scale():
    """Under jit, on a grid to the clean end; example i is the same alone, with its own label and scale."""
    levels, scales = grids.spaced(SCHEDULE, 6), jnp.linspace(0.0, 3.0, 6)

    def draw(ids):
        denoise = bound(guidance.interleave(LABELS[ids], 0))
        denoise = denoiser.clipped(guidance.classifier_free(denoise, scales[ids], interval=(-5.0, 5.0)))
        return samplers.sample(KEY, samplers.ddim(), denoise, levels, (len(ids), 4), ids=ids)

    whole = jax.jit(lambda: draw(np.arange(6)))()
    np.testing.assert_allclose(draw(np.array([2, 4])), whole[np.array([2, 4])], atol=1e-5)


def test_mistakes_are_refused():
    for scale in (jnp.ones((2, 2)), np.ones((6, 1))):
        for build in (
            lambda s: guidance.classifier_free(DOUBLED, s), lambda s: guidance.autoguidance(CONDITIONAL, UNCONDITIONAL, s),
            lambda s: guidance.classifier(CONDITIONAL, log_normal(0.0, 1.0), s),
            lambda s: guidance.dps(CONDITIONAL, log_normal(0.0, 1.0), s),
        ):  # fmt: skip
            with pytest.raises(ValueError, match="scale"):
                build(scale)
    with pytest.raises(ValueError, match="scale"):
        guidance.classifier_free(DOUBLED, jnp.ones(5))(X_T, LEVEL)
    with pytest.raises(ValueError, match="interval"):
        guidance.classifier_free(DOUBLED, 2.0, interval=(1.0, -1.0))
    for rescale in (-0.1, 1.1):
        with pytest.raises(ValueError, match="rescale"):
            guidance.classifier_free(DOUBLED, 2.0, rescale=rescale)
    with pytest.raises(ValueError, match="log-probability"):
        guidance.classifier(CONDITIONAL, lambda x, level: x)(X_T, LEVEL)
    with pytest.raises(ValueError, match="measured"):
        guidance.dps(CONDITIONAL, guidance.gaussian_likelihood(lambda x: x[:, :2], jnp.ones((6, 3)), 0.1))(X_T, LEVEL)
    with pytest.raises(ValueError, match="std"):
        guidance.gaussian_likelihood(lambda x: x, X_T, 0.0, data_std=0.0)
    with pytest.raises(ValueError, match=r"^unconditional: expected the pytree of condition, .*, received PyTreeDef\(\*\)$"):
        guidance.conditional(lambda x_t, t, labels: x_t, [3, 7], 0, 2.0)
    for wrong in ({"quantile": 1.5}, {"limit": 0.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            guidance.dynamic_threshold(CONDITIONAL, **wrong)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "score"])
@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5, jnp.array([0.0, 1.0, 2.0, 3.0, 0.5, 1.5])], ids=str)
def test_a_condition_that_is_bound_is_guided_as_its_denoise_would_be(prediction, scale):
    """At one x_t all predictions are affine in each other, so guiding the output is guiding x0 and eps."""
    read = lambda predict: make_denoise(SCHEDULE, predict, prediction, clip=False)  # noqa: E731
    guided = guidance.classifier_free(read(lambda x, t: predict(x, t, guidance.interleave(LABELS, 0))), scale)
    ours = read(guidance.conditional(predict, LABELS, jnp.int32(0), scale))(X_T, LEVEL)
    assert_same(ours, guided(X_T, LEVEL), rtol=1e-4)


def test_without_a_condition_or_at_scale_zero_or_one_the_network_sees_each_example_once():
    seen = []
    network = lambda x, t, labels: seen.append(np.asarray(labels)) or predict(x, t, labels)  # noqa: E731
    t = jnp.full(6, 400)
    for condition, scale in ((None, 3.0), (LABELS, 0.0), (LABELS, 1.0), (jnp.int32(4), 1), (LABELS, 2.0)):
        guidance.conditional(network, condition, jnp.int32(0), scale)(X_T, t)
    np.testing.assert_array_equal(seen[0], np.zeros(6))
    np.testing.assert_array_equal(seen[1], np.zeros(6))
    np.testing.assert_array_equal(seen[2], LABELS)
    np.testing.assert_array_equal(seen[3], np.full(6, 4))
    np.testing.assert_array_equal(seen[4], [1, 0, 2, 0, 3, 0, 4, 0, 5, 0, 6, 0])
    assert guidance.conditional(lambda x, t, c: c, None, None)(X_T, t) is None, "a network without conditions"


def test_a_condition_is_any_pytree_and_a_learned_variance_stays_the_conditional_one():
    """Tokens [B, L, D] and a pooled vector [B, E]; the output has twice the channels of x_t."""
    tokens, pooled = jax.random.normal(KEY, (6, 3, 4)), jax.random.normal(KEY, (6, 2))
    condition, none = {"tokens": tokens, "pooled": pooled}, {"tokens": jnp.zeros((3, 4)), "pooled": jnp.zeros(2)}

    def network(x, t, c):
        mean = x + c["tokens"].mean(axis=1)
        return jnp.concatenate([mean, jnp.broadcast_to(c["pooled"].sum(axis=1)[:, None], x.shape)], axis=1)

    output = guidance.conditional(network, condition, none, 3.0)(X_T, jnp.full(6, 400))
    np.testing.assert_allclose(output[:, :4], X_T + 3 * tokens.mean(axis=1), atol=1e-5)
    np.testing.assert_allclose(output[:, 4:], jnp.tile(pooled.sum(axis=1)[:, None], (1, 4)), atol=1e-6)
    shapes = []
    watched = lambda x, t, c: shapes.append(c["tokens"].shape) or network(x, t, c)  # noqa: E731
    long = {"tokens": jnp.zeros((6, 4)), "pooled": jnp.zeros(2)}  # as many tokens as examples
    guidance.conditional(watched, None, long)(X_T, jnp.full(6, 400))
    assert shapes == [(6, 6, 4)]
    with pytest.raises(ValueError, match="scale: expected a number or shape"):
        guidance.conditional(network, condition, none, jnp.ones(5))(X_T, jnp.full(6, 400))


def test_what_wraps_a_network_can_be_pickled_if_it_can():
    """With module-level functions; `predict_given` stands for a network."""
    likelihood = guidance.gaussian_likelihood(measure, jnp.ones((2, 3)), 0.1)
    plain = denoiser.make_denoise(schedules.linear(10), predict_plain, clip=False)
    bound = guidance.conditional(predict_given, jnp.array([3, 7]), 0, 2.0)
    wrapped = [
        denoiser.make_denoise(schedules.continuous.shifted(schedules.continuous.linear_vp(), 0.5), bound),
        guidance.classifier_free(plain, 2.0, (-1.0, 1.0), 0.5), guidance.autoguidance(plain, plain, 2.0),
        guidance.dps(plain, likelihood), guidance.classifier(plain, likelihood), guidance.dynamic_threshold(plain),
    ]  # fmt: skip
    x, level = jnp.linspace(-1, 1, 6).reshape(2, 3), schedules.Level(jnp.float32(0.5), jnp.float32(0.6), jnp.float32(0.8))
    for denoise in wrapped:
        again = pickle.loads(pickle.dumps(denoise))
        np.testing.assert_array_equal(again(x, level).x0, denoise(x, level).x0)


def measure(x0):
    return x0


def predict_plain(x_t, t):
    return jnp.tanh(x_t)


def predict_given(x_t, t, labels):
    return x_t * labels[:, None]
