"""The parameters of a given network in one file, under the names of any format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpm_jax.interop import files
from ddpm_jax.interop.names import PLAIN, Names, decode, encode, entries
from ddpm_jax.networks import UNet


def load(path: files.Path, network: UNet, image_shape: Sequence[int], names: Names = PLAIN, average: bool = False) -> Any:
    """Reads a network's parameters from a file.

    TensorFlow's checkpoints are not files of arrays; with TensorFlow installed, this converts one:

        reader = tf.train.load_checkpoint("model.ckpt-790000")
        np.savez("model.npz", **{name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()})

    Args:
        path: .safetensors, .npz, .bin, .ckpt, .pt or .pth.
        network: The network.
        image_shape: (H, W, C) of the images that it was trained on.
        names: The file's format.
        average: Whether to read the moving averages, if the format has them beside the parameters.

    Returns:
        float32 arrays, {"params": {...}}, for network.apply.

    Raises:
        ValueError: the file is damaged, or its tensors are not exactly those of the network, by name.
        OSError: it cannot be read.
    """
    tree = entries(names, shapes_of(network, image_shape), len(network.multipliers))
    return decode(tree, _select(names, files.read(path), average), str(path))


def save(path: files.Path, network: UNet, params: Any, names: Names = PLAIN) -> None:
    """Writes a network's parameters to a file.

    Args:
        path: .safetensors or .npz; replaced if it exists.
        network: The network.
        params: Its variables, {"params": {...}}.
        names: The format.

    Raises:
        ValueError: another suffix, or a parameter that the format has no name for.
        OSError: it cannot be written.
    """
    files.write(path, encode(entries(names, params, len(network.multipliers)), params))


def shapes_of(network: UNet, image_shape: Sequence[int]) -> Any:
    """The shapes of a network's variables for images (H, W, C), without initializing them."""
    x_t, t = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)
    return jax.eval_shape(network.init, jax.random.key(0), x_t, t)


def _select(names: Names, tensors: Mapping[str, np.ndarray], average: bool) -> dict[str, np.ndarray]:
    """The parameters, or their averages under the parameters' names, without the tensors that the format ignores."""
    if average and not names.average:
        raise ValueError("average: expected False for a format without moving averages beside the parameters")
    chosen = {}
    for name, tensor in tensors.items():
        if names.ignored and name.endswith(names.ignored):
            continue
        is_average = bool(names.average) and name.endswith(names.average)
        if is_average == average:
            chosen[name.removesuffix(names.average) if is_average else name] = tensor
    return chosen
