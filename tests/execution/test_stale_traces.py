"""What a candidate's Python follows may change after the candidate was read for the fast way."""

import copy
import sys
import types

import pytest
import torch
from torch import nn
from ways import take_way

from supernet import LayerChoice, replace_layer_choice
from supernet.execution import LayerSlot, Plan
from supernet.execution.fast.tracing import trace_of

C = 3
THIS = sys.modules[__name__]
STAGE = 0
SCALES = {"now": 1.0}
SETTINGS = types.SimpleNamespace(stage=0)
CONFIG = types.ModuleType("config_of_a_user")
CONFIG.STAGE = 0


def helper(x):
    return x * 2 if STAGE else x


def scaled(x):
    return 2 * x


class Own(nn.Module):
    """A candidate whose forward is the test's."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(C, C, 1), nn.BatchNorm2d(C), nn.Dropout(0.0)

    def tail(self, x):
        return self.norm(self.conv(torch.relu(x)))


class OfBuffer(Own):
    def __init__(self):
        super().__init__()
        self.register_buffer("stage", torch.tensor(0))

    def forward(self, x):
        return self.tail(2 * x if self.stage else x)


class OfNumberInBuffer(OfBuffer):
    def forward(self, x):
        return self.tail(x * (1 + float(self.stage)))


class OfNamedBuffer(OfBuffer):
    def forward(self, x):
        return self.tail(2 * x if dict(self.named_buffers())["stage"] else x)


class OfParameter(Own):
    def __init__(self):
        super().__init__()
        self.stage = nn.Parameter(torch.tensor(0.0), requires_grad=False)

    def forward(self, x):
        return self.tail(2 * x if self._parameters["stage"] > 0 else x)


class OfCount(Own):
    def forward(self, x):
        return self.tail(2 * x if self.norm.num_batches_tracked > 5 else x)


class OfAttribute(Own):
    stages = (0,)

    def __init__(self):
        super().__init__()
        self.steps = [0]

    def forward(self, x):
        return self.tail(2 * x if self.steps[-1] else x)


class OfLateAttribute(Own):
    def forward(self, x):
        return self.tail(2 * x if getattr(self, "late", False) else x)


class OfClass(Own):
    stage = 0

    def forward(self, x):
        return self.tail(2 * x if self.stage else x)


class OfProperty(OfClass):
    @property
    def scale(self):
        return 2 if type(self).stage else 1

    def forward(self, x):
        return self.tail(x * self.scale)


class OfMethod(OfClass):
    def pick(self, x):
        return 2 * x if OfClass.stage else x

    def forward(self, x):
        return self.tail(self.pick(x))


class OfGlobal(Own):
    def forward(self, x):
        return self.tail(2 * x if STAGE else x)


class OfHelper(Own):
    def forward(self, x):
        return self.tail(helper(x))


class OfContainer(Own):
    def forward(self, x):
        return self.tail(x * SCALES["now"])


class OfObject(Own):
    def forward(self, x):
        return self.tail(2 * x if SETTINGS.stage else x)


class OfPythonModule(Own):
    def forward(self, x):
        return self.tail(2 * x if CONFIG.STAGE else x)


class OfPatched(Own):
    def forward(self, x):
        return self.tail(scaled(x))


class OfChild(Own):
    def forward(self, x):
        return self.tail(2 * x if self.norm.momentum == 0.5 else x)


class OfChildByName(Own):
    def forward(self, x):
        return self.tail(2 * x if getattr(self.drop, "p") > 0 else x) if self.training else self.tail(x)  # noqa: B009


class InTorchsOwn(Own):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(C, C, 3, padding=1, groups=C)
        self.body = nn.Sequential(self.norm, nn.ReLU(), self.conv, nn.BatchNorm2d(C))

    def forward(self, x):
        return self.body(x)


class Grown(Own):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.ReLU(), self.conv, self.norm)
        self.end = nn.Sequential()

    def forward(self, x):
        return self.end(self.body(x))


def of_closure():
    stage = 0

    class OfClosure(Own):
        def forward(self, x):
            return self.tail(2 * x if stage else x)

        def change(self):
            nonlocal stage
            stage = 1

    return OfClosure()


def setting(thing, name, value):
    return lambda module, monkeypatch: monkeypatch.setattr(thing, name, value)


CHANGES = {
    "a buffer": (OfBuffer, lambda m, _: m.stage.fill_(1)),
    "a number in a buffer": (OfNumberInBuffer, lambda m, _: m.stage.fill_(1)),
    "a buffer by its name": (OfNamedBuffer, lambda m, _: m.stage.fill_(1)),
    "a parameter": (OfParameter, lambda m, _: m.stage.data.fill_(1)),
    "a layer's count of batches": (OfCount, lambda m, _: m.norm.num_batches_tracked.fill_(9)),
    "an attribute": (OfAttribute, lambda m, _: m.steps.append(1)),
    "an attribute that was not there": (OfLateAttribute, lambda m, _: setattr(m, "late", True)),
    "a class": (OfClass, setting(OfClass, "stage", 1)),
    "a class by a property": (OfProperty, setting(OfClass, "stage", 1)),
    "a class by a method": (OfMethod, setting(OfClass, "stage", 1)),
    "a global name": (OfGlobal, setting(THIS, "STAGE", 1)),
    "a global name by a function": (OfHelper, setting(THIS, "STAGE", 1)),
    "what a global dict holds": (OfContainer, lambda _, monkeypatch: monkeypatch.setitem(SCALES, "now", 3.0)),
    "a global object": (OfObject, setting(SETTINGS, "stage", 1)),
    "a Python module": (OfPythonModule, setting(CONFIG, "STAGE", 1)),
    "a function that was replaced": (OfPatched, setting(THIS, "scaled", lambda x: 3 * x)),
    "a forward that was replaced": (OfPatched, setting(OfPatched, "forward", lambda self, x: self.tail(3 * x))),
    "a layer's attribute": (OfChild, lambda m, _: setattr(m.norm, "momentum", 0.5)),
    "a layer's attribute by its name": (OfChildByName, lambda m, _: setattr(m.drop, "p", 0.0 + 1e-9)),
    "a variable around it": (of_closure, lambda m, _: m.change()),
    "a BatchNorm without momentum": (InTorchsOwn, lambda m, _: setattr(m.norm, "momentum", None)),
    "a convolution's padding mode": (InTorchsOwn, lambda m, _: setattr(m.conv, "padding_mode", "reflect")),
    "a layer that was added": (Grown, lambda m, _: m.end.append(nn.Tanh())),
    "a layer that was added behind others": (Grown, lambda m, _: m.body.append(nn.Tanh())),
}


def passed(model, plan, fast):
    take_way(model, fast)
    state = {name: b.clone() for name, b in model.named_buffers()}
    x = torch.randn(4, C, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    output = model(x)
    gradients = torch.autograd.grad(output.sin().sum(), [x, *(p for p in model.parameters() if p.requires_grad)])
    moved = {name: b.clone() for name, b in model.named_buffers()}
    for name, b in model.named_buffers():
        b.copy_(state[name])
    return output.detach(), gradients, moved


@pytest.mark.parametrize("what", CHANGES)
def test_the_fast_way_follows(what, monkeypatch):
    make, change = CHANGES[what]
    torch.manual_seed(0)
    model = nn.Sequential(LayerChoice({"own": make(), "skip": nn.Identity()}, label="op")).double()
    plan = Plan(op=torch.tensor([0.3, 0.7], dtype=torch.float64))
    replace_layer_choice(model, lambda choice: LayerSlot(choice, plan))
    before = passed(model, plan, fast=True)
    torch.testing.assert_close(before, passed(model, plan, fast=False))
    change(model[0].candidates["own"], monkeypatch)
    torch.testing.assert_close(passed(model, plan, fast=True), passed(model, plan, fast=False))


class PartlyWithoutGradients(Own):
    def forward(self, x):
        with torch.no_grad():
            gate = torch.sigmoid(x)
        return self.tail(x * gate)


class WhollyWithoutGradients(Own):
    @torch.no_grad()
    def forward(self, x):
        return self.tail(x)


class OfGradientMode(Own):
    def forward(self, x):
        return self.tail(x if torch.is_grad_enabled() else 2 * x)


class InBfloat16(Own):
    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return self.tail(x).to(x.dtype)


@pytest.mark.parametrize("make", [PartlyWithoutGradients, WhollyWithoutGradients, OfGradientMode, InBfloat16])
def test_the_fast_way_computes_under_what_the_candidate_sets(make):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(C, C, 1), LayerChoice({"own": make(), "skip": nn.Identity()}, label="op"))
    plan = Plan(op=torch.tensor([0.3, 0.7]))
    replace_layer_choice(model, lambda choice: LayerSlot(choice, plan))
    x = torch.randn(4, C, 5, 5)
    found = []
    state = copy.deepcopy(model.state_dict())
    for fast in (True, False):
        take_way(model, fast)
        model.load_state_dict(state)
        output = model.train()(x)
        used = torch.autograd.grad(output.sum(), list(model.parameters()), allow_unused=True)
        with torch.no_grad():
            found.append((output, used, model.eval()(x)))
    torch.testing.assert_close(found[0], found[1])


def test_what_nobody_changes_is_still_read():
    for make in (
        OfAttribute,
        OfClass,
        OfProperty,
        OfMethod,
        OfGlobal,
        OfHelper,
        OfContainer,
        OfPythonModule,
        OfPatched,
    ):
        assert not trace_of(make(), {}).runs_as_it_is, make
    assert "its code reads SETTINGS, a SimpleNamespace, which may change" in trace_of(OfObject(), {}).text
