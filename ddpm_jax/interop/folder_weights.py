"""The weights in a folder of diffusers: one file, or parts and their index; plain, or a variant such as fp16.

    diffusion_pytorch_model.safetensors          diffusion_pytorch_model.safetensors.index.json
    diffusion_pytorch_model.fp16.safetensors     diffusion_pytorch_model.safetensors.index.fp16.json

An index maps each tensor's name to the part that contains it, such as diffusion_pytorch_model-00001-of-00002.safetensors.
"""

from __future__ import annotations

import pathlib
import re

import numpy as np

from ddpm_jax.interop import fields, files

SUFFIXES = ("safetensors", "bin")
"""Suffixes of weight files, the preferred one first."""
WHOLE = re.compile(r"(?:diffusion_)?pytorch_model(?:\.(?P<variant>(?![^.]*-\d+-of-)[^.]+))?\.(?P<suffix>safetensors|bin)")
INDEX = re.compile(r"(?:diffusion_)?pytorch_model\.(?P<suffix>safetensors|bin)\.index(?:\.(?P<variant>[^.]+))?\.json")
PART = re.compile(r"(?:diffusion_)?pytorch_model(?:\.[^.]+)?-\d+-of-\d+(?:\.[^.]+)?\.(?:safetensors|bin)")


def find(folder: pathlib.Path) -> pathlib.Path:
    """The file or the index of the weights in a folder.

    Weights without a variant are preferred to those of a variant, safetensors to .bin, and one file to parts.

    Args:
        folder: Contains the weights.

    Returns:
        The path of the file, or of the index.

    Raises:
        ValueError: there are none, there are several variants and no plain weights, or an index is missing.
        OSError: the folder cannot be read.
    """
    found = {}
    entries = sorted(path.name for path in folder.iterdir())
    for name in entries:
        match = WHOLE.fullmatch(name) or INDEX.fullmatch(name)
        if match is not None:
            found[name] = (match["variant"] or "", SUFFIXES.index(match["suffix"]), match.re is INDEX, name)
    if not found:
        parts = [name for name in entries if PART.fullmatch(name)]
        if parts:
            raise ValueError(
                f"{parts[0]}: expected an index beside it, diffusion_pytorch_model.safetensors.index.json, found none"
            )
        raise ValueError(
            f"{folder}: expected diffusion_pytorch_model.safetensors or diffusion_pytorch_model.bin, found neither"
        )
    variants = sorted({variant for variant, *_ in found.values()})
    if len(variants) > 1 and variants[0]:
        raise ValueError(f"{folder}: expected weights without a variant, or of one variant, found {', '.join(variants)}")
    return folder / min(found, key=found.__getitem__)


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads the tensors of a file, or of the parts that an index names.

    Args:
        path: From `find`.

    Returns:
        The tensors by name.

    Raises:
        ValueError: a file is damaged; or the index names a file that isn't beside it, or does not list exactly the tensors of
            each part.
        OSError: a file cannot be read.
    """
    if path.suffix != ".json":
        return files.read(path)
    part_of = fields.read_json(path).get("weight_map")
    if not isinstance(part_of, dict) or not part_of:
        raise ValueError(f"{path.name}: weight_map: expected the names of parts by tensor, received {str(part_of)[:80]}")
    listed: dict[str, set[str]] = {}
    for name, part in part_of.items():
        if not isinstance(part, str) or not re.fullmatch(r"[\w.-]+\.(safetensors|bin)", part):
            raise ValueError(
                f"{path.name}: weight_map: expected .safetensors or .bin files beside it, received {str(part)[:80]!r}"
            )
        listed.setdefault(part, set()).add(name)
    tensors: dict[str, np.ndarray] = {}
    for part, expected in listed.items():
        if not (path.parent / part).exists():
            raise ValueError(f"{part}: expected the part of the weights that {path.name} names, found no such file")
        found = files.read(path.parent / part)
        wrong = [f"{name} is missing" for name in expected - found.keys()]
        wrong += [f"{name} is not in the index" if name not in part_of else f"{name} is also in {part_of[name]}"
                  for name in found.keys() - expected]  # fmt: skip
        if wrong:
            raise ValueError(f"{part}: expected the tensors that {path.name} lists: {'; '.join(sorted(wrong)[:8])}")
        tensors |= found
    return tensors
