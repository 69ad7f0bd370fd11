"""8x8 handwritten digits, bundled with scikit-learn, with a small diffusion transformer (DiT) trained by flow matching.

    python train.py --config configs/digits_dit.py

Times are logit-normal, as in Stable Diffusion 3; samples take 18 steps of Heun's method. The UNet of `configs/digits.py` learns
these small images faster.

Hardware: two CPU cores. Time: 2 min 10 s. Result: Fréchet distance in pixels 29.2 (real digits: 12.0); docs/benchmarks.md has
more.
"""

from ddpm_jax.config import Checkpoint, Config, Diffusion, Digits, DiT, Ema, Heun, Loss, Optimizer, Train


def get_config() -> Config:
    return Config(
        workdir="runs/digits_dit",
        data=Digits(),
        network=DiT(width=96, depth=4, num_heads=3, patch=2, num_classes=10),
        diffusion=Diffusion(schedule="flow", prediction="flow"),
        loss=Loss(times="log_normal"),
        optimizer=Optimizer(learning_rate=2e-3, warmup_steps=100, decay="cosine"),
        ema=Ema(decay=0.995, warmup=True),
        train=Train(num_steps=1200, batch_size=64, log_every=100, sample_every=600),
        sample=Heun(steps=18, grid="karras", sigma_range=(0.002, 80.0), clip=False),
        checkpoint=Checkpoint(every=300),
    )
