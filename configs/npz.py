"""Your own arrays: an .npz file with `image`, uint8 [N, H, W, C], all of one size.

    python train.py --config configs/npz.py --data.path images.npz --workdir runs/mine

The first grid, after 500 steps, shows colours and shapes. The file may have `label`, integers [N], and `classes`, their names;
`--network.num_classes N` conditions the model on them. The network is the paper's for 32x32 images; height and width must be
divisible by 8. For other sizes set --network.multipliers, one number per resolution, each half the one before.

Hardware: one GPU. Time and result: they depend on the data; not yet run at full length.
"""

from ddpm_jax.config import Config, Ddim, Diffusion, Ema, Npz, Optimizer, Train


def get_config() -> Config:
    return Config(
        workdir="runs/npz",
        data=Npz(),
        diffusion=Diffusion(schedule="cosine", prediction="v"),
        optimizer=Optimizer(learning_rate=5e-4, warmup_steps=100),
        ema=Ema(decay=0.9999, warmup=True),
        train=Train(num_steps=200_000, sample_every=500),
        sample=Ddim(steps=50),
    )
