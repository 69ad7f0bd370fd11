import dataclasses
from typing import get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax import config, factory, samplers
from ddpm_jax.config import Config, Diffusion, Loss, Network, Optimizer, Sample, kinds
from ddpm_jax.config.cli import UsageError
from ddpm_jax.data import sources
from ddpm_jax.denoiser import make_denoise

SCHEDULE = factory.make_schedule(Diffusion())
NAMES = {
    "schedule": get_args(get_type_hints(Diffusion)["schedule"]),
    "weighting": get_args(get_type_hints(Loss)["weighting"]),
}


@pytest.mark.parametrize("grid", get_args(config.Grid))
@pytest.mark.parametrize("method", [name for name in kinds.kinds(Sample) if name != "analytic_dpm"])
def test_every_sampler_on_every_grid(method, grid):
    """Data at one point, known to the model: all of them end there."""
    diffusion = Diffusion()
    schedule = factory.make_schedule(diffusion)
    interval = {"restart_interval": (0.0, 0.9)} if method == "restart" else {}
    sample = Sample(sampler=method, grid=grid, steps=6, **interval)
    sampler, levels = factory.make_sampler(sample, diffusion, schedule), factory.make_levels(sample, diffusion, schedule)
    denoise = make_denoise(schedule, lambda x, t: jnp.full_like(x, 0.3), "x0")
    x = samplers.sample(jax.random.key(0), sampler, denoise, levels, (2, 4))
    np.testing.assert_allclose(x, 0.3, atol=1e-4)


CONTINUOUS = [name for name in NAMES["schedule"] if Diffusion(name).is_continuous]


@pytest.mark.parametrize("name", [name for name in NAMES["schedule"] if name not in CONTINUOUS])
@pytest.mark.parametrize("zero", [False, True])
def test_every_discrete_schedule(name, zero):
    schedule = factory.make_schedule(Diffusion(schedule=name, num_steps=50, zero_terminal_snr=zero, beta_end=0.3))
    assert schedule.num_steps == 50
    assert np.all(np.diff(schedule.alpha_bar) < 0)
    assert (schedule.alpha_bar[-1] == 0) == (zero or name == "jsd")


@pytest.mark.parametrize("grid", get_args(config.Grid))
@pytest.mark.parametrize("name", CONTINUOUS)
def test_continuous_schedules_have_every_grid(name, grid):
    """From the noise on, with 100 steps if none are asked for; a sampler that is given the data ends there."""
    diffusion = Diffusion(schedule=name)
    schedule, sample = factory.make_schedule(diffusion), Sample(sampler="ddim", grid=grid)
    levels = factory.make_levels(sample, diffusion, schedule)
    assert len(levels.t) == 101
    assert levels.alpha[0] < 0.01
    denoise = make_denoise(schedule, lambda x, t: jnp.full_like(x, 0.3), "x0")
    x = samplers.sample(jax.random.key(0), samplers.ddim(), denoise, levels, (2, 4))
    np.testing.assert_allclose(x, 0.3, atol=1e-4)
    assert len(factory.make_levels(dataclasses.replace(sample, steps=7), diffusion, schedule).t) == 8


def test_the_continuous_linear_schedule_is_the_limit_of_the_discrete_one():
    """At t + 1 of T = 1000 steps."""
    continuous, discrete = (factory.make_schedule(Diffusion(schedule=name)) for name in ("continuous_linear", "linear"))
    t = np.arange(50, 1000, 50)
    np.testing.assert_allclose(continuous.level((t + 1) / 1000).alpha, discrete.level(t).alpha, atol=1e-3)


@pytest.mark.parametrize(
    "change, said",
    [
        (
            {"prediction": "mean"},
            "--diffusion.prediction: expected eps, x0, v, score, flow or edm with the continuous schedule",
        ),
        ({"variance": "learned"}, "--diffusion.variance: expected fixed_small or fixed_large with the continuous schedule"),
        ({"zero_terminal_snr": True}, "--diffusion.zero_terminal_snr: expected False with the continuous schedule"),
    ],
)
def test_continuous_time_refuses_what_needs_steps(change, said):
    with pytest.raises(UsageError, match=said):
        factory.make_schedule(Diffusion(schedule="continuous_cosine", **change))
    diffusion = Diffusion(schedule="continuous_cosine")
    schedule = factory.make_schedule(diffusion)
    with pytest.raises(UsageError, match=r"--loss.times: expected uniform, stratified or log_normal in continuous time"):
        factory.make_times(Loss(times="importance"), Diffusion(), schedule, 8)
    with pytest.raises(UsageError, match=r"--loss.kind: expected simple with the continuous schedule"):
        factory.make_loss(Loss(kind="vlb"), diffusion, schedule)


