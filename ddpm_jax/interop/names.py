"""Names and layouts of our UNet's parameters in other formats: one table per format, used in both directions.

A path such as `down0_1.norm1.scale` consists of a module, within blocks a part, and a leaf. In the tables of modules, {level}
is 0 at full resolution; {above} is level - 1; {mirrored} counts from the lowest resolution; {block} counts a level's blocks;
{part} runs over the table of parts.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

Shapes = Any
"""A network's variables, or their shapes by `jax.eval_shape`."""


WRAPPERS = ("module.", "_orig_mod.")
"""The prefixes that DataParallel and torch.compile add to the names of a module's tensors."""


class Names(NamedTuple):
    """Names and layouts of a format.

    Attributes:
        modules: Templates, from ours to theirs.
        parts: The layers of residual and attention blocks, from ours to theirs.
        leaves: The arrays of a layer. Norms have their own entries, since some formats have another name for their bias.
        layouts: The axes of a kernel: H, W, I(nput), O(utput). "conv" and "dense" hold for all kernels, a part's name for that
            part.
        separator: The separator between modules, parts and leaves.
        prefix: The prefix of every name.
        average: The suffix of the names of moving averages, which a file may contain beside the parameters.
        ignored: Suffixes of the names of other tensors that a file may contain, such as an optimizer's.
    """

    modules: Mapping[str, str]
    parts: Mapping[str, str]
    leaves: Mapping[str, str]
    layouts: Mapping[str, str]
    separator: str = "."
    prefix: str = ""
    average: str = ""
    ignored: tuple[str, ...] = ()


DIFFUSERS = Names(
    modules={
        "stem": "conv_in",
        "time1": "time_embedding.linear_1",
        "time2": "time_embedding.linear_2",
        "label": "class_embedding",
        "down{level}_{block}.{part}": "down_blocks.{level}.resnets.{block}.{part}",
        "down{level}_{block}_attention.{part}": "down_blocks.{level}.attentions.{block}.{part}",
        "downsample{level}": "down_blocks.{above}.downsamplers.0.conv",
        "downsample{level}.{part}": "down_blocks.{above}.downsamplers.0.{part}",
        "middle1.{part}": "mid_block.resnets.0.{part}",
        "middle_attention.{part}": "mid_block.attentions.0.{part}",
        "middle2.{part}": "mid_block.resnets.1.{part}",
        "up{level}_{block}.{part}": "up_blocks.{mirrored}.resnets.{block}.{part}",
        "up{level}_{block}_attention.{part}": "up_blocks.{mirrored}.attentions.{block}.{part}",
        "upsample{level}": "up_blocks.{mirrored}.upsamplers.0.conv",
        "upsample{level}.{part}": "up_blocks.{mirrored}.upsamplers.0.{part}",
        "head_norm": "conv_norm_out",
        "head": "conv_out",
    },
    parts={
        "norm1": "norm1", "conv1": "conv1", "time": "time_emb_proj", "norm2": "norm2", "conv2": "conv2",
        "shortcut": "conv_shortcut",
        "norm": "group_norm", "query": "to_q", "key": "to_k", "value": "to_v", "output": "to_out.0",
    },
    leaves={
        "kernel": "weight", "bias": "bias", "norm.scale": "weight", "norm.bias": "bias", "embedding": "weight",
    },
    layouts={"conv": "OIHW", "dense": "OI"},
)  # fmt: skip
"""UNet2DModel's state dict."""

DIFFUSERS_BEFORE_0_13 = DIFFUSERS._replace(
    parts={**DIFFUSERS.parts, "query": "query", "key": "key", "value": "value", "output": "proj_attn"}
)
"""The same, from when attention was an AttentionBlock, as in the weights of the first published models."""

