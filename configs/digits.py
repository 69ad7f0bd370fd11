"""8x8 handwritten digits, bundled with scikit-learn: no download, minutes on a laptop.

    python train.py --config configs/digits.py

Hardware: two CPU cores. Time: under 3 minutes. Expect: samples/*.png that look like the data.
"""

from ddpm_jax.config import Checkpoint, Config, Data, Diffusion, Ema, Network, Optimizer, Sample, Train


def get_config() -> Config:
    return Config(
        workdir="runs/digits",
        data=Data(source="digits"),
        network=Network(channels=32, multipliers=(1, 2), num_blocks=2, attention_resolutions=(4,), dropout=0.0),
        diffusion=Diffusion(),
        optimizer=Optimizer(learning_rate=2e-3, warmup_steps=100, decay="cosine"),
        ema=Ema(decay=0.995, warmup=True),
        train=Train(num_steps=1500, batch_size=32, log_every=100, sample_every=500),
        sample=Sample(sampler="ddim", steps=50),
        checkpoint=Checkpoint(every=500),
    )
