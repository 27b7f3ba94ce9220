"""A folder becomes a `Model` in memory, or a `ModelError` that says why not.

Our own reader checks every weight file before a library sees it; nothing is fetched, unpickled or run from the
checkpoint; and what came into memory is audited against what is on disk (`audit`).

Loading in transformers swaps process globals while it runs (default dtype, weight tying, tensor constructors), so two
loads at once damage one another and every later one. `LOADING` is the one lock around it: whoever calls
`from_pretrained` or `from_config` in this process, training included, holds it.

Knows folders; knows no references, stores or servers.

>>> from pathlib import Path
>>> from modelyard.errors import ModelError
>>> try:
...     load(Path("/nonexistent"))
... except ModelError as error:
...     print(error.message)
no folder `/nonexistent`
"""

from __future__ import annotations

import json
import threading
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelyard.errors import ModelError, RequestError, YardError, near_match
from modelyard.weights.audit import audit_keys, audit_tensors, audit_ties
from modelyard.weights.checks import check_weights
from modelyard.weights.files import FolderFiles
from modelyard.weights.model import Model, Task

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["DTYPES", "LOADING", "cpu_runs_bfloat16", "load", "loading", "pick_dtype"]

LOADING = threading.RLock()
"""Held around every load by transformers or PEFT in this process."""

DTYPES = ("auto", "float32", "bfloat16", "float16")
"""What weights may be loaded as."""

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "vocab.txt")
_CONFIG_LIMIT = 16 << 20


def load(
    folder: Path | str,
    *,
    base: Path | str | None = None,
    dtype: str = "auto",
    device: str = "cpu",
    threads: int | None = None,
) -> Model:
    """Load a model folder, or an adapter folder onto its base, ready to answer.

    Args:
        folder: A folder of transformers (config.json, safetensors, tokenizer), or of PEFT (adapter_config.json).
        base: For an adapter: the folder of its base; by default the one that adapter_config.json names, if it is a
            folder here.
        dtype: One of `DTYPES`. `auto` is the checkpoint's own; on a CPU, float16 and (without AVX512-BF16 or AMX)
            bfloat16 are loaded as float32, which holds the same values and is several times faster there.
        device: `cpu`, `cuda`, `cuda:1`, ...
        threads: Compute threads of torch in this process; None leaves them as they are.

    Raises:
        ModelError: Not a usable model, unsafe weights (`PickleError`), or tensors missing, left over, of another shape
            or not finite; the message lists them.
        RequestError: `dtype`, `device` or `threads` is none.
    """
    folder = Path(folder)
    _check_options(dtype, threads)
    _check_device(device)
    if not folder.is_dir():
        raise ModelError(f"no folder `{folder}`", hint="give the path of a model's folder")
    adapter = _read_adapter(folder)
    root = folder if adapter is None else _find_base(folder, adapter, base)
    if adapter is None and base is not None:
        raise ModelError(f"`{folder}` is no adapter (no adapter_config.json), so it takes no base")
    for path in {root, folder}:
        check_weights(FolderFiles(path))
    with loading():
        task, model, kind = _load_model(root, dtype, device)
        if adapter is not None:
            model = _attach_adapter(model, task, folder)
        tokenizer = _load_tokenizer(folder, root)
        model = model.to(device).eval()
    audit_tensors(str(folder), model, kind)
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    return Model(model, tokenizer, task, folder, base=root if adapter is not None else None, threads=threads)


@contextmanager
def loading() -> Iterator[None]:
    """Hold `LOADING`, with transformers' progress bars and log tables off: what they say comes back as errors."""
    from transformers.utils import logging as library_logging

    logging: Any = library_logging  # its functions carry no types
    with LOADING, warnings.catch_warnings():
        # PEFT 0.21 reads an attribute that transformers 5.23 renamed; nothing that a user could act on.
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)
        bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
        logging.disable_progress_bar()
        logging.set_verbosity_error()
        try:
            yield
        finally:
            logging.set_verbosity(level)
            if bars:
                logging.enable_progress_bar()


