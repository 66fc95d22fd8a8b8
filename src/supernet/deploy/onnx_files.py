"""Networks as ONNX files, written by torch's own exporter and run by onnxruntime."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from supernet.deploy.example import BATCH, Example, tensors_in
from supernet.deploy.programs import program_of, quiet
from supernet.errors import ExportError, FileFormatError, MissingExtraError
from supernet.space.files import replacing

__all__: list[str] = []

LARGEST = 2**31 - 2**20  # bytes of one file, as protobuf limits it, without the graph


def write_onnx(network: nn.Module, example: Example, path: Path) -> None:
    """Write a network as an ONNX file, whose first dimension of inputs is called "batch".

    Raises:
        ExportError: An operator has no form in ONNX, which is named; or the weights are too large for one file.
        MissingExtraError: ONNX or onnxscript is not installed.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401  # torch's exporter needs it
    except ImportError as error:
        raise _missing(error) from error
    if (size := sum(t.nbytes for t in (*network.parameters(), *network.buffers()))) > LARGEST:
        raise ExportError(
            f"an ONNX file holds 2 GiB, and {type(network).__name__} has {size / 2**30:.1f} GiB of weights; export it "
            'as "torch.export" or "safetensors"'
        )
    program = program_of(network, example)
    batch = [
        str(size)
        for node in program.graph.nodes
        if node.op == "placeholder" and isinstance(value := node.meta.get("val"), Tensor)
        for size in value.shape[:1]
        if isinstance(size, torch.SymInt)
    ]
    try:
        with quiet():
            exported = torch.onnx.export(program, (), dynamo=True, verbose=False, external_data=False)
            assert exported is not None
            model = exported.model_proto
    except Exception as error:  # whatever the network has, or what it is made with lacks
        raise ExportError(_why_not(network, program, error)) from error
    _tidy(model, batch[0] if batch else None)
    with quiet():
        onnx.checker.check_model(model, full_check=False)
    with replacing(path) as file:
        file.write(model.SerializeToString(deterministic=True))


def _tidy(model: Any, symbol: str | None) -> None:
    """Call the batch's dimension that, and leave out notes on where the network's code stands."""
    graphs = [model.graph, *model.functions]
    for graph in graphs:
        for node in graph.node:
            del node.metadata_props[:]
            node.doc_string = ""
    values = (*model.graph.input, *model.graph.output, *model.graph.value_info)
    for value in values:
        del value.metadata_props[:]
        for dimension in value.type.tensor_type.shape.dim:
            if symbol and dimension.dim_param:
                dimension.dim_param = re.sub(rf"\b{symbol}\b", BATCH, dimension.dim_param)


def _why_not(network: nn.Module, program: torch.export.ExportedProgram, error: BaseException) -> str:
    """Return what kept a network from being exported: an operator by name and module, or what the exporter says."""
    chain: list[BaseException] = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None and len(chain) < 20:
        chain.append(inner)
    for each in chain:
        if found := re.search(r"No ONNX function found for <OpOverload\(op='([\w.]+)'", str(each)):
            name = found[1].split(".")[-1]
            modules = [
                path
                for node in program.graph.nodes
                if node.op == "call_function" and str(node.target).split(".")[-2:-1][0:1] and name in str(node.target)
                for path, _ in [[*node.meta.get("nn_module_stack", {"": ("", "")}).values()][-1]]
            ]
            where = f" of module {modules[0]!r}" if modules and modules[0] else ""
            return (
                f"the operator {found[1]!r}{where} has no form in ONNX; write it by other operators, or export "
                f'{type(network).__name__} as "torch.export"'
            )
    return f"{type(network).__name__} cannot be exported to ONNX: {' '.join(str(chain[-1]).split())[:500]}"


class OnnxNetwork(nn.Module):
    """A network in an ONNX file, run by onnxruntime on the CPU; called with tensors, it returns tensors.

    Args:
        path: Path of the file.

    Raises:
        FileFormatError: It is no ONNX file that onnxruntime can run.
        MissingExtraError: ONNX Runtime is not installed.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        try:
            import onnxruntime
        except ImportError as error:
            raise _missing(error) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3  # errors
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own classes, of no common kind
            raise FileFormatError(f"onnxruntime cannot run {path}: {error}") from error
        self.input_names = [value.name for value in self._session.get_inputs()]
        self.output_names = [value.name for value in self._session.get_outputs()]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the network gives: a tensor, or a tuple of several."""
        named = {name: value for name, value in kwargs.items() if name in self.input_names}
        rest = tensors_in((args, {name: value for name, value in kwargs.items() if name not in named}))
        free = [name for name in self.input_names if name not in named]
        if len(rest) != len(free):
            raise TypeError(
                f"the network takes {', '.join(self.input_names)}, and was given {len(rest) + len(named)} tensors"
            )
        given = {**named, **dict(zip(free, rest, strict=True))}
        arrays = {name: tensor.detach().cpu().numpy() for name, tensor in given.items()}
        outputs = [torch.from_numpy(array) for array in self._session.run(None, arrays)]
        device = next((tensor.device for tensor in given.values()), torch.device("cpu"))
        outputs = [output.to(device) for output in outputs]
        return outputs[0] if len(outputs) == 1 else tuple(outputs)


def _missing(error: ImportError) -> MissingExtraError:
    return MissingExtraError(f"ONNX files need {error.name or 'onnx'}: pip install 'supernet[onnx]'")
