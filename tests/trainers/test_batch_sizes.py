"""Means are over samples, whatever holds the targets."""

from collections import UserDict
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from supernet import DartsTrainer, LayerChoice, evaluate
from supernet.data.batches import batch_size, split_batch
from supernet.errors import DataError


def rows(*counts, width=4):
    return [torch.zeros(count, width) for count in counts]


def images(count):
    return list(torch.zeros(count, 3, 8, 8))


def boxes(*counts):
    return [{"boxes": torch.zeros(n, 4), "labels": torch.zeros(n), "image_id": torch.tensor(1)} for n in counts]


@dataclass
class Targets:
    classes: torch.Tensor
    names: list[str]


CASES = {
    "classes": (torch.zeros(5), None, 5),
    "pixels": (torch.zeros(5, 8, 8), None, 5),
    "one number, of a sample that is a batch": (torch.tensor(1.0), torch.zeros(5, 2), 1),
    "one number of Python's": (1, torch.zeros(5, 2), 1),
    "nothing": (None, torch.zeros(5, 2), 5),
    "nothing anywhere": (None, None, 1),
    "several tasks": ((torch.zeros(5), torch.zeros(5, 2)), torch.zeros(5, 3), 5),
    "several tasks, several inputs": (rows(5, 5), tuple(rows(5, 5, 5)), 5),
    "mixup": ((torch.zeros(5), torch.zeros(5), 0.3), torch.zeros(5, 3), 5),
    "dict": ({"class": torch.zeros(5), "name": list("abcde"), "scale": 2.0}, None, 5),
    "other mapping": (UserDict({"class": torch.zeros(5)}), None, 5),
    "dataclass": (Targets(torch.zeros(5), list("abcde")), None, 5),
    "boxes of each image": (boxes(2, 7, 1), images(3), 3),
    "a first image without boxes": (boxes(0, 7, 1), images(3), 3),
    "no boxes at all": (boxes(0, 0), images(2), 2),
    "as many boxes in each image": (tuple(boxes(7, 7)), images(2), 2),
    "as many boxes as channels": (boxes(3, 3), images(2), 2),
    "boxes of one image": (boxes(7), images(1), 1),
    "boxes without dicts": (rows(2, 0, 1), images(3), 3),
    "as many boxes without dicts": (rows(7, 7), torch.zeros(2, 3, 8, 8), 2),
    "boxes of one image without dicts": (rows(7), images(1), 1),
    "all empty": (rows(0, 0), images(2), 2),
    "ragged lists": ([[1, 2], [3], []], torch.zeros(3, 2), 3),
    "numbers": ([1, 2, 3], None, 3),
    "texts": (["a", "b"], None, 2),
    "nested tensor": (torch.nested.nested_tensor(rows(2, 3, 4), layout=torch.jagged), None, 3),
    "sequences one after another": ((torch.zeros(11), torch.tensor([4, 7])), torch.zeros(2, 20, 3), 2),
    "nodes of one graph": (torch.zeros(9), {"x": torch.zeros(9, 4), "edges": torch.zeros(2, 30)}, 9),
    "a whole batch": ((images(3), boxes(1, 2, 0)), (images(3), boxes(1, 2, 0)), 3),
    "a whole batch with weights": (rows(5, 5, 5), rows(5, 5, 5), 5),
    "a whole dict of images and boxes": ({"image": torch.zeros(3, 3, 8, 8), "boxes": rows(2, 2, 2)}, None, 3),
}


@pytest.mark.parametrize("name", CASES)
def test_the_samples_of_a_batch_are_counted(name):
    target, X, expected = CASES[name]
    assert batch_size(target, X) == expected


class Detector(nn.Module):
    """Gives one number for each image of a list."""

    def __init__(self):
        super().__init__()
        self.op = LayerChoice([nn.Linear(4, 1), nn.Linear(4, 1, bias=False)], label="op")

    def forward(self, images):
        return self.op(torch.stack(images))


def as_lists(samples):
    return tuple(map(list, zip(*samples, strict=True)))


def image_loss(output, targets):
    return torch.stack([target["boxes"].sum() for target in targets]).mean() + 0 * output.sum()


def test_means_over_images_with_boxes_do_not_depend_on_how_many_boxes_each_has():
    """Five images in batches of two: the mean of the losses of all five, by hand."""
    counts = [0, 3, 5, 1, 4]
    samples = [(torch.ones(4), {"boxes": torch.full((n, 1), 1.0)}) for n in counts]
    loader = DataLoader(samples, 2, collate_fn=as_lists)
    network = Detector()
    network.op = network.op["0"]
    assert evaluate(network, image_loss, None, loader)["loss"] == pytest.approx(sum(counts) / 5)
    model = Detector()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    trainer = DartsTrainer(model, image_loss, None, optimizer, 1, loader, valid_dataset=loader)
    trainer.fit()
    assert trainer.history[0]["train_loss"] == pytest.approx(sum(counts) / 5)


def test_a_list_of_samples_is_no_batch():
    with pytest.raises(DataError, match=r"a list of 3 dicts, which is not \(X, y\); let collate_fn return"):
        split_batch(boxes(1, 2, 3))
