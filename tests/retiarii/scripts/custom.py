"""A trainer of one's own, as the page 'Customize One-shot Trainer' describes it."""

import json
from argparse import ArgumentParser

import nni.retiarii.nn.pytorch as nn
import torch
import torch.nn.functional as F
from data import accuracy, digits
from naive import Net
from nni.retiarii import fixed_arch
from nni.retiarii.oneshot import BaseOneShotTrainer
from nni.retiarii.oneshot.pytorch import replace_input_choice, replace_layer_choice
from nni.retiarii.oneshot.pytorch.utils import AverageMeterGroup, to_device


class DartsLayerChoice(nn.Module):
    def __init__(self, layer_choice):
        super().__init__()
        self.name = layer_choice.key
        self.op_choices = nn.ModuleDict(layer_choice.named_children())
        self.alpha = nn.Parameter(torch.randn(len(self.op_choices)) * 1e-3)

    def forward(self, *args, **kwargs):
        op_results = torch.stack([op(*args, **kwargs) for op in self.op_choices.values()])
        alpha_shape = [-1] + [1] * (len(op_results.size()) - 1)
        return torch.sum(op_results * F.softmax(self.alpha, -1).view(*alpha_shape), 0)

    def export(self):
        return list(self.op_choices)[int(torch.argmax(self.alpha))]


class DartsInputChoice(nn.Module):
    def __init__(self, input_choice):
        super().__init__()
        self.name = input_choice.key
        self.alpha = nn.Parameter(torch.randn(input_choice.n_candidates) * 1e-3)

    def forward(self, inputs):
        inputs = torch.stack(inputs)
        return torch.sum(inputs * F.softmax(self.alpha, -1).view(-1, *[1] * (inputs.dim() - 1)), 0)

    def export(self):
        return [int(torch.argmax(self.alpha))]


class MyDartsTrainer(BaseOneShotTrainer):
    def __init__(self, model, loss, metrics, optimizer, dataset):
        self.model, self.loss, self.metrics, self.num_epochs = model, loss, metrics, 2
        self.nas_modules = []
        replace_layer_choice(self.model, DartsLayerChoice, self.nas_modules)
        replace_input_choice(self.model, DartsInputChoice, self.nas_modules)
        self.model_optim = optimizer
        self.ctrl_optim = torch.optim.Adam([m.alpha for _, m in self.nas_modules], 3e-4, betas=(0.5, 0.999))
        half = len(dataset) // 2
        first, second = torch.utils.data.random_split(dataset, [half, len(dataset) - half])
        self.train_loader = torch.utils.data.DataLoader(first, batch_size=16, shuffle=True)
        self.valid_loader = torch.utils.data.DataLoader(second, batch_size=16, shuffle=True)
        self.meters = AverageMeterGroup()

    def fit(self):
        for _ in range(self.num_epochs):
            for (trn_X, trn_y), (val_X, val_y) in zip(self.train_loader, self.valid_loader):
                self.train_architecture(*to_device((val_X, val_y), "cpu"))
                self.train_model_weight(trn_X, trn_y)

    def train_architecture(self, val_X, val_y):
        self.ctrl_optim.zero_grad()
        self.loss(self.model(val_X), val_y).backward()
        self.ctrl_optim.step()

    def train_model_weight(self, trn_X, trn_y):
        self.model_optim.zero_grad()
        logits = self.model(trn_X)
        loss = self.loss(logits, trn_y)
        loss.backward()
        self.model_optim.step()
        self.meters.update({**self.metrics(logits, trn_y), "loss": loss.item()})

    @torch.no_grad()
    def export(self):
        result = {}
        for name, module in self.nas_modules:
            if name not in result:
                result[name] = select_best_of_module(module)
        return result


def select_best_of_module(module):
    return module.export()


if __name__ == "__main__":
    parser = ArgumentParser("custom")
    parser.add_argument("--output", default="checkpoint.json")
    args = parser.parse_args()
    torch.manual_seed(0)
    model = Net()
    trainer = MyDartsTrainer(
        model, nn.CrossEntropyLoss(), accuracy, torch.optim.SGD(model.parameters(), 0.05), digits(160)
    )
    trainer.fit()
    print(trainer.meters.summary(), trainer.meters["loss"].avg)
    print("Final architecture:", trainer.export())
    json.dump(trainer.export(), open(args.output, "w"))
    with fixed_arch(args.output):
        model = Net()
    print("retrained", model(digits(4).tensors[0]).shape)
