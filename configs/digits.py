"""8x8 handwritten digits, bundled with scikit-learn: no download, minutes on a laptop.

    python train.py --config configs/digits.py

The network is small, told the class, and withheld it one time in ten: `sample.py --label 3 --guidance 1.5`. The noise schedule
is the cosine and the prediction v, with which 1,100 steps are enough. `--network.num_classes None` trains one without classes.
Hardware: two CPU cores. Time: under 3 minutes. Expect: samples that look like the data; docs/benchmarks.md has figures.
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
