"""CIFAR-10, 32x32, with the network of Ho et al. 2020 and the objective of flow matching (Liu et al. 2022, Lipman et al. 2022).

    pip install -e ".[prepare]" && python -c 'import tensorflow_datasets as tfds; tfds.builder("cifar10", file_format="array_record").download_and_prepare()'
    python train.py --config configs/cifar10_flow.py

The network predicts the velocity eps - x0 of the straight path x_t = (1 - t) x0 + t eps, at uniform times. On this path DDIM is
Euler's method for dx/dt = velocity.

Hardware: one GPU. Time: as `configs/cifar10.py`. Result: not yet run.
"""  # noqa: E501

from ddpm_jax.config import Config, Ddim, Diffusion, Tfds


def get_config() -> Config:
    return Config(
        workdir="runs/cifar10_flow",
        data=Tfds(name="cifar10", random_flip=True),
        diffusion=Diffusion(schedule="flow", prediction="flow"),
        sample=Ddim(steps=100, clip=False),
    )
