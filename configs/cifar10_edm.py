"""CIFAR-10, 32x32, with the objective, network size and sampler of Karras et al. 2022 (EDM).

    pip install -e ".[prepare]" && python -c 'import tensorflow_datasets as tfds; tfds.builder("cifar10", file_format="array_record").download_and_prepare()'
    python train.py --config configs/cifar10_edm.py
    python sample.py --workdir runs/cifar10_edm --sampler heun --steps 256 --churn 40 --churn_low 0.05 --churn_high 50 --churn_noise 1.003

Samples take 18 steps of Heun's method, 35 network evaluations. The third command samples stochastically, with the constants that
the paper found for ImageNet. The paper's data augmentation is left out, except for flips.

Hardware: one or several GPUs; the paper used 8. Time: 390,625 steps of 512 images; not yet run. Result: the paper reports FID 1.97,
with its augmentation.
"""  # noqa: E501

from ddpm_jax.config import Config, Diffusion, Ema, Heun, Loss, Optimizer, Tfds, Train, UNet


def get_config() -> Config:
    return Config(
        workdir="runs/cifar10_edm",
        data=Tfds(name="cifar10", random_flip=True),
        network=UNet(channels=128, multipliers=(2, 2, 2), num_blocks=4, dropout=0.13),
        diffusion=Diffusion(schedule="flow", prediction="edm", sigma_data=0.5),
        loss=Loss(times="log_normal", times_mean=-1.2, times_std=1.2),
        optimizer=Optimizer(learning_rate=1e-3, warmup_steps=19_531),
        ema=Ema(decay=None, half_life=(500_000,), warmup=True),
        train=Train(num_steps=390_625, batch_size=512),
        sample=Heun(steps=18, grid="karras", sigma_range=(0.002, 80.0), clip=False),
    )
