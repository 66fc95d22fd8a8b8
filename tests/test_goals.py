"""How much a reader must read: the functions of a step, counted as they are entered; and kinds of choice by name."""

import ast
import logging
import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

import supernet
from supernet import Cell, DartsTrainer, InputChoice, LayerChoice
from supernet.execution import trial
from supernet.execution.slot import Slot
from supernet.nn import Choice

SOURCE = Path(supernet.__file__).parent


class Small(nn.Module):
    def __init__(self, norm):
        super().__init__()
        candidates = {"linear": nn.Linear(4, 4), "deep": nn.Sequential(nn.Linear(4, 4), nn.Tanh())}
        self.op, self.norm, self.head = LayerChoice(candidates, label="op"), norm, nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.norm(self.op(x)))


def code_lines(path, first):
    """Return how many lines the function that begins there has, without docstring, comments and blank lines."""
    text = path.read_text()
    for node in ast.walk(ast.parse(text)):
        decorators = getattr(node, "decorator_list", [])
        if isinstance(node, ast.FunctionDef) and first == min([node.lineno, *(d.lineno for d in decorators)]):
            start = node.body[0]
            has_docstring = isinstance(start, ast.Expr) and isinstance(start.value, ast.Constant)
            left_out = range(start.lineno, start.end_lineno + 1) if has_docstring else ()
            lines = text.splitlines()
            counted = [lines[i - 1].strip() for i in range(first, node.end_lineno + 1) if i not in left_out]
            return sum(bool(line) and not line.startswith("#") for line in counted)
    return 1  # a lambda, or a comprehension where Python makes it a function


def entered_by_a_step(norm, monkeypatch):
    """Return (lines, files) of the functions of the package that the second step of a first-order search enters."""
    monkeypatch.setattr(trial, "agree", lambda *_: False)  # so that all runs the plain way
    torch.manual_seed(0)
    model, data = Small(norm), TensorDataset(torch.randn(16, 4), torch.arange(16) % 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    loss = nn.CrossEntropyLoss()
    trainer = DartsTrainer(model, loss, None, optimizer, 1, data, batch_size=8, progress=False, device="cpu")
    X, y = data.tensors[0][:8], data.tensors[1][:8]
    trainer.train_step(X, y, X, y)
    entered = set()

    def note(frame, event, _):
        if event == "call" and frame.f_code.co_filename.startswith(str(SOURCE)):
            entered.add((Path(frame.f_code.co_filename), frame.f_code.co_firstlineno, frame.f_code.co_name))

    sys.setprofile(note)
    try:
        trainer.train_step(X, y, X, y)
    finally:
        sys.setprofile(None)
    names = {name for *_, name in entered}
    assert {"train_architecture", "train_model_weight", "weighted_sum", "optimizer_step"} <= names
    return sum(code_lines(path, first) for path, first, _ in entered), {path.name for path, *_ in entered}


def test_one_plain_step_of_first_order_darts_is_read_in_160_lines_of_six_files(monkeypatch, caplog):
    caplog.set_level(logging.ERROR, "supernet")
    lines, files = entered_by_a_step(nn.Identity(), monkeypatch)
    assert files == {"bilevel.py", "softmax.py", "steps.py", "metrics.py", "supernet.py", "slot.py"}
    assert lines <= 160


def test_running_statistics_that_are_brought_back_add_30_lines_in_a_seventh(monkeypatch, caplog):
    caplog.set_level(logging.ERROR, "supernet")
    lines, files = entered_by_a_step(nn.BatchNorm1d(4), monkeypatch)
    assert len(files) == 7 and "state.py" in files
    assert lines <= 190


def kinds_of(base):
    """Return the names of the classes of the package that inherit from one, not its own."""
    kinds = set()
    for cls in base.__subclasses__():
        if cls.__module__.startswith("supernet."):
            kinds |= {cls.__name__} | kinds_of(cls)
    return kinds


def test_nothing_outside_nn_asks_of_which_kind_a_choice_is():
    """But for Retiarii's layer, which gives old names to the kinds of NNI, and checks of what users return."""
    kinds = {*kinds_of(Choice), *kinds_of(Slot), "Domain", LayerChoice.__name__, InputChoice.__name__, Cell.__name__}
    sites = []
    for path in SOURCE.rglob("*.py"):
        if path.relative_to(SOURCE).parts[0] in ("nn", "retiarii", "testing"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            is_call = isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("isinstance", "issubclass")
            asked = [*ast.walk(node.args[1])] if is_call else []
            if isinstance(node, ast.Compare) and "type(" in ast.unparse(node.left):
                asked = [inner for comparator in node.comparators for inner in ast.walk(comparator)]
            if {getattr(inner, "id", getattr(inner, "attr", None)) for inner in asked} & kinds:
                sites.append(f"{path.relative_to(SOURCE)}:{node.lineno}")
    assert sites == []
