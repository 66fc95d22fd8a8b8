"""Frozen models of the package transformers as directories that `from_pretrained` reads.

A frozen network is of its model's own class, with other sizes. Where all of these are numbers of the class's config,
the numbers are found, and the directory is one like any other. Which number of the config a size depends on is found by
building the model, without memory for weights, with each number changed in turn. Where layers differ, and the class
reads `per_layer_config`, each has its own. What no config can say goes into a file of sizes, and a loader of ten lines
is written beside it.
"""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors.torch import save_file
from torch import nn

from supernet.deploy.example import Example, relative_difference, tensors_in
from supernet.deploy.programs import quiet
from supernet.errors import ExportError, FileFormatError, MissingExtraError
from supernet.execution.state import preserve_random_numbers

__all__: list[str] = []

SIZES, LOADER, WEIGHTS = "sizes.json", "load.py", "model.safetensors"

# Loads what no config of transformers can say. It is also what reads such a directory here.
LOADER_TEXT = '''"""Loads the network in this directory, by `load()`; needs torch and transformers."""

import json
import pathlib

from safetensors.torch import load_file
from torch import nn
from transformers import {name}


def load(directory=pathlib.Path(__file__).parent):
    network = {name}({name}.config_class.from_pretrained(directory))
    for path, numbers in json.loads((directory / "sizes.json").read_text()).items():
        vars(network.get_submodule(path)).update(numbers)  # such as the heads of an attention
    for name, weight in load_file(directory / "model.safetensors").items():
        path, _, last = name.rpartition(".")
        module = network.get_submodule(path)
        is_parameter = last in module._parameters
        setattr(module, last, nn.Parameter(weight) if is_parameter else weight)
    network.tie_weights()
    return network.eval()
'''

Key: TypeAlias = tuple[str, ...]  # a kind of number, and where it stands
Numbers: TypeAlias = dict[Key, int]


def write_pretrained(network: nn.Module, example: Example, path: Path) -> None:
    """Write a model of transformers as a directory.

    Raises:
        ExportError: It is none; or neither its config nor the loader can say what it is.
    """
    transformers = _transformers()
    name = type(network).__name__
    if not isinstance(network, transformers.PreTrainedModel) or getattr(transformers, name, None) is not type(network):
        raise ExportError(f"{name} is no model of the package transformers; export it in another format")
    path.mkdir()
    with _quiet():
        base = _Config(network)
        for config in base.that_say(network):
            made = _made(network, config)
            if made is not None and _is_same(made, network, example):
                made.save_pretrained(path)
                return
        # The sizes that differ, of what has as many layers.
        uniform = type(network)(copy.deepcopy(base.config))
        uniform.config.architectures = [name]
        uniform.config.save_pretrained(path)
        weights = dict(network.named_parameters())  # each once, where some are tied
        known = {id(p) for p in network.parameters()}
        buffers = {name: t for name, t in network.state_dict(keep_vars=True).items() if id(t) not in known}
        save_file({name: t.detach().contiguous() for name, t in {**weights, **buffers}.items()}, path / WEIGHTS)
    (path / SIZES).write_text(json.dumps(_sizes_apart(uniform, network), indent=1) + "\n")
    (path / LOADER).write_text(LOADER_TEXT.format(name=name))


def read_pretrained(path: Path, card: Mapping[str, Any], model: nn.Module | None) -> nn.Module:
    """Return the network of a directory, by `from_pretrained`, or as the loader beside it does; that is not run.

    Raises:
        FileFormatError: It is none of a model of transformers.
    """
    transformers = _transformers()
    try:
        (name,) = json.loads((path / "config.json").read_text())["architectures"]
        cls = getattr(transformers, name)
        if not issubclass(cls, transformers.PreTrainedModel):
            raise TypeError(f"{name} is no model of transformers")
        with _quiet():
            if SIZES in (card.get("files") or {entry.name for entry in path.iterdir()}):
                namespace: dict[str, Any] = {"__file__": str(path / LOADER)}
                exec(compile(LOADER_TEXT.format(name=cls.__name__), LOADER, "exec"), namespace)
                network: nn.Module = namespace["load"](path)
            else:
                network = cls.from_pretrained(path, local_files_only=True, use_safetensors=True)
    except Exception as error:  # whatever wrong content leads to
        raise FileFormatError(f"{path} holds no model of transformers: {type(error).__name__}: {error}") from error
    return network


