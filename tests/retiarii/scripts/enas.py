"""ENAS: the macro space of layers with skip connections, and the micro space of cells with masks."""

import json
from argparse import ArgumentParser

import torch
import torch.nn as nn
from data import accuracy, digits
from nni.nas.pytorch import mutables
from nni.nas.pytorch.fixed import apply_fixed_architecture
from nni.retiarii import model_wrapper
from nni.retiarii.oneshot.pytorch.enas import EnasTrainer
from nni.retiarii.oneshot.pytorch.random import PathSamplingInputChoice


def conv(C_in, C_out, kernel):
    return nn.Sequential(nn.Conv2d(C_in, C_out, kernel, padding=kernel // 2), nn.BatchNorm2d(C_out), nn.ReLU())


class SepConv(nn.Module):
    def __init__(self, C, kernel):
        super().__init__()
        self.depthwise = nn.Conv2d(C, C, kernel, padding=kernel // 2, groups=C, bias=False)
        self.pointwise = nn.Conv2d(C, C, 1, bias=False)

    def forward(self, x):
        return self.pointwise(self.depthwise(x))


class ENASLayer(mutables.MutableScope):
    def __init__(self, key, prev_labels, C):
        super().__init__(key)
        branches = [
            conv(C, C, 3),
            SepConv(C, 3),
            conv(C, C, 5),
            SepConv(C, 5),
            nn.AvgPool2d(3, 1, 1),
            nn.MaxPool2d(3, 1, 1),
        ]
        self.mutable = mutables.LayerChoice([nn.Sequential(b, nn.BatchNorm2d(C, affine=False)) for b in branches])
        if prev_labels:
            self.skipconnect = mutables.InputChoice(choose_from=prev_labels, n_chosen=None)
        else:
            self.skipconnect = None
        self.batch_norm = nn.BatchNorm2d(C, affine=False)

    def forward(self, prev_list):
        out = self.mutable(prev_list[-1])
        if self.skipconnect is not None:
            connection = self.skipconnect(prev_list[:-1])
            if connection is not None:
                out += connection
        return self.batch_norm(out)


@model_wrapper
class GeneralNetwork(nn.Module):
    def __init__(self, num_layers=5, C=4):
        super().__init__()
        self.stem = conv(1, C, 3)
        self.layers = nn.ModuleList()
        labels = []
        for layer in range(num_layers):
            labels.append(f"layer_{layer}")
            self.layers.append(ENASLayer(labels[-1], labels[:-1], C))
        self.dense = nn.Linear(C, 10)

    def forward(self, x):
        layers = [self.stem(x)]
        for layer in self.layers:
            layers.append(layer(layers))
        return self.dense(layers[-1].mean((2, 3)))


class MicroCell(nn.Module):
    def __init__(self, name, prev_names, C):
        super().__init__()
        self.input_choice = mutables.InputChoice(
            choose_from=prev_names, n_chosen=1, return_mask=True, key=f"{name}_input"
        )
        ops = [conv(C, C, 3), conv(C, C, 5), nn.AvgPool2d(3, 1, 1), nn.MaxPool2d(3, 1, 1), nn.Identity()]
        self.op_choice = mutables.LayerChoice(ops, key=f"{name}_op")

    def forward(self, prev_layers):
        if isinstance(self.input_choice, PathSamplingInputChoice):
            chosen_input, mask = self.input_choice(prev_layers), self.input_choice.mask
        else:
            chosen_input = self.input_choice(prev_layers)
            mask = torch.tensor([i in self.input_choice.chosen for i in range(len(prev_layers))])
        return self.op_choice(chosen_input), mask


class MicroNode(mutables.MutableScope):
    def __init__(self, name, prev_names, C):
        super().__init__(name)
        self.cell_x = MicroCell(name + "_x", prev_names, C)
        self.cell_y = MicroCell(name + "_y", prev_names, C)

    def forward(self, prev_layers):
        out_x, mask_x = self.cell_x(prev_layers)
        out_y, mask_y = self.cell_y(prev_layers)
        return out_x + out_y, mask_x | mask_y


class Calibration(nn.Module):
    """The reducing projection: a slice of a 5-D weight for each node that nobody uses."""

    def __init__(self, count, C):
        super().__init__()
        self.bn = nn.BatchNorm2d(C)
        self.w = nn.Parameter(torch.randn(count, C, C, 1, 1) * 0.1)

    def forward(self, nodes, unused):
        w = torch.cat([self.w[i] for i in unused], 1)
        return self.bn(nn.functional.conv2d(nn.functional.relu(torch.cat([nodes[i] for i in unused], 1)), w))


@model_wrapper
class MicroNetwork(nn.Module):
    def __init__(self, num_nodes=3, C=4):
        super().__init__()
        self.stem = conv(1, C, 3)
        names = ["prev", "now"]
        self.nodes = nn.ModuleList()
        for i in range(num_nodes):
            self.nodes.append(MicroNode(f"normal_node_{i}", list(names), C))
            names.append(f"normal_node_{i}")
        self.calibration = Calibration(num_nodes + 2, C)
        self.dense = nn.Linear(C, 10)

    def forward(self, x):
        tensors = [self.stem(x)] * 2
        used = torch.zeros(len(self.nodes) + 2, dtype=torch.bool)
        for node in self.nodes:
            out, mask = node(tensors)
            used[: mask.size(0)] |= mask
            tensors.append(out)
        unused = torch.nonzero(~used).view(-1).tolist()
        return self.dense(self.calibration(tensors, unused).mean((2, 3)))


if __name__ == "__main__":
    parser = ArgumentParser("enas")
    parser.add_argument("--search-for", choices=["macro", "micro"], default="macro")
    parser.add_argument("--output", default="checkpoint.json")
    args = parser.parse_args()
    torch.manual_seed(0)
    network = GeneralNetwork if args.search_for == "macro" else MicroNetwork
    model = network()
    trainer = EnasTrainer(
        model,
        loss=nn.CrossEntropyLoss(),
        metrics=accuracy,
        reward_function=lambda output, target: accuracy(output, target)["acc1"],
        optimizer=torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=1.0e-4),
        num_epochs=2,
        dataset=digits(),
        batch_size=32,
        workers=0,
        log_frequency=2,
        ctrl_steps_aggregate=2,
        ctrl_kwargs={"tanh_constant": 1.1},
    )
    trainer.fit()
    exported = trainer.export()
    print("Final architecture:", exported)
    json.dump(exported, open(args.output, "w"))
    model = network()
    apply_fixed_architecture(model, args.output)
    print("retrained", model.eval()(digits(4).tensors[0]).shape)
