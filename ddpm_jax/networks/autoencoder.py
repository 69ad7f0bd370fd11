"""AutoencoderKL, the autoencoder of latent diffusion (Rombach et al. 2022, arXiv 2112.10752), from the UNet's blocks.

| | latent_channels | quant_convolutions | parameters |
|---|---|---|---|
| Stable Diffusion 1, 2 and XL | 4 | yes | 83,653,863 |
| Stable Diffusion 3, Flux | 16 | no | 83,819,683 |
"""

from __future__ import annotations

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpm_jax.networks import blocks, layers
from ddpm_jax.networks.cpu import swish

LOG_VARIANCE_RANGE = (-30.0, 20.0)
"""The log variance of q(z | x) is clipped to it."""


class Path(nn.Module):
    """What encoder and decoder share. Attributes: see `AutoencoderKL`; features: output channels."""

    features: int
    channels: int
    multipliers: Sequence[int]
    num_blocks: int
    num_groups: int
    norm_eps: float
    middle_attention: bool
    dtype: layers.Dtype
    remat: bool

    def _block(self, h: jax.Array, features: int, name: str) -> jax.Array:
        kind = nn.remat(blocks.ResidualBlock) if self.remat else blocks.ResidualBlock
        return kind(features, 0.0, self.num_groups, self.norm_eps, False, None, self.dtype, name=name)(h, None, None)

    def _middle(self, h: jax.Array) -> jax.Array:
        h = self._block(h, h.shape[-1], "middle1")
        if self.middle_attention:
            kind = nn.remat(blocks.Attention) if self.remat else blocks.Attention
            h = kind(1, self.num_groups, self.norm_eps, self.dtype, name="middle_attention")(h)
        return self._block(h, h.shape[-1], "middle2")

    def _head(self, h: jax.Array) -> jax.Array:
        h = layers.GroupNorm(self.num_groups, self.norm_eps, name="head_norm")(h, swish)
        return layers.Conv(self.features, self.dtype, name="head")(h)


class Encoder(Path):
    """Images [B, H, W, C] -> [B, H / factor, W / factor, features]."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolution; per level, blocks, then halving; bottleneck; norm, swish, convolution."""
        h = layers.Conv(self.channels, self.dtype, name="stem")(x.astype(self.dtype))
        for level, multiplier in enumerate(self.multipliers):
            if level > 0:
                h = layers.downsample(h, self.dtype, False, f"downsample{level}")
            for i in range(self.num_blocks):
                h = self._block(h, multiplier * self.channels, f"down{level}_{i}")
        return self._head(self._middle(h))


class Decoder(Path):
    """Latents [B, H, W, C] -> [B, factor H, factor W, features], with one block per level more than the encoder."""

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        """Convolution; bottleneck; per level, blocks, then doubling; norm, swish, convolution."""
        h = layers.Conv(self.multipliers[-1] * self.channels, self.dtype, name="stem")(z.astype(self.dtype))
        h = self._middle(h)
        for level, multiplier in reversed(list(enumerate(self.multipliers))):
            for i in range(self.num_blocks + 1):
                h = self._block(h, multiplier * self.channels, f"up{level}_{i}")
            if level > 0:
                h = layers.upsample(h, self.dtype, f"upsample{level}")
        return self._head(h)


