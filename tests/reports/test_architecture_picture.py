"""What the picture of an architecture shows: every decision, at any depth, in boxes that do not cover each other."""

import itertools

import pytest
from torch import nn

from supernet import InputChoice, LayerChoice, SearchSpace
from supernet.reports import plot_architecture
from supernet.reports.plots import LABEL_WIDTH

pytest.importorskip("matplotlib", reason="the extra plots is not installed")


def mixer(label):
    """A choice with choices inside its first candidate, three levels deep."""
    innermost = LayerChoice({"relu_with_a_long_name": nn.ReLU(), "mish": nn.Mish()}, label=f"{label}.inner.activation")
    inner = LayerChoice({"bottleneck_$e_6$": nn.Sequential(innermost), "plain": nn.Identity()}, label=f"{label}.inner")
    after = LayerChoice([nn.Identity(), nn.Tanh()], label=f"{label}.after")
    return LayerChoice({"inverted_bottleneck_k7": nn.Sequential(inner, after), "skip": nn.Identity()}, label=label)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = mixer("encoder.stages.0.blocks.0.token_mixer")
        self.second = mixer("encoder.stages.0.blocks.1.channel_mixer")
        self.skip = InputChoice(choose_from=["encoder.stages.0.features", "raw"], n_chosen=2, label="decoder.0.source")
        self.heads = nn.ModuleList(LayerChoice([nn.ReLU(), nn.Tanh()], label=f"heads.{i}") for i in range(3))

    def forward(self, x):
        first = self.first(x)
        x = self.skip({"encoder.stages.0.features": self.second(first), "raw": x})
        return sum(head(x) for head in self.heads)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """The boxes' texts and their places in inches, as drawn, and the picture's size."""
    patch = pytest.MonkeyPatch()
    figures = []
    patch.setattr("supernet.reports.plots._save", lambda figure, path: figures.append(figure))
    net = Net()
    space = SearchSpace(net)
    architecture = {label: [0, 1] if label == "decoder.0.source" else 0 for label in space}
    plot_architecture(net, architecture, tmp_path_factory.mktemp("picture") / "architecture")
    patch.undo()
    (figure,) = figures
    figure.draw_without_rendering()
    boxes = {
        text.get_text(): text.get_bbox_patch().get_window_extent() for text in figure.axes[0].texts if text.get_text()
    }
    return boxes, figure.bbox


def joined(text):
    """A box's text without the breaks and indents that make it narrow."""
    return "".join(line.strip() for line in text.splitlines()).replace(" ", "")


def test_boxes_lie_inside_the_picture_and_apart_from_each_other(texts):
    boxes, picture = texts
    assert len(boxes) == 1 + 2 + 1 + 3 + 1
    for box in boxes.values():
        assert picture.x0 <= box.x0 < box.x1 <= picture.x1
        assert picture.y0 <= box.y0 < box.y1 <= picture.y1
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes.values(), 2))


def test_every_decision_is_shown_at_any_depth(texts):
    (box,) = [text for text in texts[0] if joined(text).startswith("encoder.stages.0.blocks.0.token_mixer")]
    label = "encoder.stages.0.blocks.0.token_mixer"
    inner = f"{label}.inner:bottleneck_$e_6${label}.inner.activation:relu_with_a_long_name"
    assert joined(box) == f"{label}inverted_bottleneck_k7{inner}{label}.after:0"


def test_no_line_is_much_longer_than_a_label_may_be(texts):
    assert all(len(line.strip()) <= LABEL_WIDTH for text in texts[0] for line in text.splitlines())


@pytest.mark.slow
def test_a_picture_of_a_thousand_choices_in_a_row_is_drawn(tmp_path):
    net = nn.Sequential(*(LayerChoice([nn.ReLU(), nn.Tanh()], label=f"choice_number_{i}") for i in range(1000)))
    plot_architecture(net, dict.fromkeys(SearchSpace(net), 0), tmp_path / "architecture")
    assert (tmp_path / "architecture.png").exists()
