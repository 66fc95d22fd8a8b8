"""Two choices of convolutions and a skip that may be None, by random search or DARTS."""

import json
from argparse import ArgumentParser

import nni.retiarii.nn.pytorch as nn
import torch
import torch.nn.functional as F
from data import accuracy, digits
from nni.retiarii import fixed_arch, model_wrapper
from nni.retiarii.experiment.pytorch import RetiariiExeConfig, RetiariiExperiment
from nni.retiarii.oneshot.pytorch import DartsTrainer, RandomTrainer


@model_wrapper
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.LayerChoice([nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(1, 6, 5, padding=2)])
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.LayerChoice([nn.Conv2d(6, 16, 3, padding=1), nn.Conv2d(6, 16, 5, padding=2)])
        self.conv3 = nn.Conv2d(16, 16, 1)
        self.skipconnect = nn.InputChoice(n_candidates=1)
        self.bn = nn.BatchNorm2d(16)
        self.gap = nn.AdaptiveAvgPool2d(4)
        self.fc = nn.Linear(16 * 4 * 4, 10)

    def forward(self, x):
        bs = x.size(0)
        x = self.pool(F.relu(self.conv1(x)))
        x0 = F.relu(self.conv2(x))
        x1 = F.relu(self.conv3(x0))
        x0 = self.skipconnect([x0])
        if x0 is not None:
            x1 = x1 + x0
        x = self.gap(self.bn(x1))
        return self.fc(x.view(bs, -1))


if __name__ == "__main__":
    parser = ArgumentParser("naive")
    parser.add_argument("--random", action="store_true")
    parser.add_argument("--output", default="checkpoint.json")
    args = parser.parse_args()
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    common = {"loss": nn.CrossEntropyLoss(), "metrics": accuracy, "optimizer": optimizer, "num_epochs": 2}
    if args.random:
        trainer = RandomTrainer(
            model, **common, dataset_train=digits(160), dataset_valid=digits(64, 160), workers=0, num_samples=8
        )
    else:
        trainer = DartsTrainer(model, **common, dataset=digits(), batch_size=16, workers=0)
    experiment = RetiariiExperiment(model, trainer)
    config = RetiariiExeConfig("local")
    config.experiment_name = "naive"
    experiment.run(config, 8081)
    (exported,) = [experiment.export_top_models(top_k=1)]
    print("Final architecture:", exported)
    json.dump(exported, open(args.output, "w"))
    with fixed_arch(args.output):
        model = Net()
    print("retrained", model(digits(4).tensors[0]).shape)
