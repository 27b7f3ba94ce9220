"""One exported graph: named arrays in, named arrays out, on onnxruntime or OpenVINO.

Nothing is ignored: an input that the graph lacks and one that it has and is not given are both errors. Knows runtimes; knows no
model, no text and no cache beyond the arrays that it is made of.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from modelyard.errors import InputError, ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["Graph", "OnnxGraph", "OpenVinoGraph", "Port", "open_graph"]

Port = tuple[tuple[int | None, ...], np.dtype[Any]]
"""The shape of an input, None for a size that is free, and its dtype."""

_ONNX_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}


class Graph(Protocol):
    """A graph that is ready to run."""

    inputs: dict[str, Port]

    def run(self, given: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Its outputs by name.

        Raises:
            InputError: `graph_inputs`: names are missing, or the graph has no such input.
        """
        ...

    def reset(self) -> None:
        """Forget the cache that the graph keeps inside, if it does."""
        ...


class OnnxGraph:
    """A graph on onnxruntime's CPU provider.

    Args:
        path: The .onnx file; its weights lie beside it.
        threads: Compute threads; None is onnxruntime's own choice, every core of the machine.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
            options.inter_op_num_threads = 1
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ModelError(
                f"onnxruntime does not run `{path}`: {_first_line(error)}", code="export_broken"
            ) from error
        self.inputs: dict[str, Port] = {
            each.name: (tuple(_size(size) for size in each.shape), np.dtype(_ONNX_TYPES.get(each.type, np.float32)))
            for each in self._session.get_inputs()
        }
        self._outputs = [each.name for each in self._session.get_outputs()]

    def run(self, given: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """See `Graph.run`."""
        feed = _feed(self.inputs, given)
        return dict(zip(self._outputs, self._session.run(self._outputs, feed), strict=True))

    def reset(self) -> None:
        """Its cache goes in and out: there is nothing to forget."""


class OpenVinoGraph:
    """A graph on OpenVINO's CPU plugin, computing in float32.

    Args:
        path: The .xml file; its weights lie beside it.
        threads: Compute threads; None is OpenVINO's own choice.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        import openvino

        # On a processor with AVX512-BF16 or AMX the plugin computes in bfloat16 unless it is told otherwise.
        properties: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": "f32",
            "KV_CACHE_PRECISION": "f32",
            "PERFORMANCE_HINT": "LATENCY",
        }
        if threads is not None:
            properties["INFERENCE_NUM_THREADS"] = threads
        try:
            core = openvino.Core()
            self._compiled = core.compile_model(core.read_model(str(path)), "CPU", properties)
        except Exception as error:
            raise ModelError(f"OpenVINO does not run `{path}`: {_first_line(error)}", code="export_broken") from error
        self._request = self._compiled.create_infer_request()
        self.inputs: dict[str, Port] = {
            each.get_any_name(): (
                tuple(size.get_length() if size.is_static else None for size in each.get_partial_shape()),
                np.dtype(each.get_element_type().to_dtype()),
            )
            for each in self._compiled.inputs
        }

    def run(self, given: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """See `Graph.run`. `beam_idx`, which reorders the rows of the cache inside, keeps them as they are by itself."""
        if "beam_idx" in self.inputs and "beam_idx" not in given:
            rows = len(next(iter(given.values())))
            given = {**given, "beam_idx": np.arange(rows, dtype=np.int32)}
        found = self._request.infer(_feed(self.inputs, given), share_inputs=False, share_outputs=False)
        return {port.get_any_name(): found[port] for port in self._compiled.outputs}

    def reset(self) -> None:
        """Empty the cache inside."""
        self._request.reset_state()


def open_graph(target: str, path: Path, threads: int | None = None) -> Graph:
    """The graph of an export to `onnx` or `openvino`."""
    return OnnxGraph(path, threads) if target == "onnx" else OpenVinoGraph(path, threads)


def _feed(inputs: Mapping[str, Port], given: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    missing, unknown = sorted(set(inputs) - set(given)), sorted(set(given) - set(inputs))
    if missing or unknown:
        said = [f"lacks {', '.join(missing)}"] if missing else []
        said += [f"has {', '.join(unknown)}, which the graph does not take"] if unknown else []
        raise InputError(
            f"the input {' and '.join(said)}", code="graph_inputs", hint=f"the graph takes {', '.join(inputs)}"
        )
    return {name: np.ascontiguousarray(given[name], dtype) for name, (_, dtype) in inputs.items()}


def _size(size: Any) -> int | None:
    """A number, also where a graph has it as text (`"8"`, as torch writes the sizes of a cache)."""
    if isinstance(size, int):
        return size
    return int(size) if isinstance(size, str) and size.isdigit() else None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
