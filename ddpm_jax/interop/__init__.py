"""Weights in and out: diffusers' folders, the authors' names and those of their PyTorch port, and plain files of our own.

    model = interop.diffusers.load("ddpm-cifar10-32")               # network, params, schedule, prediction, ...
    eps = model.network.apply(model.params, x_t, t)
    interop.diffusers.save("exported", *model)                      # DDPMPipeline.from_pretrained("exported")

    params = interop.weights.load("model-790000.ckpt", networks.UNet(), (32, 32, 3), interop.names.PYTORCH_DIFFUSION)

Nothing here needs PyTorch or TensorFlow, and no file is trusted: pickles are read for their tensors alone, without running
what they name. `python -m ddpm_jax.interop` makes a workdir of such a folder, and such a folder of a workdir.
"""

from ddpm_jax.interop import diffusers, names, weights

__all__ = ["diffusers", "names", "weights"]
