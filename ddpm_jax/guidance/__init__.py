"""Guidance: denoiser transforms that steer samples towards a condition.

Each adds to the estimated score, which moves x0 and eps together, so that x_t = alpha x0 + sigma eps still holds. A scale is a
number, or one per example [B]. They compose, and can be pickled if what they wrap can; `denoiser.clipped` or
`dynamic_threshold` comes last:

    clipped(classifier_free(make_denoise(schedule, predict, clip=False), scale=3.0))
"""

from ddpm_jax.guidance.classifier_free import PredictGiven, autoguidance, classifier_free, conditional, interleave
from ddpm_jax.guidance.gradients import LogProbability, classifier, dps, gaussian_likelihood
from ddpm_jax.guidance.scales import Interval
from ddpm_jax.guidance.threshold import dynamic_threshold

__all__ = [
    "Interval", "LogProbability", "PredictGiven", "autoguidance", "classifier", "classifier_free", "conditional", "dps",
    "dynamic_threshold", "gaussian_likelihood", "interleave",
]  # fmt: skip