class AutoencoderKL(nn.Module):
    """Encodes images as a Gaussian over latents, 2^(levels - 1) times smaller per axis; the defaults are Stable Diffusion's.

    Attributes:
        image_channels: Channels of the images.
        latent_channels: Channels of the latents.
        channels: Channels of the first level.
        multipliers: Channel multiplier per level. The image is halved between levels.
        num_blocks: Residual blocks per level of the encoder; the decoder has one more.
        num_groups: Groups of GroupNorm.
        norm_eps: Epsilon of GroupNorm.
        quant_convolutions: Whether 1x1 convolutions follow the encoder and precede the decoder.
        middle_attention: Whether the bottlenecks have self-attention, one head of all channels.
        dtype: Compute dtype, e.g. bfloat16; parameters, norms, softmax and outputs stay float32.
        remat: Gradient checkpointing of each block.

    >>> import jax, jax.numpy as jnp
    >>> from ddpm_jax import networks
    >>> network = networks.AutoencoderKL(channels=8, multipliers=(1, 2), num_blocks=1, num_groups=4)
    >>> x = jnp.zeros((2, 8, 8, 3))
    >>> params = jax.jit(network.init)(jax.random.key(0), x)
    >>> mean, std = network.apply(params, x, method="encode")
    >>> mean.shape, network.apply(params, mean, method="decode").shape
    ((2, 4, 4, 4), (2, 8, 8, 3))
    """

    image_channels: int = 3
    latent_channels: int = 4
    channels: int = 128
    multipliers: Sequence[int] = (1, 2, 4, 4)
    num_blocks: int = 2
    num_groups: int = 32
    norm_eps: float = 1e-6
    quant_convolutions: bool = True
    middle_attention: bool = True
    dtype: layers.Dtype = jnp.float32
    remat: bool = False

    @property
    def factor(self) -> int:
        """How many times smaller than the image the latent is, per axis."""
        return 2 ** (len(self.multipliers) - 1)

    def setup(self) -> None:
        rest = (
            self.channels, self.multipliers, self.num_blocks, self.num_groups, self.norm_eps, self.middle_attention,
            self.dtype, self.remat,
        )  # fmt: skip
        self.encoder = Encoder(2 * self.latent_channels, *rest)
        self.decoder = Decoder(self.image_channels, *rest)
        if self.quant_convolutions:
            self.quant = layers.Conv(2 * self.latent_channels, self.dtype, size=1)
            self.post_quant = layers.Conv(self.latent_channels, self.dtype, size=1)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The reconstruction from the mean of q(z | x), [B, H, W, C] -> [B, H, W, C]; `init` by it has all parameters."""
        return self.decode(self.encode(x)[0])

    def encode(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and standard deviation of q(z | x).

        Args:
            x: Images [B, H, W, image_channels] in [-1, 1]; H and W divisible by `factor`.

        Returns:
            Each float32 [B, H / factor, W / factor, latent_channels].

        Raises:
            ValueError: images of another shape, or channels that the groups do not divide.
        """
        self._check("x", x, "images", self.image_channels)
        if x.shape[1] % self.factor or x.shape[2] % self.factor:
            raise ValueError(f"multipliers: {len(self.multipliers)} levels expected height and width divisible by "
                             f"{self.factor}, received {x.shape[1]} x {x.shape[2]}")  # fmt: skip
        h = self.encoder(x)
        h = self.quant(h) if self.quant_convolutions else h
        mean, log_variance = jnp.split(h.astype(jnp.float32), 2, axis=-1)
        return mean, jnp.exp(0.5 * jnp.clip(log_variance, *LOG_VARIANCE_RANGE))

    def decode(self, z: jax.Array) -> jax.Array:
        """The mean of p(x | z), not clipped.

        Args:
            z: Latents [B, h, w, latent_channels].

        Returns:
            float32 [B, factor h, factor w, image_channels].

        Raises:
            ValueError: latents of another shape, or channels that the groups do not divide.
        """
        self._check("z", z, "latents", self.latent_channels)
        h = self.post_quant(z.astype(self.dtype)) if self.quant_convolutions else z
        return self.decoder(h).astype(jnp.float32)

    def _check(self, name: str, a: jax.Array, what: str, channels: int) -> None:
        if a.ndim != 4 or a.shape[-1] != channels:
            raise ValueError(f"{name}: expected {what} [B, H, W, {channels}], received shape {a.shape}")
        for multiplier in self.multipliers:
            if multiplier * self.channels % self.num_groups:
                raise ValueError(f"num_groups: expected a divisor of the channels of every level, received {self.num_groups} "
                                 f"for {multiplier * self.channels} channels")  # fmt: skip
