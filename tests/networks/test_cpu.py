"""The CPU's work-arounds: Winograd's convolutions against the plain ones, and compiler options that XLA may not know."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpm_jax.networks import cpu
from ddpm_jax.networks.layers import Conv, DoubleConv, double

KEY = jax.random.key(0)
on_cpu = pytest.mark.skipif(jax.default_backend() != "cpu", reason="for CPU alone")


def plain(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def plain_after_doubling(x, kernel):
    return plain(double(x), kernel)


@pytest.mark.parametrize(
    ("winograd", "plain"),
    [
        (cpu.winograd_conv, plain),
        (cpu.winograd_double_conv, plain_after_doubling),
        (cpu.forward_only(cpu.winograd_conv, plain), plain),
    ],
)
@pytest.mark.parametrize("shape", [(2, 4, 6, 3), (3, 16, 8, 64), (1, 2, 2, 5)])
def test_winograd_is_the_plain_form(winograd, plain, shape):
    """Values, gradients and forward derivatives."""
    x = 1 + jax.random.normal(KEY, shape)
    kernel = jax.random.normal(jax.random.key(1), (3, 3, shape[-1], 40)) / (9 * shape[-1]) ** 0.5

    def value_gradients_and_derivative(f):
        value, pullback = jax.vjp(f, x, kernel)
        weight = jax.random.normal(jax.random.key(2), value.shape)
        return value, pullback(weight), jax.jvp(f, (x, kernel), (x**2, kernel**2))[1]

    ours, expected = (jax.jit(value_gradients_and_derivative, static_argnums=0)(f) for f in (winograd, plain))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


@on_cpu
@pytest.mark.parametrize(
    ("layer", "shape", "num"),
    [
        (Conv(128, jnp.float32), (8, 8, 8, 128), 16),
        (DoubleConv(128, jnp.float32), (8, 8, 8, 128), 9),
        (Conv(32, jnp.float32), (8, 8, 8, 64), 16),
        (DoubleConv(32, jnp.float32), (8, 8, 8, 64), 9),
        (Conv(64, jnp.float32), (8, 8, 8, 32), 0),
        (Conv(16, jnp.float32), (8, 8, 8, 64), 0),
        (Conv(128, jnp.float32), (1, 8, 8, 128), 0),
        (Conv(128, jnp.float32), (8, 9, 9, 128), 0),
        (Conv(128, jnp.float32, stride=2), (8, 8, 8, 128), 0),
        (Conv(128, jnp.float32, padding=((0, 2), (0, 2))), (8, 8, 8, 128), 0),
        (Conv(128, jnp.bfloat16), (8, 8, 8, 128), 0),
    ],
)
def test_winograd_is_used_if_it_is_faster(layer, shape, num):
    x = jnp.zeros(shape)
    program = jax.jit(layer.apply).lower(layer.init(KEY, x), x).as_text()
    assert program.count("dot_general") == num


@on_cpu
@pytest.mark.parametrize(("channels", "products", "convolutions"), [(128, 3 * 16, 0), (64, 16, 2)])
def test_with_few_channels_the_gradient_is_the_plain_form_s(channels, products, convolutions):
    x, layer = jnp.zeros((8, 8, 8, channels)), Conv(channels, jnp.float32)
    loss = jax.value_and_grad(lambda params, x: layer.apply(params, x).sum(), (0, 1))
    program = jax.jit(loss).lower(layer.init(KEY, x), x).as_text()
    assert (program.count("dot_general"), program.count("stablehlo.convolution")) == (products, convolutions)


def test_other_platforms_get_plain_convolutions_and_no_options(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    layer, x = Conv(128, jnp.float32), jnp.zeros((8, 8, 8, 128))
    program = str(jax.make_jaxpr(layer.apply)(layer.init(KEY, x), x))
    assert "conv_general_dilated" in program and "dot_general" not in program and "barrier" not in program
    assert cpu.compiler_options() == cpu.compiler_options(gradient=True) == {}


@on_cpu
def test_the_options_are_those_of_the_program(monkeypatch):
    """If XLA drops one of them in a new version, this fails and tells us; programs go on without it."""
    name = "xla_cpu_experimental_ynn_fusion_type"
    with_gradient, without = cpu.compiler_options(gradient=True), cpu.compiler_options()
    assert set(with_gradient) == set(without) == {name, "xla_cpu_prefer_vector_width", "xla_disable_hlo_passes"}
    assert with_gradient[name] == "LIBRARY_FUSION_TYPE_REDUCE"
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    assert cpu.compiler_options()[name] == ""
    monkeypatch.setattr(jax, "local_device_count", lambda: 2)
    assert cpu.compiler_options()[name] == "LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION"


@on_cpu
@pytest.mark.parametrize("unknown", [
    {"xla_cpu_invented": "1"},
    {"xla_cpu_prefer_vector_width": "wide"},
    {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INVENTED", "xla_cpu_invented": "1"},
])  # fmt: skip
def test_options_that_xla_does_not_know_are_dropped_and_the_others_kept(unknown):
    known = {"xla_cpu_enable_fast_math": False, "xla_backend_optimization_level": "1"}
    (first, first_value), (last, last_value) = known.items()
    with pytest.raises(Exception, match="INVALID_ARGUMENT"):
        jax.jit(lambda x: x + 1).lower(1.0).compile(known | unknown)
    options = cpu.known_options(**{first: first_value}, **unknown, **{last: last_value})
    assert options == known
    layer, x = Conv(8, jnp.float32), jnp.ones((2, 4, 4, 3))
    params = layer.init(KEY, x)
    gradient = jax.grad(lambda params: layer.apply(params, x).sum())
    expected = jax.jit(gradient)(params)["params"]["bias"]
    np.testing.assert_allclose(jax.jit(gradient, compiler_options=options)(params)["params"]["bias"], expected)
    np.testing.assert_allclose(jax.jit(gradient).lower(params).compile(options)(params)["params"]["bias"], expected)


@on_cpu
def test_options_are_tried_once_per_process(monkeypatch):
    """A refused option too; and a caller who changes what it got does not change it for others."""
    options = {"xla_cpu_invented_too": "1", "xla_cpu_enable_fast_math": False}
    found = cpu.known_options(**options)
    monkeypatch.setattr(jax, "jit", None)
    again = cpu.known_options(**options)
    assert again == found == {"xla_cpu_enable_fast_math": False}
    found.clear()
    assert cpu.known_options(**options) == again


def test_a_layout_changes_no_number(monkeypatch):
    """The layout that GPUs are asked for, here on any platform."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    tree = {"kernel": jax.random.normal(KEY, (3, 3, 4, 8)), "bias": jnp.ones(8), "step": jnp.zeros(())}
    laid_out = jax.jit(cpu.row_major).lower(tree)
    assert "LayoutConstraint" in laid_out.as_text()
    for name, a in laid_out.compile()(tree).items():
        np.testing.assert_array_equal(a, tree[name])
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    assert "LayoutConstraint" not in jax.jit(lambda tree: cpu.row_major(tree)).lower(tree).as_text()
