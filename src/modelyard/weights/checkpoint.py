"""A model's tensors across its safetensors shards: which file holds which, and reading their bytes.

Bytes are read with `pread` into buffers that the caller owns: memory stays what the caller gave, a file that shrinks
meanwhile is an error and not a crash (a map would raise SIGBUS), and threads may read at the same time. This module knows
names and bytes, not architectures.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from modelyard.derivations import STORAGE
from modelyard.errors import ModelError
from modelyard.weights.checks import check_index
from modelyard.weights.files import Files, show_name
from modelyard.weights.headers import Header, TensorInfo, open_regular, parse_stream, read_header

if TYPE_CHECKING:
    from types import TracebackType

    from modelyard.derivations.numbers import Array

__all__ = ["Checkpoint", "Shard", "open_checkpoint"]


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of one set of weights.

    Attributes:
        files: Where they are.
        index: The name of the index file, None when one file holds everything.
        shards: File name to its header, sorted by name.
        home: Tensor name to the file that holds it.
    """

    files: Files
    index: str | None
    shards: dict[str, Header]
    home: dict[str, str]

    def info(self, tensor: str) -> TensorInfo:
        """The tensor's dtype, shape and place in its file."""
        return self.shards[self.home[tensor]].tensors[tensor]

    def open(self, shard: str) -> Shard:
        """Open one of the files for reading."""
        return Shard(self.files, shard)

    def read(self, tensor: str) -> Array:
        """A whole F32, F16 or BF16 tensor, in the numpy type of `derivations.STORAGE`.

        Raises:
            ModelError: `unsupported_dtype`, or the file changed while it was read.
        """
        with self.open(self.home[tensor]) as shard:
            return shard.read(tensor)


def open_checkpoint(files: Files, stem: str = "model") -> Checkpoint:
    """Find and check the weights named `stem` (`model` or `adapter_model`), sharded or not.

    Raises:
        ModelError: `not_a_model` when there are none; or as `check_index` and `read_header`.
    """
    names = files.names()
    index, single = f"{stem}.safetensors.index.json", f"{stem}.safetensors"
    if single in names:
        headers = {single: read_header(files.path(single))}
        return Checkpoint(files, None, headers, dict.fromkeys(headers[single].tensors, single))
    if index in names:
        home = check_index(files, index)
        return Checkpoint(
            files, index, {name: read_header(files.path(name)) for name in sorted(set(home.values()))}, home
        )
    there = ", ".join(show_name(name) for name in names[:5]) or "nothing"
    raise ModelError(
        f"`{files.label}` has no {single} and no {index} (there is: {there})",
        code="not_a_model",
        hint="give the folder that `save_pretrained` wrote",
    )


class Shard:
    """One open safetensors file. Reading is safe from several threads at once.

    Attributes:
        header: Its checked header.
        header_bytes: The file up to its first tensor byte, as it is.
    """

    def __init__(self, files: Files, name: str) -> None:
        self.label = f"{files.label}/{show_name(name)}"
        self._stream: BinaryIO = open_regular(files.path(name))
        try:
            self.header = parse_stream(self._stream, self.label)
            self.header_bytes = bytearray(self.header.data_start)
            self._fill(memoryview(self.header_bytes), 0)
        except BaseException:
            self._stream.close()
            raise

    def __enter__(self) -> Shard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    def read_into(self, target: memoryview, start: int) -> None:
        """Fill `target` with the data bytes from `start` (an offset as `TensorInfo` has it)."""
        self._fill(target, self.header.data_start + start)

    def read(self, tensor: str) -> Array:
        """A whole F32, F16 or BF16 tensor; see `Checkpoint.read`."""
        info = self.header.tensors[tensor]
        if info.dtype not in STORAGE:
            raise ModelError(
                f"tensor `{show_name(tensor)}` of `{self.label}` is {info.dtype}; F32, F16 and BF16 are supported",
                code="unsupported_dtype",
            )
        made = np.empty(info.shape, STORAGE[info.dtype])
        if made.size:
            self.read_into(made.reshape(-1).view(np.uint8).data, info.start)
        return made

    def _fill(self, target: memoryview, position: int) -> None:
        done = 0
        while done < len(target):
            count = os.preadv(self._stream.fileno(), [target[done:]], position + done)
            if count == 0:
                raise ModelError(f"`{self.label}` became shorter while it was read", code="truncated")
            done += count