PYTORCH_DIFFUSION = Names(
    modules={
        "stem": "conv_in",
        "time1": "temb.dense.0",
        "time2": "temb.dense.1",
        "down{level}_{block}.{part}": "down.{level}.block.{block}.{part}",
        "down{level}_{block}_attention.{part}": "down.{level}.attn.{block}.{part}",
        "downsample{level}": "down.{above}.downsample.conv",
        "middle1.{part}": "mid.block_1.{part}",
        "middle_attention.{part}": "mid.attn_1.{part}",
        "middle2.{part}": "mid.block_2.{part}",
        "up{level}_{block}.{part}": "up.{level}.block.{block}.{part}",
        "up{level}_{block}_attention.{part}": "up.{level}.attn.{block}.{part}",
        "upsample{level}": "up.{level}.upsample.conv",
        "head_norm": "norm_out",
        "head": "conv_out",
    },
    parts={
        "norm1": "norm1", "conv1": "conv1", "time": "temb_proj", "norm2": "norm2", "conv2": "conv2",
        "shortcut": "nin_shortcut",
        "norm": "norm", "query": "q", "key": "k", "value": "v", "output": "proj_out",
    },
    leaves={"kernel": "weight", "bias": "bias", "norm.scale": "weight", "norm.bias": "bias"},
    layouts={
        "conv": "OIHW", "dense": "OI", "query": "OIHW", "key": "OIHW", "value": "OIHW", "output": "OIHW",
    },
)  # fmt: skip
"""The state dict of pesser/pytorch_diffusion, the authors' weights in PyTorch."""

TENSORFLOW = Names(
    modules={
        "stem": "conv_in",
        "time1": "temb/dense0",
        "time2": "temb/dense1",
        "down{level}_{block}.{part}": "down_{level}/block_{block}/{part}",
        "down{level}_{block}_attention.{part}": "down_{level}/attn_{block}/{part}",
        "downsample{level}": "down_{above}/downsample/conv",
        "middle1.{part}": "mid/block_1/{part}",
        "middle_attention.{part}": "mid/attn_1/{part}",
        "middle2.{part}": "mid/block_2/{part}",
        "up{level}_{block}.{part}": "up_{level}/block_{block}/{part}",
        "up{level}_{block}_attention.{part}": "up_{level}/attn_{block}/{part}",
        "upsample{level}": "up_{level}/upsample/conv",
        "head_norm": "norm_out",
        "head": "conv_out",
    },
    parts=PYTORCH_DIFFUSION.parts,
    leaves={"kernel": "W", "bias": "b", "norm.scale": "gamma", "norm.bias": "beta"},
    layouts={"conv": "HWIO", "dense": "IO", "shortcut": "IO"},
    separator="/",
    prefix="model/",
    average="/ExponentialMovingAverage",
    ignored=("/Adam", "/Adam_1", "beta1_power", "beta2_power", "global_step"),
)
"""The variables of hojonathanho/diffusion, the authors' code."""

PLAIN = Names(
    modules={ours: ours for ours in DIFFUSERS.modules},
    parts={ours: ours for ours in DIFFUSERS.parts},
    leaves={"kernel": "kernel", "bias": "bias", "norm.scale": "scale", "norm.bias": "bias", "embedding": "embedding"},
    layouts={"conv": "HWIO", "dense": "IO"},
)
"""Our own names and layouts."""


class Entry(NamedTuple):
    """A parameter in a format.

    Attributes:
        name: Its name there.
        shape: Its shape there.
        ours: The axes of our array, such as "HWIO"; placeholders if the parameter is not a kernel.
        theirs: The axes of theirs.
    """

    name: str
    shape: tuple[int, ...]
    ours: str
    theirs: str


def entries(names: Names, shapes: Shapes, num_levels: int) -> Any:
    """The entry in a format for each of a network's parameters.

    Args:
        names: The format.
        shapes: The network's variables, or their shapes: {"params": {...}}.
        num_levels: The number of levels of the network.

    Returns:
        A tree of Entries, with the structure of shapes.

    Raises:
        ValueError: the format has no name for a parameter.
    """
    flat, structure = jax.tree_util.tree_flatten_with_path(shapes)
    paths = [tuple(key.key for key in path[1:]) for path, _ in flat]
    num_blocks = 1 + max(int(path[0].split("_")[1]) for path in paths if path[0].startswith("up0_"))
    modules = _modules(names, num_levels, num_blocks)
    norms = {path[:-1] for path in paths if path[-1] == "scale"}

    def entry(path: tuple[str, ...], shape: tuple[int, ...]) -> Entry:
        *module, leaf = path
        kind = f"norm.{leaf}" if path[:-1] in norms else leaf
        if ".".join(module) not in modules or kind not in names.leaves:
            raise ValueError(f"names: expected a format that has {'.'.join(path)}, this one has no name for it")
        name = names.prefix + modules[".".join(module)] + names.separator + names.leaves[kind]
        ours, theirs = _axes(names, path, len(shape))
        sizes = dict(zip(ours, shape, strict=True))
        return Entry(name, tuple(sizes.get(axis, 1) for axis in theirs), ours, theirs)

    return jax.tree.unflatten(structure, [entry(path, leaf.shape) for path, (_, leaf) in zip(paths, flat, strict=True)])


