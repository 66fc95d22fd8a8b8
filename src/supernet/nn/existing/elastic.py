"""Making the layers of a model elastic that somebody else wrote."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from supernet.errors import ChoiceError
from supernet.nn import elastic as elastic_layers
from supernet.nn.choice import Choice
from supernet.nn.domain import is_int
from supernet.nn.existing.depth import make_depth_elastic
from supernet.nn.existing.following import Keeping, follow
from supernet.nn.existing.groups import Coupling, Places, coupling_of, names
from supernet.nn.existing.layers import LayerKind, kind_of_layer
from supernet.nn.existing.naming import matching
from supernet.nn.existing.running import as_evaluated, decided, is_close, runner
from supernet.nn.existing.tracing import tensors_in, trace
from supernet.nn.existing.undo import is_made_elastic, remember_plain, take_back, transplant
from supernet.nn.value import ValueChoice

__all__ = ["elastic"]

logger = logging.getLogger("supernet")

Requests = Mapping[str | type[nn.Module], Mapping[str, Any]]

_OF_ONE_HEAD = re.compile(r"(?<!all_)(head_dim|head_size|head_width|dim_head|d_head|d_k|d_kv|d_v|kv_channels)$")
_OF_COUNT = re.compile("^n_|num_|heads$|groups$|layers$|depth$")
_HEADS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "nhead", "heads")


def elastic(
    model: nn.Module,
    choices: Requests | None = None,
    *,
    ratios: Sequence[float] | None = None,
    example: Any,
    exclude: Sequence[str] = (),
) -> nn.Module:
    """Make layers of a model elastic, in place, and all that must follow them.

    What must follow is found by running the model once: inputs of the next layers, norms, partners in sums, depthwise
    and grouped convolutions, tied weights, heads of attention. The widest network is the model as it was, with its
    weights; narrower ones have the first channels of each layer (see `sort_channels`). Inputs keep their width, and so
    do outputs unless a layer that gives one is named. `restore(model, original=True)` takes it back.

    Args:
        model: The model. It must run on the example; choices between layers come after: see `choose`.
        choices: Path, pattern of paths (`*` stands for anything) or class -> name of a number -> candidates, the
            model's own number among them: `out_features`, `out_channels` (or what the layer calls it), `depth` of an
            `nn.Sequential` or `nn.ModuleList`, `num_heads` of an attention. A `ValueChoice` may stand for candidates:
            where it matches several layers, they have one decision.
        ratios: Parts of each width that are candidates, rounded to whole channels or heads, 1 among them: all widths of
            the network become elastic. Why others stay is logged (at level INFO, by the logger "supernet").
        example: A batch: a tensor, a tuple of arguments, or a dict of named ones.
        exclude: Paths or patterns of layers that keep their width, where `ratios` are given.

    Returns:
        The same model. Each choice is labelled by the path of the layer that gives the width, and its name there.

    Raises:
        ChoiceError: Nothing matches; layers that meet have different candidates, or what they meet must keep its
            width; candidates are no widths of that layer; or the model does not run where it is narrower.
            After any of these the model is as it was.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> model = elastic(model, {"0": {"out_features": [4, 8]}}, example=torch.ones(1, 4))
    >>> freeze(model, {"0.out_features": 4})
    Sequential(
      (0): Linear(in_features=4, out_features=4, bias=True)
      (1): ReLU()
      (2): Linear(in_features=4, out_features=2, bias=True)
    )
    """
    if (choices is None) == (ratios is None):
        raise ChoiceError("elastic takes either choices, for layers by name, or ratios, for all widths of the network")
    for path, module in model.named_modules():
        if isinstance(module, Choice) or is_made_elastic(module):
            raise ChoiceError(
                f"{path!r} depends on a choice already; name all layers in one call of elastic, and call it before "
                "choose, or take back what was done by restore(model, original=True)"
            )
    run = runner(model, example)
    with as_evaluated(model):
        before = list(tensors_in(run()))
        coupling = coupling_of(trace(model, run, example))
    plan = _Plan(model, coupling)
    if choices is not None:
        for selector, numbers in choices.items():
            plan.request(selector, numbers)
    else:
        plan.request_all(ratios or (), exclude)
    changed: list[nn.Module] = []
    try:
        plan.apply(changed)
        with as_evaluated(model):
            _check(model, plan, run, before)
    except BaseException:
        take_back(changed)
        raise
    return model


class _Plan:
    """The choices that are made for a model's groups and depths."""

    def __init__(self, model: nn.Module, coupling: Coupling) -> None:
        self.model, self.coupling = model, coupling
        self.modules = dict(model.named_modules())
        self.widths: dict[int, ValueChoice] = {}  # by group
        self.named: dict[int, tuple[str, list[int]]] = {}  # the layer whose candidates a group has, and these
        self.whole: dict[int, int] = {}  # how the choices count the whole of a group, where not as its first layer does
        self.depths: dict[str, ValueChoice] = {}  # by path

    # --- what is asked for ---------------------------------------------------------------------------------------

    def request(self, selector: str | type[nn.Module], numbers: Mapping[str, Any]) -> None:
        """Take candidates for the layers that a pattern or class selects."""
        if not isinstance(numbers, Mapping) or not numbers:
            raise ChoiceError(f"{_shown(selector)}: expected a dict name of a number -> candidates, not {numbers!r}")
        for path in matching(self.model, selector):
            for name, candidates in numbers.items():
                self._request_one(path, name, candidates)

    def request_all(self, ratios: Sequence[float], exclude: Sequence[str]) -> None:
        """Take the same parts of all widths as candidates."""
        if not ratios or any(not 0 < ratio <= 1 for ratio in ratios) or 1 not in ratios:
            raise ChoiceError(f"ratios are parts of each width, above 0, and 1 among them, not {list(ratios)!r}")
        if len(set(ratios)) != len(ratios):
            raise ChoiceError(f"ratios occur twice: {list(ratios)!r}")
        excluded = {path for pattern in exclude for path in matching(self.model, pattern)}
        for g, group in enumerate(self.coupling.groups):
            is_excluded = any(_is_at_or_in(width.path, excluded) for width in group.sources)
            if is_excluded:
                continue
            if group.fixed or group.is_output:
                logger.info("elastic: %s", self._why_fixed(g))
                continue
            whole = group.sources[0].length
            per_unit = self._per_unit(g)
            units = dict.fromkeys(max(1, round(group.num_units * ratio)) for ratio in sorted(ratios))
            if per_unit is not None and len(units) > 1:
                name = self._name_of_width(group.path)
                self.widths[g] = ValueChoice([n * per_unit for n in units], label=_label(group.path, name))
                assert self.widths[g].candidates[-1] == whole
        if not self.widths:
            raise ChoiceError(
                "no width of this model can be elastic: "
                + "; ".join(map(self._why_fixed, range(len(self.coupling.groups))))
            )

    def _request_one(self, path: str, name: str, candidates: Any) -> None:
        module = self.modules[path]
        if name == "depth":
            self._request_depth(path, module, candidates)
            return
        width = self.coupling.layers.get((path, "out"))
        kind = kind_of_layer(module)
        if width is not None and kind is not None and kind.attributes.get(name) == "out":
            g = self._group_at(path, width)
            self._put(g, path, name, candidates, len(width.group))
            return
        if name in _HEADS or "head" in name:
            g, whole = self._heads_in(path, module, name)
            self._put(g, path, name, candidates, whole)
            return
        possible = [a for a, role in kind.attributes.items() if role == "out"] if kind else []
        if kind is not None and kind.is_source and width is None:
            raise ChoiceError(f"{path!r} does not run on the example, so nothing is known of what follows it")
        if isinstance(module, nn.Sequential | nn.ModuleList):
            possible.append("depth")
        raise ChoiceError(
            f"{path!r}, a {type(module).__name__}, has no number {name!r} that can be elastic; "
            + (f"it has: {', '.join(possible)}" if possible else "name a layer that gives a width, or a list of blocks")
        )

    def _group_at(self, path: str, places: Places) -> int:
        (g,) = places.groups  # all channels that one layer gives are of one group
        return g

    def _put(self, g: int, path: str, name: str, candidates: Any, whole: int) -> None:
        """Let a group have candidates, that are counted as a layer counts them that has `whole`."""
        group = self.coupling.groups[g]
        if group.fixed:
            raise ChoiceError(f"{name} of {path!r} cannot be elastic: {self._why_fixed(g)}")
        label = _label(path, name)
        choice = candidates if isinstance(candidates, ValueChoice) else ValueChoice(candidates, label=label)
        _check_candidates(choice.candidates, whole, path, name)
        for value in choice.candidates:
            if value * group.num_units % whole:
                raise ChoiceError(
                    f"{name} of {path!r} cannot be {value}: its {whole} go together in {group.num_units} units of "
                    f"{whole // group.num_units} (heads, or groups of channels), of which a part cannot be taken"
                )
        units = [value * group.num_units // whole for value in choice.candidates]
        if g in self.widths:
            other_path, other_units = self.named[g]
            if units != other_units or (isinstance(candidates, ValueChoice) and choice is not self.widths[g]):
                raise ChoiceError(self._conflict(g, path, choice.candidates, other_path))
            return
        self.named[g] = path, units
        self.widths[g] = choice
        self.whole[g] = whole

    def _conflict(self, g: int, path: str, values: Sequence[int], other: str) -> str:
        widths = {width.path: width for width in self.coupling.groups[g].sources}
        where = ""
        if path in widths and other in widths:
            where = self.coupling.why(widths[other], widths[path])
        return (
            f"{other!r} and {path!r} have one width, for they meet{f' at {where}' if where else ''}, but their "
            f"candidates are {self.widths[g].candidates} and {list(values)}; give both the same, or name one of them"
        )

    def _why_fixed(self, g: int) -> str:
        group = self.coupling.groups[g]
        why = group.fixed or ("the network's output has it" if group.is_output else "it is one unit")
        return f"the width of {names(width.path for width in group.sources)} stays, for {why}"

    def _request_depth(self, path: str, module: nn.Module, candidates: Any) -> None:
        if type(module) not in (nn.Sequential, nn.ModuleList):
            raise ChoiceError(
                f"depth is of an nn.Sequential or nn.ModuleList of blocks, but {path!r} is a {type(module).__name__}"
            )
        label = _label(path, "depth")
        choice = candidates if isinstance(candidates, ValueChoice) else ValueChoice(candidates, label=label)
        _check_candidates(choice.candidates, len(module._modules), path, "depth")
        before = self.depths.setdefault(path, choice)
        if before.candidates != choice.candidates or before.label != choice.label:
            raise ChoiceError(f"depth of {path!r} is asked for twice: {before} and {choice}; give it once")

    def _heads_in(self, path: str, module: nn.Module, name: str) -> tuple[int, int]:
        """Return the group of an attention's heads, and how many of them the module counts."""
        inside = [
            g
            for g, group in enumerate(self.coupling.groups)
            if all(_is_at_or_in(width.path, {path}) for width in group.sources) and not group.is_output
        ]
        counted = {
            value
            for attribute, value in vars(module).items()
            if is_int(value) and (attribute == name or attribute in _HEADS)
        }
        config = getattr(module, "config", None)
        counted |= {getattr(config, a) for a in (name, *_HEADS) if is_int(getattr(config, a, None))}
        heads = [g for g in inside if self.coupling.groups[g].num_units < self.coupling.groups[g].sources[0].length]
        if len(heads) != 1:
            listed = names(self.coupling.groups[g].path for g in heads)
            raise ChoiceError(
                f"{path!r}, a {type(module).__name__}, has {len(heads) or 'no'} widths that are split into heads"
                f"{f' ({listed})' if heads else ''}; name the attention itself, or the width of its projection"
            )
        num_units = self.coupling.groups[heads[0]].num_units
        whole = next((value for value in sorted(counted) if value % num_units == 0), num_units)
        return heads[0], whole

    def _per_unit(self, g: int) -> int | None:
        group = self.coupling.groups[g]
        whole = group.sources[0].length
        return None if whole % group.num_units else whole // group.num_units

    def _name_of_width(self, path: str) -> str:
        kind = kind_of_layer(self.modules[path])
        assert kind is not None
        return next(name for name, role in kind.attributes.items() if role == "out")

    # --- what is done --------------------------------------------------------------------------------------------

    def apply(self, changed: list[nn.Module]) -> None:
        """Make the modules elastic; note those that have been changed."""
        self.units = {
            g: (choice, self.whole.get(g, self.coupling.groups[g].sources[0].length), self.coupling.groups[g].num_units)
            for g, choice in self.widths.items()
        }
        axes: dict[str, list[Places]] = {}
        for path, places in self.coupling.axes:
            axes.setdefault(path, []).append(places)
        done: set[nn.Module] = set()
        for path, module in self.modules.items():
            if module in done:
                continue
            done.add(module)
            kind = kind_of_layer(module)
            roles = {role: Keeping(self.coupling.layers[path, role], self.units) for role in ("in", "out", "features")
                     if (path, role) in self.coupling.layers}  # fmt: skip
            roles = {role: keeping for role, keeping in roles.items() if keeping.is_chosen}
            if kind is not None and roles:
                changed.append(module)
                self._make_layer(module, kind, roles)
            elif kind is None:
                takes, numbers = self._of_module(path, module, axes.get(path, []))
                if takes or numbers:
                    changed.append(module)
                    self._make_module(path, module, takes, numbers)
            if path in self.depths:
                changed.append(module)
                remember_plain(module)
                make_depth_elastic(module, self.depths[path])
        for module in list(done):
            # Its fast path reads the weights of the layers inside, past their forwards; this is how it is turned off.
            if type(module) is nn.TransformerEncoderLayer and not set(changed).isdisjoint(module.modules()):
                changed.append(module)
                remember_plain(module, "activation_relu_or_gelu")
                follow(module, {}, {}, None, is_linear=False)
                module.activation_relu_or_gelu = 0

    def _make_layer(self, module: nn.Module, kind: LayerKind, roles: Mapping[str, Keeping]) -> None:
        remember_plain(module)
        if all(keeping.is_first_always() for keeping in roles.values()):
            counts = {role: keeping.count for role, keeping in roles.items()}
            built = _elastic_layer(module, kind, counts)
            if built is not None:
                transplant(module, built)
                return
        takes: dict[str, dict[int, Keeping]] = {}
        for name, dims in kind.tensors.items():
            if module._parameters.get(name) is not None or module._buffers.get(name) is not None:
                of_tensor = {dim: roles[role] for dim, role in dims.items() if role in roles}
                if of_tensor:
                    takes[name] = of_tensor
        numbers = {name: roles[role] for name, role in kind.attributes.items() if role in roles}
        for name, role in kind.attributes.items():
            if role == "groups" and getattr(module, name) > 1:
                numbers[name] = _groups_kept(module, name, roles)
        features = roles.get("features")
        given = None if features is None else (kind.dim, features)
        follow(module, takes, numbers, given, is_linear=kind.is_source)

    def _of_module(
        self, path: str, module: nn.Module, axes: Sequence[Places]
    ) -> tuple[dict[str, dict[int, Keeping]], dict[str, Keeping]]:
        """Return which of a module's own tensors and numbers must follow."""
        takes: dict[str, dict[int, Keeping]] = {}
        for name in [*module._parameters, *module._buffers]:
            dims = self.coupling.tensors.get(f"{path}.{name}" if path else name, {})
            of_tensor = {dim: keeping for dim, places in dims.items()
                         if (keeping := Keeping(places, self.units)).is_chosen}  # fmt: skip
            if of_tensor:
                takes[name] = of_tensor
        numbers: dict[str, Keeping] = {}
        if "weight" in takes and len(getattr(module, "normalized_shape", ())) == 1:  # a norm with a forward of its own
            numbers["normalized_shape"] = takes["weight"][0]
        read = _names_read(type(module))
        for places in axes:
            keeping = Keeping(places, self.units)
            if not keeping.is_chosen:
                continue
            length = len(places.group)
            written = [
                name
                for name, value in vars(module).items()
                if is_int(value) and value == length and (name in read or "head" in name)
            ]
            # Four heads of four features: the one number follows, the other does not, for heads are kept whole.
            groups = [self.coupling.groups[g] for g in keeping.choices]
            has_heads = any(group.sources[0].length != group.num_units for group in groups)
            for name in written:
                if not (_OF_ONE_HEAD if has_heads else _OF_COUNT).search(name):
                    numbers.setdefault(name, keeping)
        return takes, numbers

    def _make_module(
        self, path: str, module: nn.Module, takes: dict[str, dict[int, Keeping]], numbers: dict[str, Keeping]
    ) -> None:
        if "sizes" in module._modules or hasattr(type(module), "sizes") or "sizes" in vars(module):
            raise ChoiceError(
                f"{path!r}, a {type(module).__name__}, cannot be made elastic, for it has an attribute 'sizes', which "
                "is the name of an elastic module's numbers; rename it"
            )
        remember_plain(module)
        is_leaf = not any(True for _ in module.children()) and len(takes) == 1
        along = next((keeping for dims in takes.values() for keeping in dims.values()), None) if is_leaf else None
        follow(module, takes, numbers, None if along is None else (-1, along), is_linear=False)


def _groups_kept(module: nn.Module, name: str, roles: Mapping[str, Keeping]) -> Keeping:
    """Return how many groups of channels are kept: the unit of one is that of its first channel."""
    keeping = roles.get("in", roles.get("features", next(iter(roles.values()))))
    places, groups = keeping.places, getattr(module, name)
    step = len(places.group) // groups
    return Keeping(Places(places.group[::step], places.unit[::step]), keeping.choices)


def _elastic_layer(module: nn.Module, kind: LayerKind, counts: Mapping[str, Any]) -> nn.Module | None:
    """Return the elastic layer of ours with these widths, on no device; None where there is none of that kind."""
    ours = getattr(elastic_layers, type(module).__name__, None)
    if ours is None or type(module) is not getattr(nn, type(module).__name__, None):
        return None
    arguments = {name: getattr(module, name) for name in _ARGUMENTS.get(type(module), ())}
    for name, role in kind.attributes.items():
        arguments[name] = counts[role] if role in counts else getattr(module, name)
        if role == "groups" and getattr(module, name) > 1:
            whole = counts.get("in", counts.get("features", next(iter(counts.values()))))
            of_group = (module.in_channels if "in" in counts else module.num_channels) // getattr(module, name)
            arguments[name] = whole if of_group == 1 else whole // of_group
    if "bias" in module._parameters and not isinstance(module, nn.modules.batchnorm._BatchNorm | nn.GroupNorm):
        arguments["bias"] = module.bias is not None
    return ours(**arguments, device="meta")


_OF_CONV = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
_OF_BATCH_NORM = ("eps", "momentum", "affine", "track_running_stats")
_ARGUMENTS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Linear: (),
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _OF_CONV),
    nn.ConvTranspose2d: (*_OF_CONV, "output_padding"),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), _OF_BATCH_NORM),
    nn.LayerNorm: ("eps", "elementwise_affine"),
    nn.RMSNorm: ("eps", "elementwise_affine"),
    nn.GroupNorm: ("eps", "affine"),
    nn.Embedding: ("num_embeddings", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse"),
}


