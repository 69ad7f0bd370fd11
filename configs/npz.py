"""Your own arrays: an .npz file with `image`, uint8 [N, H, W, C], all in one size.

    python train.py --config configs/npz.py --data.path images.npz --workdir runs/mine

The network is the paper's for 32x32 images; height and width must be divisible by 8. Hardware: one GPU. For other sizes set
--network.multipliers, one number a level: the image is halved between levels.
"""

from ddpm_jax.config import Config, Ddim, Npz, Train


def get_config() -> Config:
    return Config(
        workdir="runs/npz",
        data=Npz(),
        train=Train(num_steps=200_000),
        sample=Ddim(steps=50),
    )
