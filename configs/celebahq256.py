"""CelebA-HQ, 256x256, with the settings of Ho et al. 2020.

    python train.py --config configs/celebahq256.py

Prepare the data set `celeb_a_hq/256` first: the command prints how. TensorFlow Datasets needs images that are made by hand from
CelebA.

Hardware: several GPUs or a TPU; the paper used a TPU v3-8. Time: the paper 63 hours, 2.2 steps/s. Result: not yet run.
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
