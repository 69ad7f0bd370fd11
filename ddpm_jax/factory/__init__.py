"""From the config to the objects that it names: one `match` per family."""

from ddpm_jax.factory.data import check_labels, describe_classes, make_source
from ddpm_jax.factory.diffusion import make_loss, make_schedule, make_times
from ddpm_jax.factory.guidance import make_denoise_of, make_labels, with_label_indices
from ddpm_jax.factory.load import AverageError, CheckpointError, LoadedRun, SavedRun, find, find_named, load, load_named
from ddpm_jax.factory.network import bind, make_network
from ddpm_jax.factory.notes import notes
from ddpm_jax.factory.objective import make_objective
from ddpm_jax.factory.optimizer import make_averages, make_learning_rate, make_optimizer, power_name
from ddpm_jax.factory.sampler import make_generator, make_levels, make_sampler, require_every_time, step_variance

__all__ = [
    "AverageError", "CheckpointError", "LoadedRun", "SavedRun", "bind", "check_labels", "describe_classes", "find",
    "find_named", "load", "load_named", "make_averages", "make_denoise_of", "make_generator", "make_labels",
    "make_learning_rate", "make_levels", "make_loss", "make_network", "make_objective", "make_optimizer", "make_sampler",
    "make_schedule", "make_source", "make_times", "notes", "power_name", "require_every_time", "step_variance",
    "with_label_indices",
]  # fmt: skip
