"""Which kinds of choice each trainer searches: `python tests/what_works_with_what.py` writes the table of the docs.

A cell says what comes of the contract suite (`supernet.testing.check_trainer`), run on a small model with that kind.
"""

import argparse
import os
import re
import sys
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

import supernet
from kinds_of_choice import Depth, Several
from supernet import (
    DartsTrainer,
    EnasTrainer,
    InputChoice,
    LayerChoice,
    ProxylessTrainer,
    RandomTrainer,
    Repeat,
    SinglePathTrainer,
    ValueChoice,
    require,
)
from supernet.errors import ChoiceError
from supernet.nn import Mutable, Sizes
from supernet.testing import check_trainer

PAGE = Path(__file__).parents[1] / "docs" / "what_works_with_what.md"
BEGIN, END = "<!-- the table -->\n", "<!-- the end of the table -->\n"

# --- kinds of choice ---------------------------------------------------------------------------------------


class Scale(Mutable):
    """A Mutable of a user: features times a weight each."""

    def __init__(self, width):
        super().__init__()
        self.sizes = Sizes(width=width)
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, self.sizes.largest("width")))

    def run(self, sizes, x):
        return x[..., : sizes["width"]] * self.weight[: sizes["width"]]

    def frozen(self, decisions):
        scale = Scale(self.sizes.under(decisions)["width"])
        scale.weight = nn.Parameter(self.weight[: scale.sizes["width"]])
        return scale


class Called(nn.Module):
    """Calls a value in `forward`; a number is a factor, a text the name of a function."""

    def __init__(self, *values, label="value"):
        super().__init__()
        self.value = ValueChoice(values, label=label)

    def forward(self, x):
        value = self.value()
        return getattr(torch, value)(x) if isinstance(value, str) else x * value


class Inputs(nn.Module):
    def __init__(self, *arguments, **options):
        super().__init__()
        self.choice = InputChoice(*arguments, label="inputs", **options)

    def forward(self, x):
        return self.choice([x, x.tanh(), x.relu()])


class Elastic(nn.Module):
    """A Linear of an elastic width, and one of an expression of it."""

    def __init__(self):
        super().__init__()
        width = ValueChoice([1, 2], label="width")
        self.first, self.second = supernet.nn.Linear(4, width), supernet.nn.Linear(width, 2 * width)
        self.last = supernet.nn.Linear(2 * width, 4)

    def forward(self, x):
        return self.last(self.second(self.first(x)).tanh())