@pytest.mark.parametrize("diffusion", [Diffusion(prediction="mean"), Diffusion(variance="learned_raw")])
def test_models_of_whole_times_refuse_fractional_ones(diffusion):
    schedule = factory.make_schedule(diffusion)
    with pytest.raises(UsageError, match="expected a grid and a sampler of integer timesteps"):
        factory.make_levels(Sample(grid="karras", steps=10), diffusion, schedule)
    assert len(factory.make_levels(Sample(steps=10), diffusion, schedule).t) == 11


def test_a_network_that_learns_its_variance_has_twice_the_channels():
    base = config.Config(workdir="runs/base")
    learned = dataclasses.replace(base, diffusion=Diffusion(variance="learned"))
    assert factory.make_network(base, (8, 8, 3)).out_channels is None
    assert factory.make_network(learned, (8, 8, 3)).out_channels == 6


@pytest.mark.parametrize("weighting", NAMES["weighting"])
def test_every_weighting_is_a_loss(weighting):
    diffusion = Diffusion()
    of = factory.make_loss(Loss(weighting=weighting), diffusion, factory.make_schedule(diffusion))
    x0, ids, t = jnp.zeros((2, 3)), jnp.arange(2), jnp.array([10, 500])
    loss = of(jax.random.key(0), lambda x, t: jnp.zeros_like(x), x0, ids, t)
    assert loss.shape == (2,)
    assert np.all(loss > 0)


def test_labels_are_drawn_in_turn_and_guidance_goes_from_none_to_the_class():
    """The network says the label that it is told, scaled; 3 stands for none."""
    told = Config(workdir="", network=Network(num_classes=3), diffusion=Diffusion(prediction="x0"))
    classes = factory.make_labels(Sample(label=(2, 0)), told.network)
    np.testing.assert_array_equal(classes(jnp.arange(3, 8)), [0, 2, 0, 2, 0])
    np.testing.assert_array_equal(factory.make_labels(Sample(), told.network)(jnp.arange(5)), [0, 1, 2, 0, 1])

    class Echo:
        def apply(self, params, x_t, t, labels=None):
            return x_t * 0 + labels[:, None] / 10

    schedule, x_t = factory.make_schedule(told.diffusion), jnp.ones((4, 2))

    def x0(labels, scale=1.0):
        denoise = factory.bind(told, Echo(), schedule, {}, False, labels, scale)
        return np.asarray(denoise(x_t, schedule.level(9)).x0)[:, 0]

    labels = jnp.array([0, 1, 2, -1])
    np.testing.assert_allclose(x0(labels), [0, 0.1, 0.2, 0.3], atol=1e-6)
    np.testing.assert_allclose(x0(jnp.int32(1)), 0.1, atol=1e-6)
    np.testing.assert_allclose([x0(None), x0(labels, 0.0)], 0.3, atol=1e-6)
    np.testing.assert_allclose(x0(labels, 2.0), [-0.3, -0.1, 0.1, 0.3], atol=1e-6)


def test_labels_are_names_or_indices():
    conditional = Config(workdir="", network=Network(num_classes=3))

    def indices(*label, classes):
        made = dataclasses.replace(conditional, sample=Sample(label=label))
        return factory.with_label_indices(made, classes).sample.label

    assert indices("dogs", "0", 2, "cats", classes=("cats", "dogs", "geese")) == (1, 0, 2, 0)
    assert indices("3", 5, "1", classes=("01", "3", "5")) == (1, 2, 1), "names come first"
    assert indices("2", 0, classes=None) == (2, 0)
    with pytest.raises(UsageError, match=r"^--sample.label: expected one of cats, dogs, geese, received dog, perhaps dogs$"):
        indices("dog", classes=("cats", "dogs", "geese"))
    with pytest.raises(UsageError, match=r"^--sample.label: expected one of cats, dogs, received 3\.5$"):
        indices("3.5", classes=("cats", "dogs"))
    with pytest.raises(
        UsageError, match=r"^--sample.label: expected indices, because the classes have no names, received cat$"
    ):
        indices("cat", classes=None)
    np.testing.assert_array_equal(factory.make_labels(Sample(label=("2", 0)), conditional.network)(jnp.arange(3)), [2, 0, 2])


