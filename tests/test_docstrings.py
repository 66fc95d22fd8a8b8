"""The examples in docstrings run and give what they show, and what is said of arguments is whole sentences."""

import ast
import doctest
import importlib
import inspect
import re
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.utils.data import TensorDataset

import supernet
import supernet.compare
import supernet.cost
import supernet.deploy
import supernet.search
import supernet.testing

SOURCE = Path(supernet.__file__).parent

# What an example may use without importing it.
PUBLIC = (
    supernet.compare,
    supernet.cost,
    supernet.deploy,
    supernet.execution,
    supernet.nn,
    supernet.relaxations,
    supernet.search,
    supernet.space,
    supernet.testing,
    supernet.trainers,
    supernet,
)
NAMES = {name: getattr(room, name) for room in PUBLIC for name in room.__all__}
NAMES |= {"supernet": supernet, "torch": torch, "nn": nn, "SGD": SGD, "TensorDataset": TensorDataset}

_ENTRY = re.compile(r"([\w*]+(?:, [\w*]+)*): (.*)", re.DOTALL)


FILES = [path for path in sorted(SOURCE.rglob("*.py")) if path.name != "__main__.py"]


def _name_of(path):
    return ".".join(["supernet", *path.relative_to(SOURCE).with_suffix("").parts]).removesuffix(".__init__")


@pytest.mark.parametrize("name", [_name_of(path) for path in FILES if ">>>" in path.read_text()])
def test_the_examples_of_a_module_give_what_they_show(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # for the files that they write
    torch.manual_seed(0)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    report = []
    module = importlib.import_module(name)
    for test in doctest.DocTestFinder(exclude_empty=True).find(module, extraglobs=NAMES):
        runner.run(test, out=report.append)
    assert not report, "".join(report)
    assert runner.tries > 0


def _documented(path):
    """Yield (name, docstring) of the public classes, functions and methods that a file defines."""
    module = importlib.import_module(_name_of(path))
    waiting = [(module, "", node) for node in ast.parse(path.read_text()).body]
    for owner, prefix, node in waiting:  # which grows meanwhile
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            # The text as it is in the end: some classes put in what others have to say.
            subject = vars(owner).get(node.name)
            yield prefix + node.name, inspect.cleandoc(getattr(subject, "__doc__", None) or "")
            if isinstance(subject, type):
                waiting += [(subject, f"{prefix}{node.name}.", inner) for inner in node.body]


def _arguments(docstring, sections="Args|Attributes"):
    """Yield (name, what is said of it) of some sections."""
    for section in re.findall(rf"^(?:{sections}):\n((?: {{4}}.*\n?|\n)+)", docstring, re.MULTILINE):
        for entry in re.split(r"^(?=\S)", textwrap.dedent(section), flags=re.MULTILINE):
            if entry.strip():
                match = _ENTRY.fullmatch(entry.strip())
                assert match, entry
                yield match[1], match[2]


def _is_sentence(text):
    return re.match(r"[A-Z`\"'0-9]", text) is not None and text.endswith(".")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_what_is_said_of_arguments_is_whole_sentences(path):
    said = [(owner, *argument) for owner, docstring in _documented(path) for argument in _arguments(docstring)]
    fragments = [f"{owner}: {name}: {text}" for owner, name, text in said if not _is_sentence(text)]
    assert fragments == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_what_is_said_of_errors_is_whole_sentences(path):
    said = [(owner, *error) for owner, docstring in _documented(path) for error in _arguments(docstring, "Raises")]
    assert [f"{owner}: {name}: {text}" for owner, name, text in said if not _is_sentence(text)] == []


@pytest.mark.parametrize("name", supernet.__all__)
def test_arguments_in_docstrings_are_those_of_the_signature(name):
    subject = getattr(supernet, name)
    sections = re.findall(r"^Args:\n((?: {4}.*\n?|\n)+)", inspect.getdoc(subject) or "", re.MULTILINE)
    if not sections or not callable(subject):
        pytest.skip("has no arguments of its own")
    said = {argument for names, _ in _arguments("Args:\n" + sections[0]) for argument in names.split(", ")}
    # Those that the function is written with count too: `*task` stands for what a signature may spell out.
    written = inspect.unwrap(subject.__init__ if isinstance(subject, type) else subject).__code__.co_varnames
    assert said <= {*inspect.signature(subject).parameters, *written}