def cpu_runs_bfloat16() -> bool:
    """Whether this machine's CPU multiplies bfloat16 in hardware (AVX512-BF16 or AMX); emulation is 10 to 20x slower."""
    import torch

    able: dict[str, Any] = dict(torch.cpu.get_capabilities())
    return any(bool(able.get(name)) for name in ("avx512_bf16", "amx_bf16", "amx_tile", "bf16"))


def pick_dtype(wanted: str, stored: str | None, device: str) -> str:
    """The dtype to load as: `wanted`, or for `auto` the `stored` one where the device computes in it well.

    >>> pick_dtype("auto", "float16", "cpu"), pick_dtype("auto", "float16", "cuda"), pick_dtype("float32", None, "cpu")
    ('float32', 'float16', 'float32')
    """
    if wanted != "auto":
        return wanted
    if stored not in DTYPES:
        return "float32"
    if device == "cpu" and (stored == "float16" or (stored == "bfloat16" and not cpu_runs_bfloat16())):
        return "float32"
    return stored


def _check_options(dtype: str, threads: int | None) -> None:
    if dtype not in DTYPES:
        meant = near_match(dtype, DTYPES)
        hint = f"did you mean `{meant}`?" if meant else f"one of {', '.join(DTYPES)}"
        raise RequestError(f"`dtype` is {dtype!r}", hint=hint, field="dtype")
    if threads is not None and threads < 1:
        raise RequestError(f"`threads` is {threads}", hint="a positive whole number", field="threads")


def _check_device(device: str) -> None:
    import torch

    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise RequestError(f"`device` is {device!r}", hint="`cpu`, `cuda` or `cuda:0`", field="device") from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise RequestError(f"`device` is {device!r}, and torch finds no GPU here", hint="use `cpu`", field="device")


