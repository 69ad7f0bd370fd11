"""Conversion between the config of diffusers' UNet2DModel and our UNet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ddpm_jax.interop.fields import Field, integer, integers, number, one_of, words
from ddpm_jax.networks import UNet

DOWN = ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D")
UP = ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D")


def _is_image_size(value: Any) -> bool:
    sizes = value if isinstance(value, list) and len(value) == 2 else [value]
    return value is None or all(type(size) is int and size > 0 for size in sizes)


FIELDS: dict[str, Field] = {
    "sample_size": Field("a size, [height, width] or null", _is_image_size),
    "in_channels": integer(),
    "out_channels": integer(),
    "center_input_sample": one_of(False),
    "time_embedding_type": one_of("positional"),
    "time_embedding_dim": integer(default=None, null=True),
    "freq_shift": number(),
    "flip_sin_to_cos": one_of(False, True),
    "down_block_types": words(*DOWN),
    "mid_block_type": one_of("UNetMidBlock2D", None, default="UNetMidBlock2D"),
    "up_block_types": words(*UP),
    "block_out_channels": integers(),
    "layers_per_block": integer(most=100),
    "mid_block_scale_factor": one_of(1),
    "downsample_padding": one_of(0, 1),
    "downsample_type": one_of("conv", "resnet", default="conv"),
    "upsample_type": one_of("conv", "resnet", default="conv"),
    "dropout": number(default=0.0, below=1.0),
    "act_fn": one_of("silu", "swish"),
    "attention_head_dim": integer(null=True),
    "norm_num_groups": integer(),
    "attn_norm_num_groups": integer(default=None, null=True),
    "norm_eps": number(),
    "resnet_time_scale_shift": one_of("default", "scale_shift", default="default"),
    "add_attention": one_of(True, False, default=True),
    "class_embed_type": one_of(None, default=None),
    "num_class_embeds": integer(default=None, null=True),
    "num_train_timesteps": integer(default=None, null=True),
}
"""The supported values of each field. The last field is used only by learned time embeddings."""


class Described(NamedTuple):
    """A network and the shape of its images.

    Attributes:
        network: The network.
        image_size: (height, width), or None if the config does not say.
        in_channels: The number of channels of the images.
    """

    network: UNet
    image_size: tuple[int, int] | None
    in_channels: int


def to_network(config: dict[str, Any]) -> Described:
    """Our UNet that computes the same function as a UNet2DModel.

    Args:
        config: All fields of FIELDS, each with a supported value.

    Returns:
        The network and the shape of its images.

    Raises:
        ValueError: fields are incompatible, or our UNet cannot represent their combination.
    """
    channels = config["block_out_channels"]
    multipliers = tuple(c // channels[0] for c in channels)
    attention = _check(config, multipliers)
    network = UNet(
        channels=channels[0],
        multipliers=multipliers,
        num_blocks=config["layers_per_block"],
        attention_resolutions=(),
        attention_levels=attention,
        head_dim=config["attention_head_dim"],
        middle=_middle(config),
        dropout=float(config["dropout"]),
        out_channels=None if config["out_channels"] == config["in_channels"] else config["out_channels"],
        num_classes=config["num_class_embeds"],
        num_groups=config["norm_num_groups"],
        norm_eps=float(config["norm_eps"]),
        freq_shift=float(config["freq_shift"]),
        cos_first=config["flip_sin_to_cos"],
        time_scale_shift=config["resnet_time_scale_shift"] == "scale_shift",
        symmetric_padding=config["downsample_padding"] == 1,
        residual_downsampling=_residual(config["down_block_types"], DOWN, config["downsample_type"]),
        residual_upsampling=_residual(config["up_block_types"][::-1], UP, config["upsample_type"]),
    )
    size = config["sample_size"]
    image_size = None if size is None else (size, size) if isinstance(size, int) else (size[0], size[1])
    factor = 2 ** (len(channels) - 1)
    _require(image_size is None or not any(n % factor for n in image_size), "sample_size", f"multiples of {factor}", size)
    return Described(network, image_size, config["in_channels"])


def _check(config: dict[str, Any], multipliers: Sequence[int]) -> tuple[int, ...]:
    """Refuses incompatible fields; returns the levels with attention."""
    channels, down, up = config["block_out_channels"], config["down_block_types"], config["up_block_types"][::-1]
    first = channels[0]
    _require(first % 2 == 0 and first >= 4, "block_out_channels", "an even first number, at least 4", channels)
    _require(config["freq_shift"] < first // 2, "freq_shift", f"less than {first // 2}", config["freq_shift"])
    multiples = all(multiplier * first == c for multiplier, c in zip(multipliers, channels, strict=True))
    _require(multiples, "block_out_channels", "multiples of the first", channels)
    _require(len(down) == len(channels), "down_block_types", f"{len(channels)}, one per level", down)
    _require(len(up) == len(channels), "up_block_types", f"{len(channels)}, one per level", up)
    attention = tuple(level for level, block in enumerate(down) if block == DOWN[1])
    of_up = tuple(level for level, block in enumerate(up) if block == UP[1])
    _require(attention == of_up, "up_block_types", "attention at the levels of down_block_types", config["up_block_types"])
    groups, head_dim = config["norm_num_groups"], config["attention_head_dim"]
    _require(not any(c % groups for c in channels), "norm_num_groups", f"a divisor of {channels}", groups)
    attending = [channels[level] for level in attention]
    if config["mid_block_type"] is not None and config["add_attention"]:
        attending.append(channels[-1])
    fits = head_dim is None or not any(c % head_dim for c in attending)
    _require(fits, "attention_head_dim", f"a divisor of {attending}", head_dim)
    _require(config["time_embedding_dim"] in (None, 4 * first), "time_embedding_dim", f"null or {4 * first}",
             config["time_embedding_dim"])  # fmt: skip
    _require(config["attn_norm_num_groups"] in (None, groups), "attn_norm_num_groups", f"null or {groups}",
             config["attn_norm_num_groups"])  # fmt: skip
    return attention


def _middle(config: dict[str, Any]) -> str:
    if config["mid_block_type"] is None:
        return "none"
    if not config["add_attention"]:
        return "blocks"
    if config["resnet_time_scale_shift"] == "scale_shift" and config["attn_norm_num_groups"] is None:
        return "attention_without_norm"  # as in UNetMidBlock2D
    return "attention"


def _residual(blocks: Sequence[str], kinds: Sequence[str], resampling: str) -> tuple[int, ...]:
    """The levels that resample with a residual block, by their block type or, with attention, by their resampling type."""
    residual = {kinds[1]: resampling == "resnet", kinds[2]: True}
    return tuple(level for level, block in enumerate(blocks) if residual.get(block, False))


def _require(holds: bool, field: str, expected: str, received: Any) -> None:
    if not holds:
        raise ValueError(f"config.json: {field}: expected {expected}, received {received}")


def from_network(network: UNet, image_size: tuple[int, int], in_channels: int) -> dict[str, Any]:
    """The UNet2DModel that computes the same function as our UNet.

    Args:
        network: The network.
        image_size: (height, width) of the images, which decides the levels of attention that is given by resolution.
        in_channels: The number of channels of the images.

    Returns:
        All fields of FIELDS.

    Raises:
        ValueError: UNet2DModel cannot represent the network; the message names the network's field.
    """
    channels = [multiplier * network.channels for multiplier in network.multipliers]
    attention = _attention_levels(network, image_size)
    down, downsample_type = _blocks(network.residual_downsampling, attention, DOWN, len(channels), "residual_downsampling")
    up, upsample_type = _blocks(network.residual_upsampling, attention, UP, len(channels), "residual_upsampling")
    with_norm = network.middle != "attention_without_norm"
    if not with_norm and not network.time_scale_shift:
        raise ValueError(f"middle: expected {network.middle} only with time_scale_shift, received without")
    if network.time_scale != 1:
        raise ValueError(f"time_scale: expected 1, as for a discrete schedule, received {network.time_scale}")
    height, width = image_size
    return {
        "sample_size": height if height == width else [height, width],
        "in_channels": in_channels,
        "out_channels": in_channels if network.out_channels is None else network.out_channels,
        "center_input_sample": False,
        "time_embedding_type": "positional",
        "time_embedding_dim": None,
        "freq_shift": int(network.freq_shift) if network.freq_shift == int(network.freq_shift) else network.freq_shift,
        "flip_sin_to_cos": network.cos_first,
        "down_block_types": down,
        "mid_block_type": None if network.middle == "none" else "UNetMidBlock2D",
        "up_block_types": up[::-1],
        "block_out_channels": channels,
        "layers_per_block": network.num_blocks,
        "mid_block_scale_factor": 1,
        "downsample_padding": int(network.symmetric_padding),
        "downsample_type": downsample_type,
        "upsample_type": upsample_type,
        "dropout": network.dropout,
        "act_fn": "silu",
        "attention_head_dim": _head_dim(network, channels, attention),
        "norm_num_groups": network.num_groups,
        "attn_norm_num_groups": network.num_groups if with_norm and network.time_scale_shift else None,
        "norm_eps": network.norm_eps,
        "resnet_time_scale_shift": "scale_shift" if network.time_scale_shift else "default",
        "add_attention": network.middle != "blocks",
        "class_embed_type": None,
        "num_class_embeds": network.num_classes,
        "num_train_timesteps": None,
    }


def _attention_levels(network: UNet, image_size: tuple[int, int]) -> tuple[int, ...]:
    if network.attention_levels is not None:
        return tuple(network.attention_levels)
    sizes = [max(image_size) // 2**level for level in range(len(network.multipliers))]
    return tuple(level for level, size in enumerate(sizes) if size in network.attention_resolutions)


def _blocks(
    residual: Sequence[int], attention: Sequence[int], kinds: Sequence[str], num_levels: int, field: str
) -> tuple[list[str], str]:
    """The block type of every level, and the resampling type of those with attention, which must have the same."""
    both = set(residual) & set(attention)
    if both and both != set(attention):
        raise ValueError(f"{field}: expected all levels with attention, {tuple(attention)}, or none, received {residual}")
    blocks = [kinds[1] if n in attention else kinds[2] if n in residual else kinds[0] for n in range(num_levels)]
    return blocks, "resnet" if both else "conv"


def _head_dim(network: UNet, channels: Sequence[int], attention: Sequence[int]) -> int | None:
    if network.head_dim is not None or network.num_heads == 1:
        return network.head_dim
    attending = {channels[level] for level in attention}
    if network.middle.startswith("attention"):
        attending.add(channels[-1])
    if len(attending) > 1:
        raise ValueError(f"num_heads: expected 1, or the same head size at all levels, received {network.num_heads} for "
                         f"{sorted(attending)} channels")  # fmt: skip
    return max(attending, default=0) // network.num_heads or None
