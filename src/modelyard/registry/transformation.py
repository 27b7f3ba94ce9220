"""The part of `Yard` that makes a new version from an old one: convert, quantize, export; and what those keep of it.

Each method resolves its inputs, says what the result is and what it came from, and calls one function of `weights`;
`transforms` does what they share. Sources are versions, references, `./folders` and `hf://` ids alike; `to` is a repo or a
`./folder`. Knows no tensor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from modelyard.registry.deferred import deferred

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from modelyard.digest import Digest
    from modelyard.registry import certificates as _certificates
    from modelyard.registry import lineage as _lineage
    from modelyard.registry import transforms as _transforms
    from modelyard.registry.context import Context
    from modelyard.registry.model import Kind, Version
    from modelyard.registry.transforms import Operand, Transformed
    from modelyard.weights.convert.planning import TensorPlan

    Source = str | Path | Version
    Progress = Callable[[int, int], None]
else:
    _certificates = deferred("certificates")
    _lineage = deferred("lineage")
    _transforms = deferred("transforms")

__all__ = ["Transformation"]


class Transformation:
    """What `Yard` inherits to make new versions from old ones; not used alone."""

    _context: Context

    def certificates(self, version: str | Version) -> list[dict[str, Any]]:
        """How a version's weights were made and what was measured of them, as plain values, in the order of their making."""
        return _certificates.of_version(self._context, version)

    def add_certificate(self, version: str | Version, certificate: Mapping[str, Any]) -> Digest:
        """Keep a certificate (`weights.certificate.Certificate.to_dict()`) beside a version; a second time is no second one."""
        return _certificates.add(self._context, version, certificate)

    def convert(
        self,
        source: Source,
        to: str | Path,
        *,
        format: Literal["safetensors", "bin", "gguf"] = "safetensors",  # noqa: A002  the word that every user knows
        dtype: str | None = None,
        dtypes: Mapping[str, str] | None = None,
        shard_size: int | str | None = None,
        names: Literal["disk", "module"] | None = None,
        type: str = "F16",  # noqa: A002  GGUF's own word
        branch: str = "main",
        message: str = "",
        progress: Progress | None = None,
    ) -> Transformed:
        """The same weights in another form: pickles or GGUF to safetensors, another dtype, other shards, other names.

        Args:
            source: A model or adapter: a version, a folder (of safetensors, or of pickles), a `.gguf` file, a hub's id.
            to: A repo or a new folder.
            format: What to write. Pickles (`bin`) go to a folder only.
            dtype: `float32`, `float16` or `bfloat16` for every floating-point tensor; None keeps each.
            dtypes: Patterns of tensor names (`*norm*`) to dtypes, the first that fits; before `dtype`.
            shard_size: Bytes or text such as `5GB`: the most of one file; None keeps the files as they are.
            names: `disk` (as transformers 4 wrote) or `module` (as its version 5 calls them in memory).
            type: With `gguf`: F32, F16, BF16, Q8_0 or Q4_0.
            branch: Which branch of the repo moves.
            message: For people.
            progress: Called with (bytes done, bytes in all).

        Raises:
            ModelError: The source is unsafe or broken, or has no such form.
            InputError: Options that do not go together.
        """
        from modelyard.weights.convert.forms import convert

        operand = self._find(source)
        options: dict[str, Any] = {
            "format": format,
            "dtype": dtype,
            "dtypes": dict(dtypes or {}),
            "shard_size": shard_size,
        }
        options |= {"names": names, "type": type if format == "gguf" else None}
        exported = format == "gguf"
        kind: Kind | None = "exported" if exported else operand.version.kind if operand.version else None
        return _transforms.transform(
            self._home(),
            "convert",
            [operand],
            to,
            lambda out: convert(operand.files(), out, progress=progress, **options),
            options=options,
            kind=kind,
            edges=[("exported" if exported else "converted", operand)],
            branch=branch,
            message=message or f"{operand.label} converted",
        )

    def plan_conversion(self, source: Source, **options: Any) -> list[TensorPlan]:
        """What `convert` would make of each tensor, in the order of the new files; nothing is written.

        Raises:
            InputError: `no_plan`: pickles and GGUF files say what they hold only when they are converted.
        """
        from modelyard.weights.convert.forms import plan_convert

        return plan_convert(self._find(source).files(), **options)

    def quantize(
        self,
        source: Source,
        to: str | Path,
        *,
        method: str,
        tolerance: float | None = None,
        check: bool = True,
        threads: int | None = None,
        branch: str = "main",
        message: str = "",
        progress: Progress | None = None,
    ) -> Transformed:
        """A model in fewer bits a weight, compared with the model that it was made from.

        Args:
            source: The model.
            to: A repo or a new folder.
            method: One of `weights.quantize.METHODS`: `torchao-int8`, `bnb-4bit`.
            tolerance: The largest difference that passes, relative to the outputs' scale; None is the method's.
            check: Whether to compare at all.
            threads: Compute threads.
            branch: Which branch of the repo moves.
            message: For people.
            progress: Called with (steps done, steps in all).

        Raises:
            InputError: An unknown method, or one that this machine cannot run.
            ModelError: `quantization_differs`: it is further from the source than the tolerance; nothing is written.
        """
        from modelyard.weights.quantize import quantize

        operand = self._find(source)
        options: dict[str, Any] = {"method": method, "tolerance": tolerance, "check": check}
        return _transforms.transform(
            self._home(),
            "quantize",
            [operand],
            to,
            lambda out: quantize(operand.files(), out, threads=threads, progress=progress, **options),
            options=options,
            kind="quantized",
            edges=[("quantized", operand)],
            branch=branch,
            message=message or f"{operand.label} quantized by {method}",
            metadata={"method": method},
        )

    def export(
        self,
        source: Source,
        to: str | Path,
        *,
        format: Literal["onnx", "openvino", "genai", "gguf"],  # noqa: A002  the word that every user knows
        type: str | None = None,  # noqa: A002  GGUF's and onnxruntime-genai's own word
        task: str | None = None,
        tolerance: float | None = None,
        threads: int | None = None,
        branch: str = "main",
        message: str = "",
        progress: Progress | None = None,
    ) -> Transformed:
        """A model in the form of another engine, compared with the model that it was made from.

        Args:
            source: The model.
            to: A repo or a new folder.
            format: Whose form.
            type: Of the weights: `fp32`, `int8`, `int4` (genai), F32, F16, BF16, Q8_0, Q4_0 (gguf).
            task: Of the model; None is that of its class.
            tolerance: The largest difference that passes, relative to the outputs' scale; None is the format's.
            threads: Compute threads.
            branch: Which branch of the repo moves.
            message: For people.
            progress: Called with (steps done, steps in all).

        Raises:
            InputError: An unknown format or type; `missing_extra`: what makes it is not installed.
            ModelError: `export_differs`: it is further from the source than the tolerance; nothing is written.
        """
        from modelyard.weights.export import export

        operand = self._find(source)
        options: dict[str, Any] = {"type": type, "task": task, "tolerance": tolerance}
        return _transforms.transform(
            self._home(),
            "export",
            [operand],
            to,
            lambda out: export(operand.files(), out, format, threads=threads, progress=progress, **options),
            options={"format": format, **options},
            kind="exported",
            edges=[("exported", operand)],
            branch=branch,
            message=message or f"{operand.label} exported as {format}",
            metadata={"format": format},
        )

    def _home(self) -> Context | None:
        """The yard; None on a `Bench`, which has folders only."""
        return self._context

    def _find(self, source: Source) -> Operand:
        return _transforms.find(self._home(), source, self.fetch)

    if TYPE_CHECKING:

        def fetch(self, source: str, **options: Any) -> Path:
            """See `Delivery.fetch`."""
            ...