@pytest.mark.parametrize(
    "sample, classes, said",
    [
        (Sample(label=(3,)), 3, r"--sample.label: expected classes in 0..2, received \(3,\)"),
        (Sample(label=("3",)), 3, r"--sample.label: expected classes in 0..2, received \(3,\)"),
        (Sample(label=("cats",)), 3, "--sample.label: expected indices"),
        (Sample(label=()), 3, "--sample.label: expected classes in 0..2"),
        (Sample(label=(0,)), None, "--sample.label: expected none"),
        (Sample(guidance=2.0), None, "--sample.guidance: expected 1"),
        (Sample(guidance=float("inf")), 3, "--sample.guidance: expected a finite number"),
        (
            Sample(guidance=2.0, guidance_interval=(1.0, -1.0)),
            3,
            r"--sample.guidance_interval: interval: expected",
        ),
        (Sample(guidance=1.0, guidance_interval=(-1.0, 1.0)), 3, "--sample.guidance_interval: expected with --sample.guidance"),
        (Sample(guidance=2.0, guidance_rescale=2.0), 3, "--sample.guidance_rescale: rescale: expected 0 to 1, received 2"),
        (Sample(dynamic_threshold=1.5), None, "--sample.dynamic_threshold: quantile: expected 0 to 1, received 1.5"),
    ],
)
def test_labels_and_guidance_that_the_network_does_not_have(sample, classes, said):
    with pytest.raises(UsageError, match=said):
        factory.make_denoise_of(Config(workdir="", network=Network(num_classes=classes), sample=sample), None, SCHEDULE)


def test_guidance_of_a_config_is_that_of_the_library():
    """A network whose estimate is its label / 10: interval, rescaling and a weaker model, against formulas by hand."""
    made = Config(workdir="", network=Network(num_classes=3), diffusion=Diffusion(prediction="x0"))
    x_t, ids, level = jnp.ones((3, 2)), jnp.arange(3), SCHEDULE.level(500)

    class Ramp:
        def __init__(self, slope):
            self.slope = slope

        def apply(self, params, x_t, t, labels):
            return jnp.stack([labels, -self.slope * labels], axis=1) / 10

    def x0(level, weaker=None, **sample):
        config = dataclasses.replace(made, sample=Sample(clip=False, **sample))
        denoise = factory.make_denoise_of(config, Ramp(1.0), SCHEDULE, weaker)(({}, {}) if weaker else {}, ids)
        return np.asarray(denoise(x_t, level).x0)

    given, none = np.array([[0.0, 0.0], [0.1, -0.1], [0.2, -0.2]]), np.array([0.3, -0.3])
    guided = none + 2 * (given - none)
    np.testing.assert_allclose(x0(level, guidance=2.0), guided, atol=1e-6)
    inside = float(level.log_snr)
    np.testing.assert_allclose(x0(level, guidance=2.0, guidance_interval=(inside - 1, inside + 1)), guided, atol=1e-6)
    np.testing.assert_allclose(x0(level, guidance=2.0, guidance_interval=(inside + 1, inside + 2)), given, atol=1e-6)
    rescaled = guided * np.abs(given[:, :1]) / np.abs(guided[:, :1])  # the standard deviation of (a, -a) is |a|
    np.testing.assert_allclose(x0(level, guidance=2.0, guidance_rescale=1.0), rescaled, atol=1e-6)
    limited = x0(level, guidance=2.0, dynamic_threshold=1.0)
    np.testing.assert_allclose(limited, guided, atol=1e-6, err_msg="below 1 nothing is thresholded")
    run = factory.LoadedRun(made, 0, (2,), Ramp(0.5), SCHEDULE, {}, None, "raw")
    weak = given * np.array([1.0, 0.5])
    np.testing.assert_allclose(x0(level, weaker=run, guidance=2.0), weak + 2 * (given - weak), atol=1e-6)
    other = run._replace(config=dataclasses.replace(made, diffusion=Diffusion(prediction="x0", num_steps=500)))
    with pytest.raises(UsageError, match=r"--weaker: expected diffusion.num_steps 1000, as in --workdir, received 500"):
        x0(level, weaker=other, guidance=2.0)


