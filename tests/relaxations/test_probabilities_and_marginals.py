"""What `probabilities` are, held to the marginals of `log_prob` by enumeration."""

import pytest
import torch
from torch import nn

from supernet import InputChoice, LayerChoice, SearchSpace
from supernet.relaxations import Softmax


def made(choice):
    relaxation = Softmax(SearchSpace(nn.Sequential(choice))).double()
    with torch.no_grad():
        relaxation.logits["a"].copy_(torch.tensor([0.9, -0.4, 0.2, -1.1]))
    return relaxation


def marginals(relaxation):
    domain, total = relaxation.space["a"], torch.zeros(4, dtype=torch.float64)
    for architecture in relaxation.space.enumerate():
        total[list(domain.positions(architecture["a"]))] += relaxation.log_prob(architecture).exp().detach()
    return total


@pytest.mark.parametrize(
    "choice",
    [LayerChoice([nn.Identity() for _ in "abcd"], label="a"), *(InputChoice(4, n, label="a") for n in (1, None))],
)
def test_of_one_option_or_any_number_of_inputs_probabilities_are_those_of_log_prob(choice):
    relaxation = made(choice)
    torch.testing.assert_close(relaxation.probabilities()["a"].detach(), marginals(relaxation))


def test_of_two_inputs_probabilities_are_shares_by_softmax_which_are_no_marginals():
    relaxation = made(InputChoice(4, 2, label="a"))
    shares = relaxation.probabilities()["a"].detach()
    torch.testing.assert_close(shares, torch.softmax(relaxation.logits["a"].detach(), -1))
    assert not torch.allclose(shares, marginals(relaxation) / 2, atol=0.01)


def test_log_probs_that_were_first_asked_for_in_inference_mode_have_gradients_later():
    space = SearchSpace(nn.ModuleList([InputChoice(4, 2, label="some_that_no_other_test_has")]))
    relaxation = Softmax(space)
    with torch.inference_mode():
        relaxation.log_probs()
    relaxation.log_probs()["some_that_no_other_test_has"][0].backward()
    assert relaxation.logits["some_that_no_other_test_has"].grad is not None