def _read_config(folder: Path, name: str) -> dict[str, Any]:
    files = FolderFiles(folder)
    try:
        value = json.loads(files.read(name, _CONFIG_LIMIT))
    except ValueError as error:
        raise ModelError(f"`{folder / name}` is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"`{folder / name}` holds no object")
    return value


def _read_adapter(folder: Path) -> dict[str, Any] | None:
    return _read_config(folder, "adapter_config.json") if (folder / "adapter_config.json").exists() else None


def _find_base(folder: Path, adapter: dict[str, Any], base: Path | str | None) -> Path:
    named = adapter.get("base_model_name_or_path")
    if base is None and isinstance(named, str) and Path(named).is_dir():
        base = named
    if base is None:
        raise ModelError(
            f"`{folder}` is an adapter of `{named}`, which is no folder here",
            hint="pass the folder of its base as `base`",
            base_model=named,
        )
    if not Path(base).is_dir():
        raise ModelError(f"no folder `{base}` for the base of the adapter `{folder}`")
    if (Path(base) / "adapter_config.json").exists():
        raise ModelError(f"the base `{base}` is itself an adapter", hint="merge it first, and use the merged model")
    return Path(base)


def _find_task(folder: Path, config: dict[str, Any]) -> tuple[Task, Any]:
    """The task of an architecture, and the Auto class that loads it."""
    import transformers
    from transformers.models.auto import modeling_auto

    named = config.get("architectures")
    architecture = named[0] if isinstance(named, list) and named else None
    choices: list[tuple[Task, Any, Any]] = [
        ("text-generation", modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, transformers.AutoModelForCausalLM),
        (
            "text-classification",
            modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
            transformers.AutoModelForSequenceClassification,
        ),
    ]
    for task, names, auto in choices:
        known = {item for value in names.values() for item in ([value] if isinstance(value, str) else value)}
        if architecture in known:
            return task, auto
    what = f"the architecture `{architecture}`" if architecture else "no architecture"
    raise ModelError(
        f"`{folder / 'config.json'}` names {what}, which is neither a causal language model nor a text classifier",
        hint="these two can be loaded so far",
        architecture=architecture,
    )


def _load_model(folder: Path, dtype: str, device: str) -> tuple[Task, Any, Any]:
    """The task, the model in eval mode, audited by its keys and ties, and its torch dtype."""
    import torch
    from transformers import AutoConfig

    if not (folder / "config.json").exists():
        raise ModelError(f"`{folder}` is no model: it has no config.json", hint="give the folder that holds it")
    task, auto = _find_task(folder, _read_config(folder, "config.json"))
    with _translated(folder):
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        stored = str(config.dtype).removeprefix("torch.") if config.dtype is not None else _stored_dtype(folder)
        kind = getattr(torch, pick_dtype(dtype, stored, torch.device(device).type))
        model, info = auto.from_pretrained(
            folder,
            config=config,
            dtype=kind,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # so that they come back with names, and the audit refuses them
            output_loading_info=True,
        )
    audit_keys(str(folder), info["missing_keys"], info["unexpected_keys"], info["mismatched_keys"])
    if info.get("error_msgs"):
        raise ModelError(f"{folder}: {'; '.join(map(str, info['error_msgs'][:3]))}")
    audit_ties(str(folder), model)
    return task, model, kind


def _stored_dtype(folder: Path) -> str | None:
    """The dtype that most of the weights are in, where config.json does not say."""
    from modelyard.weights.headers import read_header

    names = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
    found: dict[str, int] = {}
    for path in sorted(folder.glob("*.safetensors")):
        for info in read_header(path).tensors.values():
            found[info.dtype] = found.get(info.dtype, 0) + info.end - info.start
    return names.get(max(found, key=lambda kind: found[kind])) if found else None


def _attach_adapter(model: Any, task: Task, folder: Path) -> Any:
    """The adapter in `folder` on `model`, every tensor of it accounted for; the PEFT model."""
    from peft import PeftConfig, get_peft_model, get_peft_model_state_dict

    from modelyard.weights.headers import read_header

    if task != "text-generation":
        raise ModelError(f"`{folder}`: adapters are loaded onto causal language models only so far")
    path = folder / "adapter_model.safetensors"
    if not path.exists():
        raise ModelError(f"`{folder}` has no adapter_model.safetensors")
    held = set(read_header(path).tensors)
    if not held:
        raise ModelError(f"`{path}` holds no tensor: the adapter would change nothing")
    with _translated(folder):
        config = PeftConfig.from_pretrained(str(folder))
        if config.is_prompt_learning:
            raise ModelError(f"`{folder}` is a prompt-learning adapter ({config.peft_type.value}): not loaded so far")
        config.inference_mode = True
        config.base_model_name_or_path = model.name_or_path  # the base that it is loaded on, wherever it was trained
        adapted = get_peft_model(model, config)
        expected = set(get_peft_model_state_dict(adapted, save_embedding_layers=False))
        if held <= expected:
            # Where names agree, look before PEFT does: it counts factors only, not modules that were trained whole.
            audit_keys(str(folder), expected - held, (), ())
        result = adapted.load_adapter(str(folder), "default", is_trainable=False)
    missing = {name.replace(".default", "") for name in result.missing_keys}
    audit_keys(str(folder), missing, result.unexpected_keys, ())
    return adapted


def _load_tokenizer(folder: Path, root: Path) -> Any:
    """The tokenizer that stands with the adapter if one does, else the base's."""
    from transformers import AutoTokenizer

    where = folder if any((folder / name).exists() for name in _TOKENIZER_FILES) else root
    if not any((where / name).exists() for name in _TOKENIZER_FILES):
        raise ModelError(f"`{where}` has no tokenizer", hint=f"it needs {' or '.join(_TOKENIZER_FILES[:2])}")
    with _translated(where):
        return AutoTokenizer.from_pretrained(where, local_files_only=True, trust_remote_code=False)


@contextmanager
def _translated(folder: Path) -> Iterator[None]:
    """What a library raises about a folder, as a `ModelError` that names the folder."""
    try:
        yield
    except YardError:
        raise
    except Exception as error:
        # Any library below may raise anything about a file that it cannot use: the cause is kept, and named.
        text = str(error).strip().split("\n")[0][:500] or type(error).__name__
        raise ModelError(f"`{folder}` cannot be loaded: {text}", hint=f"run `yard doctor {folder}`") from error
