"""Import and export of weights: folders of diffusers, the authors' checkpoints, their PyTorch port, and our own plain files.

    model = interop.diffusers.load("ddpm-cifar10-32")               # network, params, schedule, prediction, ...
    eps = model.network.apply(model.params, x_t, t)
    interop.diffusers.save("exported", *model)                      # DDPMPipeline.from_pretrained("exported")

    params = interop.weights.load("model-790000.ckpt", networks.UNet(), (32, 32, 3), interop.names.PYTORCH_DIFFUSION)

Nothing here needs PyTorch or TensorFlow, and no file is trusted: only tensors are read from pickles, no code in them is run,
and the sizes in a header are compared with the file before memory is allocated. `python -m ddpm_jax.interop` converts between
workdirs and folders of diffusers.
"""

from ddpm_jax.interop import diffusers, names, weights

__all__ = ["diffusers", "names", "weights"]
