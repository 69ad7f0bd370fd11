"""8x8 handwritten digits, bundled with scikit-learn, with a small diffusion transformer (DiT) trained by flow matching.

    python train.py --config configs/digits_dit.py

Times are logit-normal, as in Stable Diffusion 3.

Hardware: two CPU cores. Time: TODO. Result: TODO
"""

from ddpm_jax.config import Checkpoint, Config, Ddim, Diffusion, Digits, DiT, Ema, Loss, Optimizer, Train


def get_config() -> Config:
    return Config(
        workdir="runs/digits_dit",
        data=Digits(),
        network=DiT(width=96, depth=6, num_heads=3, patch=2, num_classes=10),
        diffusion=Diffusion(schedule="flow", prediction="flow"),
        loss=Loss(times="log_normal"),
        optimizer=Optimizer(learning_rate=2e-3, warmup_steps=100, decay="cosine"),
        ema=Ema(decay=0.995, warmup=True),
        train=Train(num_steps=2000, batch_size=64, log_every=100, sample_every=1000),
        sample=Ddim(steps=50),
        checkpoint=Checkpoint(every=500),
    )
