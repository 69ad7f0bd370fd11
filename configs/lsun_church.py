"""LSUN Church, 256x256, with the settings of Ho et al. 2020.

    python train.py --config configs/lsun_church.py

Prepare the data set `lsun/church_outdoor` first: the first start gives the command, which needs tensorflow-io besides.
Hardware: the paper used a TPU v3-8, 2.2 steps/s,
151 hours. Expect: the paper reports FID 7.89. Not yet reproduced here.
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
