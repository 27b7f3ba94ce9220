"""Exported folders as `parity.Runner`s: `OnnxRunner` and `OpenVinoRunner`.

Knows the layouts of an export (`manifest`); the loops are in `decoding`, the runtimes in `graphs`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from modelyard.errors import InputError
from modelyard.weights.export.decoding import (
    decode_with_cache,
    decode_with_encoder,
    run_decoder,
    run_encoder_decoder,
)
from modelyard.weights.export.graphs import open_graph
from modelyard.weights.export.manifest import Manifest

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from modelyard.weights.parity import Batch

__all__ = ["OnnxRunner", "OpenVinoRunner"]


class _GraphRunner:
    """An exported folder whose graphs are run here.

    Args:
        folder: What `export` wrote.
        threads: Compute threads; None is the runtime's own choice.

    Attributes:
        manifest: What the folder says of itself.
    """

    target: ClassVar[str]

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        self.manifest = Manifest.read(folder)
        self._graphs = {
            role: open_graph(self.target, folder / each.file, threads) for role, each in self.manifest.graphs.items()
        }

    def outputs(self, batch: Batch) -> dict[str, NDArray[np.float32]]:
        """See `parity.Runner.outputs`.

        Raises:
            InputError: `graph_inputs`: the batch has something that no graph takes, or lacks what one does.
        """
        self._refuse_unknown(batch)
        if self.manifest.layout == "decoder":
            ids, mask = _text(batch)
            return {"logits": run_decoder(self._graphs["model"], ids, mask)[0]}
        if self.manifest.layout == "encoder-decoder":
            inputs, start = _parts(batch)
            return {"logits": run_encoder_decoder(self._graphs, inputs, start)[0]}
        graph = self._graphs["model"]
        given = {name: values for name, values in batch.inputs.items() if name in graph.inputs}
        if "token_type_ids" in graph.inputs and "token_type_ids" not in given:
            given["token_type_ids"] = np.zeros_like(given["input_ids"])  # as the model itself fills it
        found = graph.run(given)
        return {
            name.removeprefix("output."): values.astype(np.float32, copy=False)
            for name, values in found.items()
            if np.issubdtype(values.dtype, np.floating)
        }

    def generate(self, batch: Batch, tokens: int) -> list[list[int]] | None:
        """See `parity.Runner.generate`."""
        self._refuse_unknown(batch)
        if self.manifest.layout == "decoder":
            return decode_with_cache(self._graphs["model"], *_text(batch), tokens)
        if self.manifest.layout == "encoder-decoder":
            inputs, start = _parts(batch)
            return decode_with_encoder(self._graphs, inputs, start[:, :1], tokens)
        return None

    def _refuse_unknown(self, batch: Batch) -> None:
        known = {name for each in self.manifest.graphs.values() for name in (*each.inputs, *each.unread)}
        unknown = sorted(set(batch.inputs) - known)
        if unknown:
            raise InputError(
                f"the export does not take {', '.join(unknown)}",
                code="graph_inputs",
                hint=f"it takes {', '.join(sorted(name for name in known if '.' not in name))}",
            )


class OnnxRunner(_GraphRunner):
    """A folder that was exported to `onnx`, on onnxruntime's CPU provider."""

    target = "onnx"


class OpenVinoRunner(_GraphRunner):
    """A folder that was exported to `openvino`, on OpenVINO's CPU plugin in float32."""

    target = "openvino"


def _text(batch: Batch) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    ids = batch.inputs["input_ids"].astype(np.int64, copy=False)
    mask = batch.inputs.get("attention_mask")
    return ids, np.ones_like(ids) if mask is None else mask.astype(np.int64, copy=False)


def _parts(batch: Batch) -> tuple[Mapping[str, NDArray[Any]], NDArray[np.int64]]:
    inputs = {name: values for name, values in batch.inputs.items() if not name.startswith("decoder_")}
    return inputs, batch.inputs["decoder_input_ids"].astype(np.int64, copy=False)
