"""A one-shot trainer of your own, whole, in one file: DARTS of first order (arXiv 1806.09055).

It inherits `BaseOneShotTrainer`, which asks for `fit` and `export` and nothing else. How a choice runs is
decided here, by modules of our own that are put in the choices' places.

    python examples/custom_trainer.py

searches a small network on scikit-learn's handwritten digits, freezes what it found, and trains that network
from new weights.
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from supernet import (
    BaseOneShotTrainer,
    InputChoice,
    LayerChoice,
    accuracy,
    evaluate,
    freeze,
    replace_input_choice,
    replace_layer_choice,
    train,
)


class DartsLayerChoice(nn.Module):
    """Runs every candidate and mixes the outputs by softmax(alpha)."""

    def __init__(self, layer_choice):
        super().__init__()
        self.name = layer_choice.key
        self.op_choices = nn.ModuleDict(layer_choice.named_children())
        self.alpha = nn.Parameter(torch.randn(len(self.op_choices)) * 1e-3)

    def forward(self, *args, **kwargs):
        """Return the mixture of what the candidates return."""
        outputs = torch.stack([op(*args, **kwargs) for op in self.op_choices.values()])
        weights = F.softmax(self.alpha, -1).reshape(-1, *[1] * (outputs.dim() - 1))
        return (weights * outputs).sum(0)

    def best(self):
        """Return the name of the candidate with the largest alpha."""
        return list(self.op_choices)[self.alpha.argmax()]


class DartsInputChoice(nn.Module):
    """Mixes all inputs by softmax(alpha)."""

    def __init__(self, input_choice):
        super().__init__()
        self.name = input_choice.key
        self.n_chosen = input_choice.n_chosen or 1
        self.alpha = nn.Parameter(torch.randn(input_choice.n_candidates) * 1e-3)

    def forward(self, inputs):
        """Return the mixture of the inputs."""
        inputs = torch.stack(list(inputs))
        weights = F.softmax(self.alpha, -1).reshape(-1, *[1] * (inputs.dim() - 1))
        return (weights * inputs).sum(0)

    def best(self):
        """Return the positions of the inputs with the largest alphas, ascending."""
        return self.alpha.topk(self.n_chosen).indices.sort().values.tolist()


class DartsTrainer(BaseOneShotTrainer):
    """Trains the alphas on one half of the data and the weights on the other, a batch of each in turn."""

    def __init__(self, model, loss, metrics, dataset, num_epochs=10, batch_size=64):
        self.model = model
        self.loss = loss
        self.metrics = metrics
        self.num_epochs = num_epochs

        self.nas_modules = []
        replace_layer_choice(self.model, DartsLayerChoice, self.nas_modules)
        replace_input_choice(self.model, DartsInputChoice, self.nas_modules)

        alphas = [module.alpha for _, module in self.nas_modules]
        weights = [p for p in self.model.parameters() if not any(p is alpha for alpha in alphas)]
        self.model_optimizer = torch.optim.SGD(weights, lr=0.05, momentum=0.9, weight_decay=3e-4)
        self.architecture_optimizer = torch.optim.Adam(alphas, lr=0.01, betas=(0.5, 0.999), weight_decay=1e-3)

        halves = random_split(dataset, [0.5, 0.5], generator=torch.Generator().manual_seed(0))
        self.train_loader, self.valid_loader = (
            DataLoader(half, batch_size, shuffle=True, drop_last=True) for half in halves
        )

    def fit(self):
        """Train and search."""
        self.model.train()
        for epoch in range(self.num_epochs):
            for (trn_X, trn_y), (val_X, val_y) in zip(self.train_loader, self.valid_loader, strict=False):
                self.train_architecture(val_X, val_y)
                metrics = self.train_model_weight(trn_X, trn_y)
            print(f"epoch {epoch + 1}/{self.num_epochs}  accuracy on the last batch {metrics:.3f}")

    def train_architecture(self, val_X, val_y):
        """Take a step of the alphas on a batch of the validation half."""
        self.architecture_optimizer.zero_grad()
        self.loss(self.model(val_X), val_y).backward()
        self.architecture_optimizer.step()

    def train_model_weight(self, trn_X, trn_y):
        """Take a step of the weights on a batch of the training half, and return its metrics."""
        self.model_optimizer.zero_grad()
        logits = self.model(trn_X)
        self.loss(logits, trn_y).backward()
        self.model_optimizer.step()
        return self.metrics(logits, trn_y)

    @torch.no_grad()
    def export(self):
        """Return the architecture: label -> the best of each choice."""
        result = {}
        for name, module in self.nas_modules:
            if name not in result:
                result[name] = select_best_of_module(module)
        return result


def select_best_of_module(module):
    """Return the decision that a module has come to prefer."""
    return module.best()


class Net(nn.Module):
    """A small convolutional network with two choices of layers and one of inputs."""

    def __init__(self):
        super().__init__()
        self.stem = LayerChoice({"conv3": nn.Conv2d(1, 16, 3, padding=1), "conv5": nn.Conv2d(1, 16, 5, padding=2)})
        self.body = LayerChoice({"conv": nn.Conv2d(16, 16, 3, padding=1), "pool": nn.MaxPool2d(3, 1, 1)})
        self.skip = InputChoice(n_candidates=2, n_chosen=1)
        self.head = nn.Sequential(
            nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10)
        )

    def forward(self, x):
        """Return logits (N, 10) of images (N, 1, 8, 8)."""
        x = F.relu(self.stem(x))
        return self.head(self.skip([x, self.body(x)]))


def main(num_epochs=10):
    """Search on the digits, then train what was found from new weights; return (architecture, test metrics)."""
    torch.manual_seed(0)
    digits = load_digits()
    images, labels = torch.tensor(digits.images[:, None] / 16, dtype=torch.float32), torch.tensor(digits.target)
    dataset, test_set = random_split(
        TensorDataset(images, labels), [1200, 597], generator=torch.Generator().manual_seed(0)
    )

    trainer = DartsTrainer(Net(), nn.CrossEntropyLoss(), accuracy, dataset, num_epochs)
    trainer.fit()
    architecture = trainer.export()
    print("found:", architecture)

    network = freeze(Net(), architecture)  # new weights; freeze(trainer.model, architecture) has the trained ones
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, weight_decay=3e-4)
    train(network, nn.CrossEntropyLoss(), accuracy, optimizer, num_epochs, dataset)
    result = evaluate(network, nn.CrossEntropyLoss(), accuracy, test_set)
    print(f"trained from new weights: test accuracy {result['accuracy']:.3f}")
    return architecture, result


if __name__ == "__main__":
    main()
