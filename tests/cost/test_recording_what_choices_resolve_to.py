"""What choices resolve to is told apart, though it is made anew each time."""

import weakref

from torch import nn

from supernet import Repeat
from supernet.cost import Parameters


def test_no_list_of_blocks_takes_the_memory_of_another_while_a_network_is_looked_at(monkeypatch):
    """For modules are known by where they stand in memory: the second would be taken for the first, and not counted."""
    model = nn.Sequential(*(Repeat(nn.Linear(4, 4), (1, 3), label=f"depth{i}") for i in range(4)))
    resolve, made, gone = Repeat.resolve, [], []

    def noted(self, decision):
        if self.label == "depth0":
            made.clear()
        gone.extend(blocks for blocks in made if blocks() is None)
        blocks = resolve(self, decision)
        made.append(weakref.ref(blocks))
        return blocks

    monkeypatch.setattr(Repeat, "resolve", noted)
    assert Parameters(model).of({f"depth{i}": 2 for i in range(4)}) == 4 * 2 * 20
    assert made and not gone
