"""A folder of onnxruntime-genai as a `parity.Runner`: `GenaiRunner`.

onnxruntime-genai makes the mask of a batch itself, from the padding token, and its attention kernel on a CPU takes rows that
are padded on the right alone: rows padded on the left come out wrong. So rows are moved to the left edge here.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from modelyard.errors import InputError
from modelyard.weights.export.manifest import Manifest

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from modelyard.weights.parity import Batch

__all__ = ["GenaiRunner"]


class GenaiRunner:
    """A folder that was exported to `genai`, on onnxruntime-genai's CPU provider.

    Args:
        folder: What `export` wrote.
        threads: Compute threads; None is onnxruntime's own choice.

    Attributes:
        manifest: What the folder says of itself.
    """

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        import onnxruntime_genai as genai

        self.manifest = Manifest.read(folder)
        self._genai: Any = genai
        config = genai.Config(str(folder))
        if threads is not None:
            options = {"intra_op_num_threads": threads, "inter_op_num_threads": 1}
            config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        described = json.loads((folder / "genai_config.json").read_text("utf-8"))["model"]
        self._model = genai.Model(config)
        self._pad = int(described["pad_token_id"])
        self._context = int(described["context_length"])
        ends = described["eos_token_id"]
        self._ends = frozenset(ends if isinstance(ends, list) else [ends])

    def outputs(self, batch: Batch) -> dict[str, NDArray[np.float32]]:
        """See `parity.Runner.outputs`; the logits of positions that are padded are zero."""
        ids, mask, lengths = self._rows(batch)
        generator = self._start(ids, lengths, 1)
        found = generator.get_output("logits")
        made = np.zeros((*mask.shape, found.shape[-1]), np.float32)
        for row, length in enumerate(lengths):
            made[row, mask[row]] = found[row, :length]
        return {"logits": made}

    def generate(self, batch: Batch, tokens: int) -> list[list[int]]:
        """See `parity.Runner.generate`."""
        ids, _, lengths = self._rows(batch)
        generator = self._start(ids, lengths, tokens)
        while not generator.is_done():
            generator.generate_next_token()
        found = [generator.get_sequence(row)[ids.shape[1] :].tolist() for row in range(len(ids))]
        for row, written in enumerate(found):
            # A token that ends a row ends it in genai; in the protocol nothing does.
            if len(written) < tokens or self._ends & set(written[:-1]):
                found[row] = self._continue(ids[row : row + 1, : lengths[row]], tokens)
        return found

    def _continue(self, ids: NDArray[np.int32], tokens: int) -> list[int]:
        """As `generate`, of one row and past any token that ends: each is chosen here, and given back to the cache."""
        generator = self._start(ids, [ids.shape[1]], tokens)
        found: list[int] = []
        while True:
            found.append(int(generator.get_logits()[0, -1].argmax()))
            if len(found) == tokens:
                return found
            generator.append_tokens(np.array([found[-1:]], np.int32))

    def _rows(self, batch: Batch) -> tuple[NDArray[np.int32], NDArray[np.bool_], list[int]]:
        """The ids padded on the right, the mask as it was given, and the rows' lengths."""
        unknown = sorted(set(batch.inputs) - {"input_ids", "attention_mask"})
        if unknown:
            raise InputError(
                f"the export does not take {', '.join(unknown)}",
                code="graph_inputs",
                hint="it takes input_ids, attention_mask",
            )
        ids = batch.inputs["input_ids"]
        mask = batch.inputs.get("attention_mask", np.ones_like(ids)).astype(np.bool_)
        lengths = [int(count) for count in mask.sum(1)]
        moved = np.full((len(ids), max(lengths)), self._pad, np.int32)
        for row, length in enumerate(lengths):
            moved[row, :length] = ids[row, mask[row]]
        return moved, mask, lengths

    def _start(self, ids: NDArray[np.int32], lengths: list[int], tokens: int) -> Any:
        if len(ids) > 1 and any(self._pad in row[:length] for row, length in zip(ids, lengths, strict=True)):
            raise InputError(
                f"a row has the padding token {self._pad}, which onnxruntime-genai takes for padding in a batch",
                code="graph_inputs",
                hint="compute the rows one by one",
            )
        longest = ids.shape[1] + tokens
        if longest > self._context:
            raise InputError(
                f"{ids.shape[1]} tokens and {tokens} more are over the context of {self._context}", code="too_long"
            )
        params = self._genai.GeneratorParams(self._model)
        params.set_search_options(max_length=longest, do_sample=False, batch_size=len(ids))
        generator = self._genai.Generator(self._model, params)
        generator.append_tokens(ids)
        return generator
