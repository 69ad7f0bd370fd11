"""An Objective of your own: a linear autoencoder of 8x8 digits, trained by the package's training step.

    python examples/own_objective.py

`training` knows of an objective what stands here and no more, so whatever has losses trains, accumulates, shards and resumes.
"""

import jax
import jax.numpy as jnp
import optax

from ddpm_jax.data import images, pipeline, sources
from ddpm_jax.training import ema
from ddpm_jax.training.objective import Objective
from ddpm_jax.training.state import init_state
from ddpm_jax.training.step import make_train_step


def autoencoder(size: int, num_latents: int) -> Objective:
    """x -> z = x E -> z D, trained on the squared error; the optimum spans the first principal components."""

    def init(key):
        keys = jax.random.split(key)
        shapes = {"encode": (size, num_latents), "decode": (num_latents, size)}
        return {name: jax.random.normal(key, shape) / 8 for key, (name, shape) in zip(keys, shapes.items(), strict=True)}

    def reconstruct(params, x):
        return x @ params["encode"] @ params["decode"]

    def losses(params, key, step, batch, ids, frozen, memory):
        x = images.to_float(batch["image"]).reshape(-1, size)
        difference = reconstruct(params, x) - x
        errors = jnp.mean(difference**2, axis=1)
        return errors, jnp.ones_like(errors), {"bias": (difference.sum(), jnp.asarray(difference.size))}, ()

    return Objective(init, losses)


def main(num_steps: int = 600) -> tuple[Objective, dict]:
    """Trains it; returns the objective and the averaged parameters."""
    objective, key = autoencoder(size=64, num_latents=8), jax.random.key(0)
    learning_rate = optax.cosine_decay_schedule(1e-2, num_steps)
    optimizer, averages = optax.adam(learning_rate), {"decay": ema.exponential(0.99)}
    train_step = jax.jit(make_train_step(key, objective, optimizer, learning_rate, averages), donate_argnums=0)
    state = init_state(key, objective, optimizer, averages)
    batches = pipeline.iterate(pipeline.batches(sources.digits(), 128, seed=0))
    for step in range(1, num_steps + 1):
        state, metrics = train_step(state, next(batches), objective.frozen)
        if step % 150 == 0:
            print(f"step {step}  loss {metrics['loss']:.4f}")
    batches.close()
    return objective, state.ema["decay"]


if __name__ == "__main__":
    main()
