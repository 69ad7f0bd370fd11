"""8x8 handwritten digits, bundled with scikit-learn: no download.

    python train.py --config configs/digits.py

A small class-conditional network, trained with 10 % label dropout for guidance: `sample.py --label 3 --guidance 1.25`. With the
cosine schedule and v-prediction 1,100 steps suffice. `--network.num_classes None` trains an unconditional model.

Hardware: two CPU cores. Time: 2 to 3 minutes. Result: 4.641 ± 0.027 bits/dim on the held-out digits, Fréchet distance in pixels
22.2 (real digits: 12.0); docs/benchmarks.md has more.
"""

from ddpm_jax.config import Checkpoint, Config, Ddim, Diffusion, Digits, Ema, Optimizer, Train, UNet


def get_config() -> Config:
    return Config(
        workdir="runs/digits",
        data=Digits(),
        network=UNet(channels=32, multipliers=(1, 2), num_blocks=1, attention_resolutions=(), dropout=0.0, num_classes=10),
        diffusion=Diffusion(schedule="cosine", prediction="v"),
        optimizer=Optimizer(learning_rate=4e-3, warmup_steps=100, decay="cosine"),
        ema=Ema(decay=0.995, warmup=True),
        train=Train(num_steps=1100, batch_size=64, log_every=100, sample_every=550),
        sample=Ddim(steps=50),
        checkpoint=Checkpoint(every=275),
    )
