"""CelebA-HQ, 256x256, with the settings of Ho et al. 2020.

    python train.py --config configs/celebahq256.py

Prepare the data set `celeb_a_hq/256` first: the first start gives the command, and TensorFlow Datasets asks for images that
you make by hand from CelebA. Hardware: the paper used a TPU v3-8, 2.2 steps/s,
63 hours. Expect: faces at 256x256. Not yet reproduced here.
"""

from ddpm_jax.config import Config, Ddpm, Diffusion, Optimizer, Tfds, Train, UNet


def get_config() -> Config:
    return Config(
        workdir="runs/celebahq256",
        data=Tfds(name="celeb_a_hq/256", image_size=256, random_flip=True),
        network=UNet(multipliers=(1, 1, 2, 2, 4, 4), dropout=0.0),
        diffusion=Diffusion(variance="fixed_small"),
        optimizer=Optimizer(learning_rate=2e-5),
        train=Train(num_steps=500_000, batch_size=64),
        sample=Ddpm(num=16),
    )
