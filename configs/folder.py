"""Your own pictures: a folder of PNG, JPEG and WebP files, at any depth, cropped and resized to 64x64.

    python train.py --config configs/folder.py --data.path pictures --workdir runs/mine

The first grid, after 500 steps, shows colours and shapes. If all pictures are grayscale, so is the model. Folders of pictures
are classes; `--network.num_classes N` conditions the model on them. For other sizes set --data.image_size and
--network.multipliers, one number per resolution, each half the one before.

Hardware: one GPU. Time and result: they depend on the data; not yet run at full length.
"""

from ddpm_jax.config import Config, Ddim, Diffusion, Ema, Folder, Optimizer, Train, UNet


def get_config() -> Config:
    return Config(
        workdir="runs/folder",
        data=Folder(image_size=64, random_flip=True),
        network=UNet(multipliers=(1, 2, 2, 4)),
        diffusion=Diffusion(schedule="cosine", prediction="v"),
        optimizer=Optimizer(learning_rate=5e-4, warmup_steps=100),
        ema=Ema(decay=0.9999, warmup=True),
        train=Train(num_steps=200_000, batch_size=64, sample_every=500),
        sample=Ddim(steps=50),
    )
