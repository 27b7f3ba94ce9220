"""What makes a model's inputs: a tokenizer, image or video processor, feature extractor, or a processor of several parts.

Image processors run on Pillow where torchvision is not installed; one that exists for torchvision only is a named error.
Knows which files say that a preprocessor is there; reads no weights, and makes no input of anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelyard.errors import ModelError
from modelyard.weights.checks import check_config, read_json
from modelyard.weights.filenames import PREPROCESSOR, PREPROCESSOR_FILES, PROCESSOR, TOKENIZER_FILES, VIDEO_PREPROCESSOR
from modelyard.weights.files import FolderFiles
from modelyard.weights.loading.quantization import quiet_imports
from modelyard.weights.loading.sources import locate_files
from modelyard.weights.loading.translate import first_line, translated
from modelyard.weights.tasks import TaskInfo, find_task

if TYPE_CHECKING:
    from pathlib import Path

    from modelyard.weights.tasks import Preprocessor

__all__ = ["has_preprocessor", "load_preprocessor", "save_preprocessor"]

# What is missing, and the files of which any will do; the first two are those that a hint names.
_NEEDED: dict[str, tuple[str, tuple[str, ...]]] = {
    "tokenizer": ("no tokenizer", ("tokenizer.json", "tokenizer_config.json", *TOKENIZER_FILES)),
    "image-processor": ("no image processor", (PREPROCESSOR, PROCESSOR)),
    "feature-extractor": ("no feature extractor", (PREPROCESSOR, PROCESSOR)),
    "video-processor": ("no video processor", (VIDEO_PREPROCESSOR, PREPROCESSOR, PROCESSOR)),
    "processor": ("no processor", (PROCESSOR, PREPROCESSOR, VIDEO_PREPROCESSOR, *TOKENIZER_FILES)),
}


def load_preprocessor(source: Path | str, task: str | None = None) -> Any:
    """The preprocessor of a model, alone: nothing of the model is read.

    Args:
        source: The folder of the model, or one that holds the preprocessor's files only; or `hf://org/name`.
        task: What it is for; by default whatever the folder has, a processor of several parts first.

    Returns:
        An object of transformers; None for a task whose inputs are numbers already (time series).

    Raises:
        ModelError: There is none (`no_preprocessor`), it is broken, or it needs a package that is not installed
            (`needs_torchvision`, `needs_torchaudio`).
    """
    folder = locate_files(source)
    files = FolderFiles(folder)
    check_config(files)
    names = set(files.names())
    info = find_task(task) if task is not None else None
    kind: Preprocessor = info.preprocessor if info is not None else _kind_of(files, names)
    if kind == "none":
        return None
    if kind == "tokenizer" and info is not None and info.name in _ANY_INPUT and not names & set(_NEEDED[kind][1]):
        kind = _kind_of(files, names)  # hidden states of pictures or sounds
    words, needed = _NEEDED[kind]
    if not names & set(needed):
        raise ModelError(
            f"`{folder}` has {words}",
            code="no_preprocessor",
            hint=f'it needs {" or ".join(needed[:2])}; `allow=("preprocessor",)` loads the model without',
        )
    if _is_composite(files, names, info):
        return _load(folder, "AutoProcessor")
    if (
        kind == "video-processor"
        and PREPROCESSOR in names
        and (VIDEO_PREPROCESSOR not in names or not _has_torchvision())
    ):
        # Frames are images: an image processor does them one by one, and video processors exist for torchvision only.
        return _load(folder, "AutoImageProcessor")
    return _load(folder, _AUTO[kind])


# Tasks of models of every modality: what makes their inputs is what the folder has.
_ANY_INPUT = frozenset({"feature-extraction", "pretraining"})

_AUTO: dict[str, str] = {
    "tokenizer": "AutoTokenizer",
    "image-processor": "AutoImageProcessor",
    "feature-extractor": "AutoFeatureExtractor",
    "video-processor": "AutoVideoProcessor",
    "processor": "AutoProcessor",
}


def has_preprocessor(folder: Path) -> bool:
    """Whether a folder holds any preprocessor's files."""
    return any((folder / name).exists() for name in TOKENIZER_FILES | PREPROCESSOR_FILES)


def save_preprocessor(preprocessor: Any, folder: Path | str) -> None:
    """Write a preprocessor's files into `folder`."""
    with translated(folder):
        preprocessor.save_pretrained(folder)


def _kind_of(files: FolderFiles, names: set[str]) -> Preprocessor:
    """The kind that a folder's files say, for a caller that names no task."""
    if PROCESSOR in names:
        return "processor"
    if PREPROCESSOR in names:
        said = read_json(files, PREPROCESSOR)
        if names & TOKENIZER_FILES and "processor_class" in said:
            return "processor"
        return "image-processor" if "image_processor_type" in said else "feature-extractor"
    return "video-processor" if VIDEO_PREPROCESSOR in names else "tokenizer"


def _is_composite(files: FolderFiles, names: set[str], info: TaskInfo | None) -> bool:
    """Whether the folder holds a processor of several parts: those are used together whatever the task."""
    if PROCESSOR in names:
        return True
    if info is not None and info.preprocessor == "processor":
        return True
    if PREPROCESSOR in names and names & TOKENIZER_FILES:
        return "processor_class" in read_json(files, PREPROCESSOR)
    return False


def _has_torchvision() -> bool:
    from transformers.utils.import_utils import is_torchvision_available

    return bool(is_torchvision_available())


def _load(folder: Path, auto: str) -> Any:
    quiet_imports()
    import transformers

    kind: Any = getattr(transformers, auto)
    try:
        return kind.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, ImportError) as error:
        if "orchvision" in str(error):
            raise ModelError(
                f"`{folder}`: its image processor exists for torchvision only, which is not installed",
                code="needs_torchvision",
                hint="pip install torchvision",
            ) from error
        if "orchaudio" in str(error):
            raise ModelError(
                f"`{folder}`: its feature extractor needs torchaudio, which is not installed",
                code="needs_torchaudio",
                hint="pip install torchaudio",
            ) from error
        raise ModelError(
            f"`{folder}` has no {auto.removeprefix('Auto')} that can be loaded: {first_line(error)}",
            hint=f"run `yard doctor {folder}`",
        ) from error
    except Exception as error:
        # A tokenizer's file may fail in any way: the cause is kept, and named.
        raise ModelError(
            f"`{folder}` cannot be loaded: {first_line(error)}", hint=f"run `yard doctor {folder}`"
        ) from error
