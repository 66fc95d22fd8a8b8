"""What `probabilities()` says is what `log_prob` says, over all architectures; also of independent weights."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from supernet import LayerChoice, SearchSpace
from supernet.relaxations import Softmax
from supernet.testing import check_relaxation

PAGE = (Path(__file__).parents[2] / "docs" / "custom_trainer.md").read_text()


class OtherProbabilities(Softmax):
    def probabilities(self):
        return {label: F.softmax(2 * a, -1) if d.is_fixed else a.sigmoid() for (label, a), d in self.with_domains()}

    def with_domains(self):
        return zip(self.logits.items(), self.space.values(), strict=True)


class OtherLogProb(Softmax):
    def log_prob(self, architecture):
        doubled = {label: 2 * alpha for label, alpha in self.logits.items()}
        relaxation = Softmax(self.space).double()
        relaxation.scores = lambda: doubled
        return Softmax.log_prob(relaxation, architecture)


@pytest.mark.parametrize("kind", [OtherProbabilities, OtherLogProb])
def test_probabilities_that_disagree_with_log_prob_are_refused_with_both(kind):
    with pytest.raises(
        AssertionError, match=r"are those of log_prob\(\), over all architectures; but those of 'net.0.op'"
    ):
        check_relaxation(kind)


class Fair(Softmax):
    """Independent weights, as in Fair DARTS (arXiv 1911.12126)."""

    def plan(self, progress):
        return {label: alpha.sigmoid() for label, alpha in self.logits.items()}


def test_scores_as_the_page_has_them_make_independent_weights_shares():
    (line,) = re.findall(r"`(return \{.*F\.logsigmoid.*\})`", PAGE)
    namespace = {"F": F}
    exec(f"def scores(self): {line}", namespace)
    kind = type("FairShares", (Fair,), {"scores": namespace["scores"]})
    check_relaxation(kind)
    op = LayerChoice([nn.Identity(), nn.ReLU(), nn.Tanh()], label="op")
    relaxation = kind(SearchSpace(nn.Sequential(op))).double()
    with torch.no_grad():
        relaxation.logits["op"].copy_(torch.tensor([-1.0, 0.0, 2.0]))
    weights = relaxation.plan(0.0)["op"]
    torch.testing.assert_close(relaxation.probabilities()["op"], weights / weights.sum())
