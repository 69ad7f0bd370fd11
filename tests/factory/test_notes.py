import dataclasses

import pytest

from ddpm_jax import factory
from ddpm_jax.config import Config, Diffusion, Ema, Optimizer, Train

SHORT = Config(workdir="x", optimizer=Optimizer(warmup_steps=10), ema=Ema(decay=0.999, warmup=True), train=Train(num_steps=600))


def test_a_sound_run_has_no_notes():
    assert factory.notes(SHORT) == []
    assert factory.notes(Config(workdir="x")) == [], "the paper's"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"optimizer": Optimizer(warmup_steps=5000)}, "the learning rate only reaches 12% of its peak by step 600"),
        ({"ema": Ema(decay=0.9999)}, "the initial parameters have a weight of 94% in the EMA decay at step 600"),
        ({"ema": Ema(decay=None, half_life=(128 * 300,))}, "a weight of 25% in the EMA half_life_38400"),
        ({"diffusion": Diffusion(num_steps=200)}, "the last level of --diffusion.schedule linear has 13% signal"),
    ],
)
def test_what_will_not_be_done_by_the_last_step_is_noted(change, said):
    (line,) = factory.notes(dataclasses.replace(SHORT, **change))
    assert said in line


@pytest.mark.parametrize("schedule", ["cosine", "sigmoid", "jsd", "constant", "continuous_linear", "continuous_cosine"])
def test_other_schedules_end_in_noise(schedule):
    assert factory.notes(dataclasses.replace(SHORT, diffusion=Diffusion(schedule=schedule))) == []