class Convolution(nn.Module):
    """A convolution of elastic width and kernel, and what follows it."""

    def __init__(self):
        super().__init__()
        width, kernel = ValueChoice([2, 3], label="width"), ValueChoice([1, 3], label="kernel")
        self.conv = supernet.nn.Conv1d(1, width, kernel, padding=kernel // 2)
        self.norm, self.last = supernet.nn.BatchNorm1d(width), supernet.nn.Conv1d(width, 1, 1)

    def forward(self, x):
        return self.last(self.norm(self.conv(x[:, None])))[:, 0]


def linear():
    return nn.Linear(4, 4)


def linear_of(num_features):
    return nn.Linear(num_features, num_features)


def tanh_of(num_features):
    return nn.Tanh()


def nested():
    inner = LayerChoice([nn.ReLU(), nn.Tanh()], label="inner")
    return LayerChoice({"plain": linear(), "deep": nn.Sequential(linear(), inner)}, label="outer")


def constrained():
    model = nn.Sequential(Called(1.0, 2.0, label="a"), Called(1.0, 2.0, label="b"))
    return require(model, model[0].value <= model[1].value)


def scaled():
    width = ValueChoice([2, 4], label="width")
    return nn.Sequential(Scale(width), supernet.nn.Linear(width, 4))


def every_kind():
    """A space that holds all kinds at once, but for those that have no mixture."""
    width = ValueChoice([1, 2], label="wide")
    block = nn.Sequential(supernet.nn.Linear(4, 2 * width), supernet.nn.Linear(2 * width, 4))
    depth = ValueChoice([1, 2], label="depth")
    model = nn.Sequential(
        nested(),
        Inputs(3, 1),
        Called(0.5, 1.0),
        Repeat(block, depth),
        Depth(linear(), nn.Tanh(), label="own"),
        scaled(),
    )
    return require(model, width * depth <= 3)


KINDS = {
    "`LayerChoice`": lambda: LayerChoice([linear(), nn.Identity()], label="op"),
    "`LayerChoice` with choices inside": nested,
    "`InputChoice`, one or k inputs": partial(Inputs, 3, 2),
    "`InputChoice`, any number": partial(Inputs, 3, None, absent="zeros"),
    '`InputChoice`, k inputs, `"concat"`': lambda: nn.Sequential(Inputs(3, 2, reduction="concat"), nn.Linear(8, 4)),
    "`Cell`": lambda: Cells(),
    "`NasBench101Cell`": lambda: supernet.NasBench101Cell([linear_of, tanh_of], 4, 4, nn.Linear, 3, label="nasbench"),
    "`ValueChoice` and arithmetic in elastic layers": Elastic,
    "elastic convolution and norm": Convolution,
    "`ValueChoice` of numbers, called in `forward`": partial(Called, 0.5, 2.0),
    "`ValueChoice` of texts, called in `forward`": partial(Called, "tanh", "relu"),
    "`Repeat`": lambda: Repeat(lambda: nn.Sequential(linear(), nn.Tanh()), (1, 2), label="depth"),
    "a `Choice` of your own, of one option": lambda: Depth(linear(), nn.Tanh(), label="own"),
    "a `Choice` of your own, of sets": lambda: Several(linear(), nn.Tanh(), nn.ReLU(), label="own"),
    "a `Mutable` of your own": scaled,
    "constraints (`require`)": constrained,
    "all of these at once": every_kind,
}


class Cells(nn.Module):
    """A cell of two nodes, of which both are averaged."""

    def __init__(self):
        super().__init__()
        self.cell = supernet.Cell(
            lambda: {"linear": linear(), "skip": nn.Identity()},
            num_nodes=2,
            num_ops_per_node=1,
            num_predecessors=1,
            label="cell",
        )

    def forward(self, x):
        return self.cell([x])[:, :4]


# --- trainers ----------------------------------------------------------------------------------------------


def reward(output, target):
    return (output.argmax(-1) == target).float().mean().item()


TRAINERS = {
    "DARTS": (DartsTrainer, {}),
    "DARTS, 2nd order": (DartsTrainer, {"unrolled": True}),
    "ProxylessNAS": (ProxylessTrainer, {}),
    "ProxylessNAS, REINFORCE": (ProxylessTrainer, {"estimator": "reinforce"}),
    "ENAS": (EnasTrainer, {"reward_function": reward, "num_samples": 2, "ctrl_steps_aggregate": 2}),
    "single path": (SinglePathTrainer, {"num_evaluations": 3, "population": 2, "num_parents": 1}),
    "random": (RandomTrainer, {"num_samples": 3, "num_finalists": 1}),
}


def make(kind, trainer, **options):
    """Return a trainer of a small model with choices of a kind."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), KINDS[kind](), nn.Linear(4, 2))
    X = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))
    cls, its_own = TRAINERS[trainer]
    return cls(
        model, nn.CrossEntropyLoss(), None, optimizer=torch.optim.SGD(model.parameters(), 0.1), num_epochs=2,
        dataset=TensorDataset(X, (X.sum(1) > 0).long()), batch_size=3, progress=False, device="cpu",
        **its_own, **options,
    )  # fmt: skip


def refusal(kind, trainer):
    """Return what a trainer says of a kind that it refuses when it is made; None where it takes it."""
    try:
        make(kind, trainer)
    except ChoiceError as error:
        return str(error)
    return None


def table(outcomes):
    """Return the table of the docs: kind -> trainer -> whether it works."""
    rows = [["", *TRAINERS], ["---", *[":---:"] * len(TRAINERS)]]
    rows += [[kind, *("yes" if of_kind[name] else "no" for name in TRAINERS)] for kind, of_kind in outcomes.items()]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def read():
    """Return the table that the docs show."""
    return re.search(f"{BEGIN}(.*){END}", PAGE.read_text(), flags=re.DOTALL).group(1)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="make each trainer only, and do not run the contract suite"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.fsync = lambda _: None
    outcomes = {kind: {} for kind in KINDS}
    for kind in KINDS:
        for trainer in TRAINERS:
            refused = refusal(kind, trainer)
            if refused is None and not options.quick:
                check_trainer(partial(make, kind, trainer))
            print(f"{kind}, {trainer}: {refused or 'yes'}", file=sys.stderr, flush=True)
            outcomes[kind][trainer] = refused is None
    new = f"{BEGIN}{table(outcomes)}{END}"
    if PAGE.exists():
        PAGE.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: new, PAGE.read_text(), flags=re.DOTALL))
    print(new)


if __name__ == "__main__":
    main()
