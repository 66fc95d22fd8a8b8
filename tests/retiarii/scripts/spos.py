"""Single path one-shot on ShuffleNet-like blocks."""

import json
from argparse import ArgumentParser

import nni.retiarii.nn.pytorch as nn
import torch
from data import accuracy, digits
from nni.retiarii import fixed_arch
from nni.retiarii.nn.pytorch import LayerChoice
from nni.retiarii.oneshot.pytorch import SinglePathTrainer


def depthwise(C, kernel):
    return nn.Sequential(nn.Conv2d(C, C, kernel, padding=kernel // 2, groups=C, bias=False), nn.BatchNorm2d(C))


def pointwise(C):
    return nn.Sequential(nn.Conv2d(C, C, 1, bias=False), nn.BatchNorm2d(C), nn.ReLU())


class ShuffleBlock(nn.Module):
    def __init__(self, C, kernels):
        super().__init__()
        self.main = nn.Sequential(*(layer for k in kernels for layer in (depthwise(C, k), pointwise(C))))

    def forward(self, x):
        left, right = x.reshape(x.size(0), 2, -1, *x.shape[2:]).transpose(1, 2).flatten(1, 2).chunk(2, 1)
        return torch.cat([left, self.main(right)], 1)


class ShuffleNetV2OneShot(nn.Module):
    def __init__(self, C=8, blocks=4):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, C, 3, padding=1), nn.BatchNorm2d(C))
        self.features = nn.Sequential(
            *(
                LayerChoice(
                    [
                        ShuffleBlock(C // 2, [3]),
                        ShuffleBlock(C // 2, [5]),
                        ShuffleBlock(C // 2, [7]),
                        ShuffleBlock(C // 2, [3, 3, 3]),
                    ],
                    label=f"LayerChoice_{i}",
                )
                for i in range(blocks)
            )
        )
        self.classifier = nn.Linear(C, 10)

    def forward(self, x):
        return self.classifier(self.features(self.first(x)).mean((2, 3)))


if __name__ == "__main__":
    parser = ArgumentParser("spos")
    parser.add_argument("--output", default="checkpoint.json")
    args = parser.parse_args()
    torch.manual_seed(0)
    model = ShuffleNetV2OneShot()
    trainer = SinglePathTrainer(
        model,
        nn.CrossEntropyLoss(label_smoothing=0.1),
        accuracy,
        torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=4e-5),
        2,
        digits(160),
        digits(64, start=160),
        None,
        32,
        0,
        None,
        3,
        num_evaluations=12,
        population=4,
    )
    trainer.fit()
    architecture = trainer.export()
    print("Final architecture:", architecture)
    json.dump(architecture, open(args.output, "w"))
    with fixed_arch(args.output):
        model = ShuffleNetV2OneShot()
    print("retrained", model(digits(4).tensors[0]).shape)
