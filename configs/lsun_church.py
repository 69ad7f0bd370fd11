"""LSUN Church, 256x256, with the settings of Ho et al. 2020.

    python train.py --config configs/lsun_church.py

Prepare the data set `lsun/church_outdoor` first: the command prints how. Its preparation also needs tensorflow-io.

Hardware: several GPUs or a TPU; the paper used a TPU v3-8. Time: the paper 151 hours, 2.2 steps/s. Result: not yet run; the
paper reports FID 7.89.
"""

from ddpm_jax.config import Config, Ddpm, Diffusion, Optimizer, Tfds, Train, UNet


def get_config() -> Config:
    return Config(
        workdir="runs/lsun_church",
        data=Tfds(name="lsun/church_outdoor", image_size=256, random_flip=True),
        network=UNet(multipliers=(1, 1, 2, 2, 4, 4), dropout=0.0),
        diffusion=Diffusion(variance="fixed_small"),
        optimizer=Optimizer(learning_rate=2e-5),
        train=Train(num_steps=1_200_000, batch_size=64),
        sample=Ddpm(num=16),
    )
