"""docs/questions.md: its pieces of Python, each of which needs the first alone, and its links."""

import pathlib
import re

import pytest

DOCS = pathlib.Path(__file__).parents[1] / "docs"
TEXT = (DOCS / "questions.md").read_text()
HEAD, *QUESTIONS = TEXT.split("\n## ")


def run(part, names):
    """Executes the one piece of a part of the page."""
    (code,) = re.findall(r"^```python\n(.*?)^```$", part, re.S | re.M)
    line = TEXT[: TEXT.index(code)].count("\n")
    exec(compile("\n" * line + code, "docs/questions.md", "exec"), names)  # so that errors name its lines


@pytest.fixture(scope="module")
def first():
    """The names that the first piece defines."""
    names = {}
    run(HEAD, names)
    return names


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.splitlines()[0])
def test_the_answer_holds(question, first):
    assert re.search(r"^assert ", question, re.M)
    run(question, dict(first))


def anchors(page):
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.S | re.M)
    return [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in re.findall(r"^#+ (.*)", prose, re.M)]


def test_the_contents_are_the_questions():
    assert re.findall(r"\]\(#(.*?)\)", HEAD) == anchors(DOCS / "questions.md")[1:]


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.splitlines()[0])
def test_the_answer_links_to_sections_and_files_that_exist(question):
    links = re.findall(r"\]\((\w+\.md)(?:#(.*?))?\)", question)
    assert links
    for page, anchor in links:
        assert (DOCS / page).is_file(), page
        assert not anchor or anchor in anchors(DOCS / page), (page, anchor)
    for path in re.findall(r"`([\w/]+\.py)`", question):
        assert (DOCS.parent / path).is_file(), path
