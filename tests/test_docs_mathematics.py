"""docs/mathematics.md: its pieces of Python, in order, and the names that it mentions."""

import pathlib
import re
from typing import NamedTuple

import pytest

import ddpm_jax
from ddpm_jax import losses, networks, schedules  # noqa: F401

ROOT = pathlib.Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "mathematics.md").read_text()
PROSE = re.sub(r"```python\n.*?```", "", TEXT, flags=re.S)


class Block(NamedTuple):
    name: str
    line: int
    code: str


def blocks():
    """Every piece of Python, named by the heading above it, with a number where that has several."""
    found, counts = [], {}
    for match in re.finditer(r"^```python\n(.*?)^```$", TEXT, re.S | re.M):
        before = TEXT[: match.start(1)]
        heading = re.findall(r"^#+ (.*)", re.sub(r"```python\n.*?```", "", before, flags=re.S), re.M)[-1]
        counts[heading] = counts.get(heading, 0) + 1
        name = heading if counts[heading] == 1 else f"{heading} ({counts[heading]})"
        found.append(Block(name, before.count("\n"), match[1]))
    return found


BLOCKS = blocks()


@pytest.fixture(scope="module")
def failures():
    """Runs all blocks once, in one namespace; returns what each raised. Those after a failure may fail for its sake."""
    names, raised = {}, {}
    for block in BLOCKS:
        code = compile("\n" * block.line + block.code, "docs/mathematics.md", "exec")  # so that errors name its lines
        try:
            exec(code, names)
        except Exception as error:
            raised[block.name] = error
    return raised


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.name)
def test_what_the_text_claims_holds(block, failures):
    if block.name in failures:
        raise failures[block.name]


def test_every_section_with_an_equation_is_checked():
    for section in re.split(r"^## ", TEXT, flags=re.M)[1:]:
        assert "$$" not in section or "assert" in section, section.splitlines()[0]
    assert len(BLOCKS) > 30


def test_every_function_that_the_text_names_exists():
    """`module.function`, of this library; so that a renamed function is renamed here too."""
    named = sorted(set(re.findall(r"`([a-z_0-9]+(?:\.\w+)+)`", PROSE)))
    assert len(named) > 30
    for name in named:
        module, *attributes = name.split(".")
        found = next(getattr(package, module) for package in (losses, schedules, ddpm_jax) if hasattr(package, module))
        for attribute in attributes:
            assert hasattr(found, attribute), name
            found = getattr(found, attribute)


def test_every_file_that_the_text_names_exists():
    for path in set(re.findall(r"`([\w/]+/\w+\.py)`", PROSE)):
        assert (ROOT / path).is_file(), path


def test_the_links_lead_to_headings():
    anchors = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.*)", PROSE, re.M)}
    links = re.findall(r"\]\(#(.*?)\)", PROSE)
    assert links and set(links) <= anchors