def test_options_of_a_sampler_reach_it():
    """Each against the library's own call: the same coefficients."""
    diffusion = Diffusion()
    churn = samplers.Churn(30.0, 0.1, 50.0, 1.01)
    options = dict(zip(("churn", "churn_low", "churn_high", "churn_noise"), churn, strict=True))
    pairs = [
        (Sample(sampler="euler", **options), samplers.euler(SCHEDULE, churn)),
        (Sample(sampler="heun", **options), samplers.heun(SCHEDULE, churn)),
        (Sample(sampler="euler_ancestral", eta=0.3), samplers.euler_ancestral(0.3)),
        (Sample(sampler="dpm_solver_pp", order=3, second_difference="published"),
         samplers.dpm_solver_pp(3, second_difference="published", lower_order_final=True)),
        (Sample(sampler="dpm_solver_pp_sde", variant="heun", lower_order_final=False),
         samplers.dpm_solver_pp(2, "heun", sde=True)),
        (Sample(sampler="dpm_solver_pp_2s", variant="heun", ratio=0.4), samplers.dpm_solver_pp_2s(SCHEDULE, "heun", 0.4)),
        (Sample(sampler="unipc", variant="bh1", corrector=False), samplers.unipc(2, "bh1", False, True)),
        (Sample(sampler="deis", order=4, variable="rho"), samplers.deis(4, "rho", True)),
        (Sample(sampler="pndm", lower_order_final=True), samplers.pndm(lower_order_final=True)),
        (Sample(sampler="langevin", variance="fixed_small", snr=0.1, num_corrections=2),
         samplers.langevin(samplers.ddpm("fixed_small"), 0.1, 2)),
    ]  # fmt: skip
    levels = factory.make_levels(Sample(steps=8), diffusion, SCHEDULE)
    denoise = make_denoise(SCHEDULE, lambda x, t: jnp.tanh(x))
    for sample, sampler in pairs:
        made = factory.make_sampler(dataclasses.replace(sample, steps=8), diffusion, SCHEDULE)
        own, expected = (samplers.sample(jax.random.key(0), each, denoise, levels, (2, 4)) for each in (made, sampler))
        np.testing.assert_array_equal(own, expected, err_msg=sample.sampler)
    exponents = {"karras": samplers.grids.karras(SCHEDULE, 8, 5.0), "exponential": samplers.grids.exponential(SCHEDULE, 8, 5.0)}
    for grid, expected in exponents.items():
        np.testing.assert_array_equal(
            factory.make_levels(Sample(grid=grid, steps=8, rho=5.0), diffusion, SCHEDULE).t, expected.t
        )
    with pytest.raises(UsageError, match=r"--sample.rho: expected with --sample.grid karras or exponential"):
        factory.make_levels(Sample(rho=5.0), diffusion, SCHEDULE)
    assert len(factory.make_levels(Sample(sampler="restart", steps=10, num_restarts=2), diffusion, SCHEDULE).t) == 11 + 2 * 3
    with pytest.raises(UsageError, match=r"--sample.restart_interval: t_max, t_min: expected at least two levels"):
        factory.make_levels(Sample(sampler="restart", steps=2), diffusion, SCHEDULE)
    assert len(factory.make_levels(Sample(sampler="pndm", start="runge_kutta", steps=8), diffusion, SCHEDULE).t) == 8 + 10
    with pytest.raises(UsageError, match=r"analytic_dpm in sample\.py only"):
        factory.make_sampler(Sample(sampler="analytic_dpm"), diffusion, SCHEDULE)
    assert factory.make_sampler(Sample(sampler="analytic_dpm"), diffusion, SCHEDULE, np.ones(1000)).plan(levels).std[0] > 0
    mistakes = {
        "--sample.churn: expected above 0 with --sample.churn_low": {"sampler": "heun", "churn_noise": 3.0},
        "--sample.churn: churn: expected": {"sampler": "heun", "churn": 1.0, "churn_noise": float("nan")},
        "--sample.num_corrections: ": {"sampler": "langevin", "num_corrections": 0},
        "--sample.snr: snr: expected a finite number above 0": {"sampler": "langevin", "snr": float("inf")},
        "--sample.eta: eta: expected a finite number": {"sampler": "euler_ancestral", "eta": float("inf")},
        "--sample.rho: rho: expected a finite number above 0": {"grid": "karras", "rho": 0.0},
        "--sample.restart_interval: expected 0 <= clean": {"sampler": "restart", "restart_interval": (0.4, 0.1)},
        "--sample.num_restarts: ": {"sampler": "restart", "num_restarts": -1},
    }
    for said, options in mistakes.items():
        sample = Sample(steps=10, **options)
        with pytest.raises(UsageError, match=said):
            factory.make_levels(sample, diffusion, SCHEDULE), factory.make_sampler(sample, diffusion, SCHEDULE)
    raw = Diffusion(variance="learned_raw")
    with pytest.raises(UsageError, match=r"--sample.churn: expected a grid and a sampler of integer timesteps"):
        factory.make_sampler(Sample(sampler="heun", churn=1.0), raw, SCHEDULE)


