"""The code and the tables of docs/samplers.md."""

import itertools
import pathlib
import re

import jax
import numpy as np
import pytest

import sample
from ddpm_jax import guidance, samplers, schedules
from ddpm_jax.config import Sample, kinds
from ddpm_jax.config.cli import options
from ddpm_jax.samplers import grids
from ddpm_jax.schedules import Level

PAGE = (pathlib.Path(__file__).parents[1] / "docs" / "samplers.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.S)


@pytest.fixture(scope="module")
def names():
    """The names that the page's code defines, run in order."""
    found = {}
    for block in BLOCKS:
        exec(block, found)
    return found


def test_the_pictures_are_of_the_models_distribution(names):
    """Pixels of variance 0.15, correlated with their neighbours: 16 images of about 20 independent numbers each."""
    x = np.asarray(names["x"])
    assert abs(x.var() / 0.15 - 1) < 4 * np.sqrt(2 / (16 * 20))
    assert np.var(np.diff(x, axis=1)) < 0.25 * 0.15


def test_a_sampler_of_ones_own(names):
    (block,) = (block for block in BLOCKS if "def adams_bashforth" in block)
    body = block[block.index("class Coefficients") : block.index("own = ")]
    assert len([line for line in body.splitlines() if line.strip()]) <= 30
    x_init = samplers.base.initial_noise(names["key"], grids.spaced(names["schedule"], 50), names["shape"], np.arange(16))
    end = lambda sampler, n: samplers.sample(  # noqa: E731
        None, sampler, names["denoise"], grids.spaced(names["schedule"], n), names["shape"], x_init=x_init
    )
    fine = end(samplers.deis(3), 500)
    error = lambda sampler: np.abs(end(sampler, 50) - fine).max()  # noqa: E731
    np.testing.assert_allclose(end(names["adams_bashforth"](), 50), names["own"], atol=1e-4)
    assert error(names["adams_bashforth"]()) < error(samplers.ddim()) / 2


def test_a_sampler_of_ones_own_takes_traced_levels_and_pure_noise(names):
    sampler, shape = names["adams_bashforth"](), (2, *names["shape"][1:])
    levels = grids.spaced(names["schedule"], 20)
    pure_noise = Level(levels.t, np.append(0.0, levels.alpha[1:]), np.append(1.0, levels.sigma[1:]))
    draw = lambda levels: samplers.sample(names["key"], sampler, names["denoise"], levels, shape)  # noqa: E731
    for grid in (levels, pure_noise):
        x = draw(grid)
        assert np.isfinite(x).all() and np.std(x) > 0.1
        np.testing.assert_allclose(jax.jit(draw)(grid), x, atol=1e-4)
    assert sampler.plan(levels).change.dtype == np.float64

    def of_schedule(scale):  # the schedule is an argument of jit
        schedule = schedules.linear(1000)
        table = schedule._replace(alpha=scale * schedule.alpha)
        return draw(jax.tree.map(lambda a: a[::-1], table.level(np.arange(0, 1000, 100))))

    np.testing.assert_allclose(jax.jit(of_schedule)(1.0), of_schedule(1.0), atol=1e-4)
    assert np.isfinite(jax.grad(lambda scale: of_schedule(scale).sum())(1.0))


@pytest.mark.parametrize("name", ["straight", "faster", "shifted", "algorithm_1", "algorithm_2"])
def test_flow_matching_and_edm_have_the_models_distribution(names, name):
    """As above; 18 steps of Algorithm 2 may change the variance by a tenth."""
    x = np.asarray(names[name])
    slack = 0.1 if name == "algorithm_2" else 0.0
    assert abs(x.var() / 0.15 - 1) < 4 * np.sqrt(2 / (16 * 20)) + slack
    assert np.var(np.diff(x, axis=1)) < 0.25 * 0.15


def test_euler_on_the_path_of_flow_matching_is_that_of_rectified_flow(names):
    flow, t = names["flow"], np.arange(50, -1, -1, dtype=np.float32) / 50
    x = samplers.base.initial_noise(names["key"], grids.spaced(flow, 50), names["shape"], np.arange(16))
    step = jax.jit(lambda x, t, s: x + (s - t) * names["velocity"](x, t[None].repeat(16)))
    for now, after in itertools.pairwise(t):
        x = step(x, now, after)
    np.testing.assert_allclose(names["straight"], x, atol=1e-4)
    places = grids.at(flow, 3 * names["t"] / (1 + 2 * names["t"]))
    np.testing.assert_allclose(places.alpha, grids.spaced(schedules.flow(3.0), 20).alpha, atol=1e-12)


def test_guidance_moves_samples_by_their_labels(names):
    assert np.isfinite(names["of_labels"]).all()
    means = np.asarray(names["of_labels"]).mean(axis=(1, 2, 3))
    assert means[-1] - means[-2] > 0.2  # labels 2 and 1, at scales near 4


def test_a_network_with_a_condition_samples(names):
    assert names["sharpened"].shape == names["shape"]
    assert np.isfinite(names["sharpened"]).all()


def test_the_options_are_those_of_the_script():
    (section,) = re.findall(r"## On the command line\n(.*?)\n## ", PAGE, re.S)
    known = {name for kind in kinds.kinds(Sample).values() for name in options(sample.Options(sample=kind()), "sample")}
    named = {name.replace("-", "_") for name in re.findall(r"--([a-z][a-z_-]+)", section)}
    assert named <= known | {"film", "shared", "interpolate", "slerp", "coding", "help"} and len(named) > 20


def test_measurements_are_met(names):
    picture = np.asarray(names["picture"])
    for measure, solution in ((names["smaller"], names["enlarged"]), (names["grey"], names["coloured"])):
        assert np.sqrt(np.mean((measure(solution) - measure(picture)) ** 2)) < 0.05
        assert np.sqrt(np.mean((solution - picture) ** 2)) < 0.75 * np.sqrt(np.mean((picture - picture[::-1]) ** 2))
        assert not np.allclose(solution, picture, atol=0.05)


def test_constraints_hold(names):
    picture = np.asarray(names["picture"])
    for filled in (names["replaced"], names["repainted"]):
        np.testing.assert_array_equal(filled[:, :4], picture[:, :4])
        assert np.abs(np.diff(filled, axis=1)[:, 3]).mean() < 0.3  # the seam
    distance = np.abs(names["edited"] - picture).mean()
    assert 0.02 < distance < np.abs(picture - picture[::-1]).mean()
    assert np.abs(names["restored"] - picture).mean() < 0.01
    assert abs(np.asarray(names["restarted"]).var() / 0.15 - 1) < 4 * np.sqrt(2 / (16 * 20))


KNOWN = np.zeros((1, 2))
INNER = (samplers.heun(), samplers.unipc(1), samplers.ddpm())
EXAMPLES = {
    "ddpm(variance)": lambda order: [samplers.ddpm(variance) for variance in ("fixed_small", "fixed_large", "learned")],
    "analytic_dpm(gamma)": lambda order: [samplers.analytic_dpm(np.ones(10))],
    "ddim(eta)": lambda order: [samplers.ddim(eta) for eta in (0.0, 0.5, 1.0)],
    "euler(schedule, churn)": lambda order: [samplers.euler(), samplers.euler(schedules.linear(10), samplers.Churn(1.0))],
    "heun(schedule, churn)": lambda order: [samplers.heun(), samplers.heun(schedules.linear(10), samplers.Churn(1.0))],
    "euler_ancestral(eta)": lambda order: [samplers.euler_ancestral(eta) for eta in (0.0, 1.0)],
    "dpm_solver_pp(order)": lambda order: [samplers.dpm_solver_pp(order, variant) for variant in ("midpoint", "heun")],
    "dpm_solver_pp(order, sde=True)": lambda order: [samplers.dpm_solver_pp(order, sde=True)],
    "dpm_solver_pp_2s(schedule)": lambda order: [samplers.dpm_solver_pp_2s(schedules.linear(10))],
    "unipc(order)": lambda order: [samplers.unipc(order, variant) for variant in ("bh1", "bh2")],
    "deis(order, variable)": lambda order: [samplers.deis(order, variable) for variable in ("log_rho", "rho")],
    "pndm(start)": lambda order: [samplers.pndm(start) for start in ("multistep", "runge_kutta")],
    "langevin(predictor)": lambda order: [samplers.langevin(inner, num_corrections=3) for inner in INNER],
    "inpaint(sampler, known, mask)": lambda order: [samplers.inpaint(inner, KNOWN, KNOWN + 1) for inner in INNER],
    "restart(sampler)": lambda order: [samplers.restart(inner) for inner in INNER],
    "repaint(sampler, known, mask)": lambda order: [samplers.repaint(inner, KNOWN, KNOWN + 1) for inner in INNER],
}


def value(cell, order, of_inner):
    """The number in a cell of the table: "2", "order + 1", "the sampler's" or "the predictor's + num_corrections"."""
    expression = re.sub(r"the (sampler|predictor)'s", str(of_inner), re.sub(r" \(.*\)", "", cell))
    return eval(expression, {"order": order, "num_corrections": 3})


def test_the_orders_and_evaluations_of_the_table_are_the_samplers():
    table = PAGE.split("## The samplers\n\n")[1].split("\n\n")[0].splitlines()
    head = [cell.strip() for cell in table[0].strip("|").split("|")]
    rows = [dict(zip(head, (cell.strip() for cell in row.strip("|").split("|")), strict=True)) for row in table[2:]]
    assert {row["sampler"].strip("`") for row in rows} == set(EXAMPLES)
    for row in rows:
        first, last = re.search(r"\((\d) to (\d)", row["order"] + "(1 to 1").groups()
        for order in range(int(first), int(last) + 1):
            found = EXAMPLES[row["sampler"].strip("`")](order)
            for sampler, inner in zip(found, INNER, strict=False):
                assert sampler.order == value(row["order"], order, inner.order), row
                assert sampler.nfe == value(row["NFE per step"], order, inner.nfe), row


def test_the_tables_name_what_there_is():
    functions = {name for name in samplers.__all__ if name[0].islower()}
    tools = {"grids", "mean_squared_eps", "sample", "sample_path", "sdedit"}
    rows = set(re.findall(r"^\| `(\w+)\(", PAGE, re.M))
    guidances = {name for name in guidance.__all__ if name[0].islower()} - {"interleave", "gaussian_likelihood"}
    assert rows == (functions - tools) | guidances
    spacings = {name for name in grids.__all__ if name[0].islower()}
    assert set(re.findall(r"`grids\.(\w+)\(", PAGE.split("## A sampler of")[0])) == spacings
