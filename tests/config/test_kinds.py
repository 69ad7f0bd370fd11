"""Choices between kinds: made by their tag, from the command line, and from configs of before there were kinds."""

import dataclasses
import json
import pickle

import pytest

from ddpm_jax import config
from ddpm_jax.config import Config, Data, Ddim, Ddpm, Digits, EulerAncestral, Folder, Heun, Network, Npz, Sample, UNet, sampling
from ddpm_jax.config import kinds as choices
from ddpm_jax.config.cli import UsageError, parse

BASE = Config(workdir="runs/base")
FLAT = {
    "data": {"source": "digits", "path": None, "name": None, "split": "test", "data_dir": None, "image_size": None,
             "random_flip": True},
    "sample": {"sampler": "ddpm", "variance": None, "eta": 0.0, "order": 2, "steps": 7, "grid": "leading", "label": [1, 2],
               "guidance": 2.0, "clip": True, "num": 64, "seed": 0},
}  # fmt: skip
"""Sections as version 0.2 wrote them."""


def parsed(*argv, default=BASE):
    return parse(default, argv, "About.")


def test_calling_the_base_class_makes_the_kind_that_the_tag_names():
    assert Data(source="npz", path="x.npz") == Npz(path="x.npz")
    assert Data() == Digits() and Sample() == Ddpm() and Network(channels=8) == UNet(channels=8)
    assert Sample(sampler="heun", churn=40.0, steps=18) == Heun(churn=40.0, steps=18)
    assert pickle.loads(pickle.dumps(Heun(churn=40.0))) == Heun(churn=40.0)
    assert dataclasses.replace(Ddim(eta=0.5), steps=3) == Ddim(eta=0.5, steps=3)
    assert dataclasses.replace(Ddim(steps=3), sampler="heun") == Heun(steps=3)


def test_a_kind_takes_its_own_fields_alone_and_a_tag_by_position():
    assert Data("npz", "x.npz") == Npz(path="x.npz") and Sample("ddim", steps=5) == Ddim(steps=5)
    for wrong in (lambda: Ddpm(eta=1.0), lambda: Heun(order=2), lambda: Data("npz", "x.npz", True)):
        with pytest.raises(TypeError, match=r"eta|order|expected options by name after source and path"):
            wrong()
    for shared in (sampling.Multistep, sampling.Churned):
        with pytest.raises(TypeError, match="expected one of its kinds"):
            shared()


def test_a_field_of_another_kind_is_refused_unless_it_is_at_its_default():
    assert Sample(sampler="ddim", order=2) == Ddim()
    with pytest.raises(ValueError, match=r"order: expected with sampler dpm_solver_pp or .* or deis, received 3 with ddim"):
        Sample(sampler="ddim", order=3)
    with pytest.raises(ValueError, match="path: expected with source npz or folder, received x with digits"):
        Data(path="x")
    with pytest.raises(ValueError, match=r"sampler: expected ddpm, ddim, .*, received dimm"):
        Sample(sampler="dimm")
    with pytest.raises(TypeError, match="depth"):
        UNet(depth=3)


def test_every_kind_has_its_own_tag_and_a_help_text_for_each_field():
    for choice in (Data, Network, Sample):
        found = choices.kinds(choice)
        assert len(found) == len(set(found.values())) > 0
        for name, kind in found.items():
            assert choice(**{choices.tag(choice): name}) == kind()
            text = help_of(dataclasses.replace(BASE, **{choice.__name__.lower(): kind()}))
            assert kind.__doc__.split("(")[0].strip(".") in text
            for field in choices.defaults(kind):
                assert f"--{choice.__name__.lower()}.{field}" in text


def help_of(default):
    import contextlib
    import io

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit):
        parse(default, ["--help"], "About.")
    return " ".join(printed.getvalue().replace("│", " ").split())


def test_the_command_line_chooses_the_kind_and_keeps_the_fields_of_the_same_name():
    assert parsed("--data.source", "npz", "--data.path", "x.npz").data == Npz(path="x.npz")
    assert parsed("--data.image-size=8", "--data.source=folder").data == Folder(image_size=8)
    mine = dataclasses.replace(BASE, data=Folder(path="here", image_size=8, random_flip=True), sample=Ddim(steps=9, eta=0.5))
    assert parsed("--data.source", "npz", default=mine).data == Npz(path="here", random_flip=True)
    assert parsed("--sample.sampler", "unipc", "--sample.order", "3", default=mine).sample.steps == 9
    assert parsed("--sample.sampler", "euler_ancestral", default=mine).sample == EulerAncestral(steps=9), "another eta"
    assert parsed("--sample.sampler", "heun", "--sample.sampler", "ddim").sample == Ddim(), "the last one counts"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--sample.order", "3"], "--sample.order: expected with --sample.sampler dpm_solver_pp or dpm_solver_pp_sde or unipc "
                                  "or deis, received with ddpm"),
        (["--data.path", "x"], "--data.path: expected with --data.source npz or folder, received with digits"),
        (["--data.source", "npz", "--data.split", "test"], "--data.split: expected with --data.source digits or tfds"),
        (["--sample.sampler", "dimm"], "--sample.sampler: expected ddpm, ddim, "),
        (["--sample.sampler", "dimm"], "received dimm, perhaps ddim"),
        (["--network.kind", "unte"], "--network.kind: expected unet, dit, received unte, perhaps unet"),
        (["--sample.sampler"], "--sample.sampler: expected a value"),
        (["--sample.stepz", "3"], "--sample.stepz: expected an option, perhaps --sample.steps"),
    ],
)  # fmt: skip
def test_an_option_of_another_kind_names_the_kinds_that_have_it(argv, said):
    with pytest.raises(UsageError) as error:
        parsed(*argv)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_flat_configs_of_before_are_read():
    found = config.from_dict(json.loads(json.dumps({"workdir": "w", "network": {"channels": 8}, **FLAT})))
    assert found.data == Digits(split="test", random_flip=True)
    assert found.sample == Ddpm(steps=7, label=(1, 2), guidance=2.0)
    assert found.network == UNet(channels=8)
    ancestral = {**FLAT, "sample": {**FLAT["sample"], "sampler": "euler_ancestral"}}
    assert config.from_dict(ancestral).sample.eta == 1.0, "it never used ddim's eta"


def test_a_flat_config_with_a_value_that_its_kind_never_used_says_so_and_is_read():
    with pytest.warns(UserWarning, match="sample.order 3 is dropped: ddpm never used it"):
        found = config.from_dict({"sample": {**FLAT["sample"], "order": 3}})
    assert found.sample == Ddpm(steps=7, label=(1, 2), guidance=2.0)
    with pytest.raises(ValueError, match="order: expected with sampler dpm_solver_pp"):
        config.from_dict({"sample": {"sampler": "ddpm", "order": 3}})


def test_every_kind_survives_a_round_trip_through_json():
    for choice in (Data, Network, Sample):
        for kind in choices.kinds(choice).values():
            one = dataclasses.replace(BASE, **{choice.__name__.lower(): kind()})
            assert config.from_dict(json.loads(json.dumps(dataclasses.asdict(one)))) == one


def test_a_run_may_resume_with_another_sampler_but_not_on_other_data():
    allowed, refused = config.changes(BASE, dataclasses.replace(BASE, sample=Heun(steps=9), data=Npz(path="x")))
    assert allowed == ["sample.sampler: ddpm -> heun", "sample.steps: None -> 9"]
    assert refused == ["data.source: digits -> npz"]