def test_classes_are_described_by_their_names():
    image = np.zeros((20, 2, 2, 1), np.uint8)
    animals = sources.Arrays(image, np.arange(20) % 3, ["cats", "dogs", "geese"])
    assert factory.describe_classes(Network(num_classes=3), animals) == "3 classes: cats, dogs, geese"
    unused = "; not used unless --network.num_classes {} is given"
    assert factory.describe_classes(Network(), animals) == "3 classes: cats, dogs, geese" + unused.format(3)
    many = sources.Arrays(image, np.arange(20), [f"n{number}" for number in range(20)])
    shortened = "20 classes: n0, n1, n2, n3, n4, n5, n6, n7, n8, n9, ..., n19"
    assert factory.describe_classes(Network(num_classes=20), many) == shortened
    nameless = sources.Arrays(image, np.arange(20) % 3)
    assert factory.describe_classes(Network(), nameless) == "3 classes" + unused.format(3)
    assert factory.describe_classes(Network(), sources.Arrays(image)) is None


def test_classes_that_the_data_do_not_have_are_refused():
    data = factory.make_source(config.Data())
    factory.check_labels(Network(num_classes=10), data)
    factory.check_labels(Network(), data)
    with pytest.raises(UsageError, match=r"--network.num_classes: expected 10, as the data have, received 9"):
        factory.check_labels(Network(num_classes=9), data)


def test_a_run_may_go_on_with_another_learning_rate():
    """Its optimizer's state fits, and the next update is as much larger; Adam's size is all that it changes."""
    params, gradient = jnp.ones(3), jnp.array([1e-3, 2e-3, -1e-3])
    make = lambda rate: factory.make_optimizer(  # noqa: E731
        Optimizer(rate, warmup_steps=0), factory.make_learning_rate(Optimizer(rate, warmup_steps=0), 10)
    )
    _, state = make(1e-3).update(gradient, make(1e-3).init(params), params)
    slow, fast = (make(rate).update(gradient, state, params)[0] for rate in (1e-3, 3e-3))
    np.testing.assert_allclose(fast, 3 * slow, rtol=1e-5)


def test_weight_decay_is_that_of_kernels_alone_and_may_change_on_resuming():
    """AdamW = Adam - learning rate x decay x params (Loshchilov & Hutter 2017, Algorithm 2), from Adam's state."""
    params = {name: jnp.full((2, 2), 3.0) for name in ("kernel", "bias", "scale", "embedding")}
    gradient = jax.tree.map(lambda a: 0.1 * a, params)

    def make(decay):
        options = Optimizer(1e-2, warmup_steps=0, weight_decay=decay, betas=(0.9, 0.99))
        return factory.make_optimizer(options, factory.make_learning_rate(options, 10))

    state = make(0.0).init(params)
    (plain, _), (decayed, after) = (make(decay).update(gradient, state, params) for decay in (0.0, 0.1))
    assert jax.tree.structure(after) == jax.tree.structure(state)
    np.testing.assert_allclose(decayed["kernel"] - plain["kernel"], -1e-2 * 0.1 * 3.0, rtol=1e-5)
    for name in ("bias", "scale", "embedding"):
        np.testing.assert_array_equal(decayed[name], plain[name])


def test_the_learning_rate_falls_with_the_root_of_the_step():
    """Vaswani et al. 2017, section 5.3: linear warm-up over W steps, then the peak x sqrt(W / step)."""
    rate = factory.make_learning_rate(Optimizer(2e-3, warmup_steps=100, decay="inverse_sqrt"), 10_000)
    np.testing.assert_allclose([rate(50), rate(100), rate(400), rate(10_000)], [1e-3, 2e-3, 1e-3, 2e-4], rtol=1e-5)
