"""ProxylessNAS on MobileNetV2-like blocks, then a training of what it found."""

import json
from argparse import ArgumentParser

import nni.retiarii.nn.pytorch as nn
import torch
from data import accuracy, digits
from nni.nas.pytorch.fixed import apply_fixed_architecture
from nni.retiarii.oneshot.pytorch import ProxylessTrainer


class MBConv(nn.Module):
    def __init__(self, C_in, C_out, kernel, stride, expand):
        super().__init__()
        C = C_in * expand
        self.net = nn.Sequential(
            nn.Conv2d(C_in, C, 1, bias=False),
            nn.BatchNorm2d(C),
            nn.ReLU6(),
            nn.Conv2d(C, C, kernel, stride, kernel // 2, groups=C, bias=False),
            nn.BatchNorm2d(C),
            nn.ReLU6(),
            nn.Conv2d(C, C_out, 1, bias=False),
            nn.BatchNorm2d(C_out),
        )

    def forward(self, x):
        return self.net(x)


class Zero(nn.Module):
    def forward(self, x):
        return x * 0.0


class Block(nn.Module):
    def __init__(self, C_in, C_out, stride):
        super().__init__()
        ops = [MBConv(C_in, C_out, k, stride, e) for k in (3, 5, 7) for e in (3, 6)]
        self.shortcut = stride == 1 and C_in == C_out
        if self.shortcut:
            ops.append(Zero())
        self.mobile_inverted_conv = nn.LayerChoice(ops)

    def forward(self, x):
        out = self.mobile_inverted_conv(x)
        return out + x if self.shortcut else out


class SearchMobileNet(nn.Module):
    def __init__(self, C=4):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, C, 3, padding=1, bias=False), nn.BatchNorm2d(C))
        self.blocks = nn.Sequential(Block(C, C, 1), Block(C, 2 * C, 2), Block(2 * C, 2 * C, 1))
        self.classifier = nn.Linear(2 * C, 10)

    def forward(self, x):
        return self.classifier(self.blocks(self.first(x)).mean((2, 3)))

    def get_parameters(self, keys, mode):
        for name, param in self.named_parameters():
            if any(key in name for key in keys) == (mode == "include"):
                yield param


class LabelSmoothingLoss(nn.Module):
    def __init__(self, smoothing=0.1):
        super().__init__()
        self.smoothing = smoothing

    def forward(self, pred, target):
        return nn.functional.cross_entropy(pred, target, label_smoothing=self.smoothing)


if __name__ == "__main__":
    parser = ArgumentParser("proxylessnas")
    parser.add_argument("--train-mode", default="search", choices=["search", "retrain"])
    parser.add_argument("--output", default="checkpoint.json")
    args = parser.parse_args()
    torch.manual_seed(0)
    model = SearchMobileNet()
    if args.train_mode == "search":
        groups = [
            {"params": [p for n, p in model.named_parameters() if p.dim() > 1], "weight_decay": 4e-5},
            {"params": [p for n, p in model.named_parameters() if p.dim() <= 1], "weight_decay": 0},
        ]
        optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9, nesterov=True)
        trainer = ProxylessTrainer(
            model,
            loss=LabelSmoothingLoss(),
            dataset=digits(),
            optimizer=optimizer,
            metrics=accuracy,
            num_epochs=2,
            warmup_epochs=1,
            batch_size=32,
            workers=0,
            log_frequency=10,
        )
        trainer.fit()
        print("Final architecture:", trainer.export())
        json.dump(trainer.export(), open(args.output, "w"))
    else:
        apply_fixed_architecture(model, args.output)
        print("retrained", model(digits(4).tensors[0]).shape)
