"""CIFAR-10, 32x32, with the settings of Ho et al. 2020.

    pip install -e ".[prepare]" && python -c 'import tensorflow_datasets as tfds; tfds.builder("cifar10", file_format="array_record").download_and_prepare()'
    python train.py --config configs/cifar10.py

Hardware: one GPU; the paper used a TPU v3-8. Time: on one NVIDIA H200 with `--network.dtype bfloat16`, 7,030 images/s, at which
800,000 steps take 4 hours; the paper 10.6 hours. Result: not yet run to the end; the paper reports FID 3.17 and Inception Score
9.46 at the best checkpoint, sampled with all 1,000 steps.
"""  # noqa: E501

from ddpm_jax.config import Config, Tfds


def get_config() -> Config:
    return Config(workdir="runs/cifar10", data=Tfds(name="cifar10", random_flip=True))