def _modules(names: Names, num_levels: int, num_blocks: int) -> dict[str, str]:
    """A format's names of all modules, by ours, including those that a network may lack."""
    found = {}
    counted = itertools.product(range(num_levels), range(num_blocks), names.parts.items())
    for level, block, (part, their_part) in counted:
        theirs = {"above": level - 1, "mirrored": num_levels - 1 - level, "part": their_part}
        for ours, template in names.modules.items():
            module = ours.format(level=level, block=block, part=part)
            found[module] = template.format(level=level, block=block, **theirs)
    return found


def _axes(names: Names, path: tuple[str, ...], rank: int) -> tuple[str, str]:
    """Our axes and theirs."""
    if path[-1] != "kernel":
        return "xy"[:rank], "xy"[:rank]
    layout = names.layouts["conv" if rank == 4 else "dense"]
    return "HWIO" if rank == 4 else "IO", names.layouts.get(path[-2] if len(path) > 1 else "", layout)


def encode(tree: Any, variables: Any) -> dict[str, np.ndarray]:
    """Our variables under a format's names, in its layouts, float32.

    Args:
        tree: From `entries`.
        variables: The network's variables.

    Raises:
        ValueError: the variables are those of another network.
    """
    found = {jax.tree_util.keystr(path): value for path, value in jax.tree_util.tree_leaves_with_path(variables)}
    expected = {
        jax.tree_util.keystr(path): entry for path, entry in jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_entry)
    }
    if wrong := sorted(found.keys() ^ expected.keys()):
        raise ValueError(f"params: expected those of the network, which differ in {', '.join(wrong[:8])}")
    tensors = {}
    for path, entry in expected.items():
        tensors[entry.name] = _relayout(np.asarray(found[path], np.float32), entry.ours, entry.theirs)
    return tensors


def decode(tree: Any, tensors: Mapping[str, np.ndarray], source: str) -> Any:
    """A format's tensors as our variables.

    Args:
        tree: From `entries`.
        tensors: Tensors by name; exactly those of the tree, with its shapes, floating-point and finite. Their names may begin
            with the prefixes that torch.compile and DataParallel add.
        source: Their origin, for error messages.

    Returns:
        float32 arrays, {"params": {...}}.

    Raises:
        ValueError: tensors are missing, not expected, or not as above; the message names them.
    """
    tensors = _unwrapped(tensors)
    expected = {entry.name: entry.shape for entry in jax.tree.leaves(tree, is_leaf=_is_entry)}
    wrong = [f"{name} is missing" for name in expected if name not in tensors]
    wrong += [f"{name} is not expected" for name in tensors if name not in expected]
    wrong += [_problem(name, tensors[name], shape) for name, shape in expected.items() if name in tensors]
    wrong = [problem for problem in wrong if problem]
    if wrong:
        more = f"; and {len(wrong) - 8} more" if len(wrong) > 8 else ""
        raise ValueError(f"{source}: expected the tensors of the network: {'; '.join(wrong[:8])}{more}")

    def value(entry: Entry) -> jax.Array:
        return jax.numpy.asarray(_relayout(tensors[entry.name].astype(np.float32), entry.theirs, entry.ours))

    return jax.tree.map(value, tree, is_leaf=_is_entry)


def _unwrapped(tensors: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    """The tensors without the prefixes of PyTorch's wrappers, which all of their names have in common."""
    for prefix in WRAPPERS * 2:  # in either order
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _is_entry(leaf: Any) -> bool:
    return isinstance(leaf, Entry)


def _problem(name: str, tensor: np.ndarray, shape: tuple[int, ...]) -> str:
    if tensor.shape != shape:
        return f"{name} has shape {tensor.shape}, not {shape}"
    if not jax.numpy.issubdtype(tensor.dtype, np.floating):
        return f"{name} is of {tensor.dtype}, not floating-point"
    return "" if np.isfinite(tensor).all() else f"{name} is not finite"


def _relayout(array: np.ndarray, source: str, target: str) -> np.ndarray:
    """Reorders axes by their letters; axes that only one of the layouts has are of size 1."""
    sizes = dict(zip(source, array.shape, strict=True))
    kept = [axis for axis in source if axis in target]
    array = array.reshape([sizes[axis] for axis in kept]).transpose([kept.index(axis) for axis in target if axis in kept])
    return np.ascontiguousarray(array.reshape([sizes.get(axis, 1) for axis in target]))
