"""A DARTS search on cells with shared labels, then a training of what it found, with an auxiliary head."""

import json
from argparse import ArgumentParser
from collections import OrderedDict

import nni.retiarii.nn.pytorch as nn
import torch
import torch.nn.functional as F
from data import accuracy, digits
from nni.retiarii import fixed_arch
from nni.retiarii.oneshot.pytorch import DartsTrainer


class DropPath(nn.Module):
    def __init__(self, p=0.1):
        super().__init__()
        self.p = p

    def forward(self, x):
        if self.training and self.p > 0:
            keep = 1.0 - self.p
            x = x / keep * torch.zeros(x.size(0), 1, 1, 1).bernoulli_(keep)
        return x


class SepConv(nn.Module):
    def __init__(self, C, kernel, stride, dilation=1):
        super().__init__()
        padding = dilation * (kernel - 1) // 2
        self.net = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(C, C, kernel, stride, padding, dilation, groups=C, bias=False),
            nn.Conv2d(C, C, 1, bias=False),
            nn.BatchNorm2d(C),
        )

    def forward(self, x):
        return self.net(x)


class Node(nn.Module):
    def __init__(self, node_id, num_prev, C, reduce_inputs, kind):
        super().__init__()
        self.ops = nn.ModuleList()
        for i in range(num_prev):
            stride = 2 if i < reduce_inputs else 1
            skip = nn.Identity() if stride == 1 else SepConv(C, 1, stride)
            candidates = [
                ("maxpool", nn.MaxPool2d(3, stride, 1)),
                ("avgpool", nn.AvgPool2d(3, stride, 1, count_include_pad=False)),
                ("skipconnect", skip),
                ("sepconv3x3", SepConv(C, 3, stride)),
                ("sepconv5x5", SepConv(C, 5, stride)),
                ("dilconv3x3", SepConv(C, 3, stride, 2)),
                ("dilconv5x5", SepConv(C, 5, stride, 2)),
            ]
            self.ops.append(nn.LayerChoice(OrderedDict(candidates), label=f"{kind}_n{node_id}_p{i}"))
        self.drop_path = DropPath()
        self.input_switch = nn.InputChoice(n_candidates=num_prev, n_chosen=2, label=f"{kind}_n{node_id}_switch")

    def forward(self, prev):
        assert len(self.ops) == len(prev)
        out = [self.drop_path(op(node)) for op, node in zip(self.ops, prev)]
        return self.input_switch(out)


class Cell(nn.Module):
    def __init__(self, C, nodes, reduce):
        super().__init__()
        kind = "reduce" if reduce else "normal"
        self.nodes = nn.ModuleList(Node(i, i + 2, C, 2 if reduce else 0, kind) for i in range(nodes))
        self.out = nn.Conv2d(nodes * C, C, 1)

    def forward(self, pprev, prev):
        tensors = [pprev, prev]
        for node in self.nodes:
            tensors.append(node(tensors))
        return self.out(torch.cat(tensors[2:], dim=1))


class CNN(nn.Module):
    def __init__(self, C=4, nodes=2, auxiliary=False):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, C, 3, 1, 1, bias=False), nn.BatchNorm2d(C))
        self.cells = nn.ModuleList([Cell(C, nodes, False), Cell(C, nodes, True), Cell(C, nodes, False)])
        self.pool = nn.AvgPool2d(2)
        self.linear = nn.Linear(C, 10)
        self.auxiliary = nn.Linear(C, 10) if auxiliary else None

    def forward(self, x):
        s0 = s1 = self.stem(x)
        aux = None
        for i, cell in enumerate(self.cells):
            s0, s1 = s1, cell(s0, s1)
            if s0.shape != s1.shape:
                s0 = self.pool(s0)
            if i == 1 and self.auxiliary is not None and self.training:
                aux = self.auxiliary(s1.mean((2, 3)))
        logits = self.linear(s1.mean((2, 3)))
        return logits if aux is None else (logits, aux)


if __name__ == "__main__":
    parser = ArgumentParser("darts")
    parser.add_argument("--unrolled", default=False, action="store_true")
    parser.add_argument("--output", default="checkpoint.json")
    args = parser.parse_args()
    torch.manual_seed(0)
    model = CNN()
    criterion = nn.CrossEntropyLoss()
    optim = torch.optim.SGD(model.parameters(), 0.025, momentum=0.9, weight_decay=3.0e-4)
    lr_scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optim, 1, eta_min=0.001)
    trainer = DartsTrainer(
        model=model,
        loss=criterion,
        metrics=lambda output, target: accuracy(output, target),
        optimizer=optim,
        num_epochs=1,
        dataset=digits(128),
        batch_size=16,
        workers=0,
        log_frequency=2,
        unrolled=args.unrolled,
    )
    trainer.fit()
    final_architecture = trainer.export()
    print("Final architecture:", final_architecture)
    json.dump(final_architecture, open(args.output, "w"))

    with fixed_arch(args.output):
        model = CNN(auxiliary=True)
    optim = torch.optim.SGD(model.parameters(), 0.025)
    X, y = digits(32).tensors
    logits, aux = model(X)
    loss = F.cross_entropy(logits, y) + 0.4 * F.cross_entropy(aux, y)
    loss.backward()
    optim.step()
    print("retrained", sum(p.numel() for p in model.parameters()))