def _config_of(network: Any) -> Any:
    return copy.deepcopy(network.config)


def _made(network: nn.Module, config: Any) -> Any:
    """Return a new model of a config, with the weights of the network; None where they do not fit."""
    with preserve_random_numbers(torch.device("cpu")):
        made = type(network)(copy.deepcopy(config)).to(next(network.parameters()).dtype).eval()
    try:
        made.load_state_dict(network.state_dict())
    except RuntimeError:
        return None
    return made


def _is_same(made: nn.Module, network: nn.Module, example: Example) -> bool:
    args, kwargs = example.of_size(example.batch_size)
    with torch.no_grad():
        ours, theirs = (tensors_in(one(*args, **kwargs)) for one in (network, made))
    return len(ours) == len(theirs) and all(
        a.shape == b.shape and relative_difference(a, b) <= 1e-4 for a, b in zip(ours, theirs, strict=True)
    )


class _Config:
    """The config of a network that was narrowed, from that of the whole model.

    Attributes:
        config: The whole model's, with as many layers as the network has.
    """

    def __init__(self, network: nn.Module) -> None:
        self._cls, self.config = type(network), _config_of(network)
        if getattr(self.config, "n_inner", 0) is None:  # GPT-2's, which then follows the width
            self.config.n_inner = 4 * self.config.n_embd
        self._fields = [
            name
            for name, value in self.config.to_dict().items()
            if type(value) is int and value > 0 and not name.endswith("_id") and hasattr(self.config, name)
        ]
        self._target = dict(_numbers(network))
        for field, votes in self._votes().items():
            if votes.of_length and set(votes.of_length.values()) != {getattr(self.config, field)}:
                (length, *_) = votes.of_length.values()
                self.config = _with(self.config, {field: length})

    def that_say(self, network: nn.Module) -> Iterator[Any]:
        """Yield configs that may be the network's, the likeliest first."""
        candidates: dict[str, list[int]] = {}
        per_layer: dict[int, dict[str, int]] = {}
        for field, votes in self._votes().items():
            found = [value for value, _ in Counter((votes.of_shapes or votes.of_attributes).values()).most_common()]
            now = getattr(self.config, field)
            if not found:  # a number of layers, which the config has by now
                continue
            if votes.of_shapes and len(found) > 1:
                layers: dict[int, set[int]] = {}
                for key, value in votes.of_shapes.items():
                    layers.setdefault(_layer_of(key), set()).add(value)
                if -1 in layers or any(len(values) > 1 for values in layers.values()):
                    return  # sizes that are one number of the config are several here
                for layer, (value,) in layers.items():
                    per_layer.setdefault(layer, {})[field] = value
                found = [now]
            # Attributes that are read nowhere stay as they were: what has changed is likelier.
            candidates[field] = found if votes.of_shapes else sorted(found, key=lambda value: value == now)
        for values in product(*candidates.values()):
            changes: dict[str, Any] = dict(zip(candidates, values, strict=True))
            if per_layer:
                changes["per_layer_config"] = {str(layer): numbers for layer, numbers in per_layer.items()}
            try:
                config = _with(self.config, changes)
                shapes = _shapes(self._build(config))
            except Exception:  # numbers that a config does not take together
                continue
            if shapes == _shapes(network):
                yield config

    def _votes(self) -> dict[str, _Votes]:
        """Return field -> what each size that depends on it alone says of its number."""
        base = dict(_numbers(self._build(self.config)))
        changed: dict[str, tuple[int, Numbers]] = {}
        for field in self._fields:
            now = getattr(self.config, field)
            for other in (2 * now, now // 2, now + 1):
                try:
                    built = dict(_numbers(self._build(_with(self.config, {field: other}))))
                except Exception:  # a number that the config does not take
                    continue
                differing = {key: built[key] for key in base.keys() & built.keys() if built[key] != base[key]}
                if differing:
                    changed[field] = other, differing
                break
        found: dict[str, _Votes] = {}
        waiting, settled = dict(changed), False
        while waiting and not settled:
            settled = True
            for field, (other, numbers) in list(waiting.items()):
                others = set().union(*(waiting[name][1] for name in waiting if name != field))
                votes = _Votes()
                for key in (numbers.keys() & self._target.keys()) - others:
                    now = getattr(self.config, field)
                    step = (numbers[key] - base[key]) / (other - now)
                    votes.add(key, now + (self._target[key] - base[key]) / step)
                if votes:
                    found[field] = votes
                    if votes.all() == {getattr(self.config, field)}:  # as it was, so it explains no difference
                        del waiting[field]
                        settled = False
        return found

    def _build(self, config: Any) -> nn.Module:
        with preserve_random_numbers(torch.device("cpu")), torch.device("meta"):
            built: nn.Module = self._cls(copy.deepcopy(config))
        return built


class _Votes:
    """What sizes say of a number of the config: shapes of weights, lengths of lists of layers, numbers of modules."""

    def __init__(self) -> None:
        self.of_shapes: dict[Key, int] = {}
        self.of_length: dict[Key, int] = {}
        self.of_attributes: dict[Key, int] = {}

    def add(self, key: Key, value: float) -> None:
        """Note what a size says."""
        whole = int(value) if value == int(value) and value >= 1 else 0
        {"shape": self.of_shapes, "length": self.of_length, "attribute": self.of_attributes}[key[0]][key] = whole

    def all(self) -> set[int]:
        """Return all numbers that are said."""
        return {*self.of_shapes.values(), *self.of_length.values(), *self.of_attributes.values()}

    def __bool__(self) -> bool:
        return bool(self.all())


def _with(config: Any, changes: Mapping[str, Any]) -> Any:
    """Return a config with other numbers; lists that have an entry a layer become as long as there are layers."""
    values = config.to_dict()
    depth = config.num_hidden_layers
    new = changes.get(config.attribute_map.get("num_hidden_layers", "num_hidden_layers"), depth)
    for name, value in values.items():
        if isinstance(value, list) and len(value) == depth and name == "layer_types":
            values[name] = (value * 2)[:new]
    return type(config)(**{**values, **changes})


def _numbers(network: nn.Module) -> Iterator[tuple[Key, int]]:
    for name, shape in _shapes(network).items():
        for dimension, size in enumerate(shape):
            yield ("shape", name, str(dimension)), size
    for path, module in network.named_modules():
        if isinstance(module, nn.ModuleList):
            yield ("length", path), len(module)
        for name, value in vars(module).items():
            if type(value) is int and not name.startswith("_"):
                yield ("attribute", path, name), value


def _shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in (*network.named_parameters(), *network.named_buffers())}


def _layer_of(key: Key) -> int:
    """Return the number of the layer in which a size stands, -1 where it is in none."""
    return next((int(part) for part in key[1].split(".") if part.isdigit()), -1)


def _sizes_apart(uniform: nn.Module, network: nn.Module) -> dict[str, dict[str, Any]]:
    """Return path of a module -> name and value of each number that is another in the network."""
    modules = dict(uniform.named_modules())
    found: dict[str, dict[str, Any]] = {}
    for path, module in network.named_modules():
        for name, value in vars(module).items():
            if not isinstance(value, int | float | tuple) or name == "training" or name.startswith("_"):
                continue
            if path in modules and vars(modules[path]).get(name) != value:
                found.setdefault(path, {})[name] = value
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from showing bars of progress, and both it and torch from warning."""
    logging = _transformers().utils.logging
    shows, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    try:
        logging.disable_progress_bar()
        logging.set_verbosity_error()
        with quiet():
            yield
    finally:
        logging.set_verbosity(level)
        if shows:
            logging.enable_progress_bar()


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise MissingExtraError("models of transformers need it: pip install 'supernet[transformers]'") from error
    return transformers