# --- checks ---------------------------------------------------------------------------------------------------------


def _check(model: nn.Module, plan: _Plan, run: Callable[[], Any], before: Sequence[Tensor]) -> None:
    """Raise unless the widest network is what the model was, and narrower ones run."""
    choices = {str(choice.label): choice for choice in (*plan.widths.values(), *plan.depths.values())}
    widest = {label: max(choice.candidates) for label, choice in choices.items()}
    narrowest = {label: min(choice.candidates) for label, choice in choices.items()}
    with decided(model, widest):
        after = list(tensors_in(run()))
    if len(before) != len(after) or not all(is_close(a, b) for a, b in zip(before, after, strict=True)):
        raise ChoiceError(
            "the model made elastic gives, at its widest, not what it gave before; does it give the same for the same "
            "input twice? If so, exclude layers until it does, and tell us of the one"
        )
    _try(model, plan, narrowest, widest, run)
    # Each two choices have candidates of other positions in one of these runs, so that two widths that must be one, and
    # are not, are found: the digits of a choice's number say which it has in which run.
    base, number = min(len(choice.candidates) for choice in choices.values()), 1
    while number < len(choices) and base > 1:
        digits = {label: i // number % base for i, label in enumerate(choices)}
        _try(model, plan, {label: choices[label].candidates[digit] for label, digit in digits.items()}, widest, run)
        number *= base


def _try(
    model: nn.Module, plan: _Plan, decisions: Mapping[str, Any], widest: Mapping[str, Any], run: Callable[[], Any]
) -> None:
    try:
        with decided(model, decisions):
            run()
    except Exception as error:  # whatever the user's model raises
        path = _where_it_fails(model, decisions, run)
        narrowed = [f"{label}={value}" for label, value in decisions.items() if value != widest[label]]
        raise ChoiceError(
            f"the model does not run with {', '.join(narrowed[:4])}{', ...' if len(narrowed) > 4 else ''}: in "
            f"{path!r}, a {type(plan.modules[path]).__name__}: {type(error).__name__}: {error}. Does its forward have "
            "a number written down that must follow a width, as in x.view(B, T, 768)? Let it read that from the "
            "input's shape, by -1, or leave the width as it is"
        ) from error


def _where_it_fails(model: nn.Module, decisions: Mapping[str, Any], run: Callable[[], Any]) -> str:
    """Return the path of the innermost module whose forward raises."""
    stack: list[str] = []

    def enter(path: str) -> Callable[..., None]:
        return lambda *_: stack.append(path)

    def leave(*_: Any) -> None:
        stack.pop()

    handles = [module.register_forward_pre_hook(enter(path)) for path, module in model.named_modules()]
    handles += [module.register_forward_hook(leave) for module in model.modules()]
    try:
        with decided(model, decisions):
            run()
    except Exception:  # the same again
        return stack[-1] if stack else ""
    finally:
        for handle in handles:
            handle.remove()
    return ""


# --- names -------------------------------------------------------------------------------------------------------


def _label(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _is_at_or_in(path: str, parents: set[str]) -> bool:
    return any(path == parent or path.startswith(f"{parent}.") or not parent for parent in parents)


def _check_candidates(candidates: Sequence[Any], whole: int, path: str, name: str) -> None:
    for value in candidates:
        if not is_int(value) or value < 1:
            raise ChoiceError(f"{name} of {path!r} is a whole number above 0, not {value!r}")
        if value > whole:
            raise ChoiceError(
                f"{name} of {path!r} cannot be {value}, for the model has {whole} there, and weights for no more"
            )
    if whole not in candidates:
        raise ChoiceError(
            f"{name} of {path!r} is {whole}, which must be among its candidates, {list(candidates)}: the model as it "
            "is, is the widest network"
        )


def _names_read(cls: type[nn.Module]) -> set[str]:
    """Return the names that the code of a module reads when it runs."""
    found: set[str] = set()
    for base in cls.__mro__:
        if base in (nn.Module, object):
            continue
        for name, function in vars(base).items():
            function = getattr(function, "__wrapped__", function)
            codes = [function.__code__] if hasattr(function, "__code__") and name != "__init__" else []
            while codes:
                code = codes.pop()
                found.update(code.co_names)
                codes.extend(const for const in code.co_consts if hasattr(const, "co_names"))
    return found


def _shown(selector: str | type[nn.Module]) -> str:
    return repr(selector) if isinstance(selector, str) else selector.__name__
