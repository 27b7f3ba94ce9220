"""Which attention a model computes with, checked for its architecture and this machine.

Names: `eager`, `sdpa`, `flex`, `flash` (the newest flash attention that is installed), or transformers' own
(`flex_attention`, `flash_attention_2`, ...). A kernel of the Hub is refused: it would be fetched and run. Knows classes and
configurations, no weights.
"""

from __future__ import annotations

from typing import Any

from modelyard.errors import RequestError, near_match
from modelyard.weights.loading import compiled

__all__ = ["NAMES", "available", "check", "refuse_part"]

NAMES = ("eager", "sdpa", "flex", "flash")
"""The short names; None leaves the choice to transformers (sdpa where the architecture has it)."""

_FLASH = {"flash_attention_4": "4", "flash_attention_3": "3", "flash_attention_2": "2"}
_ALIASES = {"flex": "flex_attention"}
_FLAGS = {"sdpa": "_supports_sdpa", "flex_attention": "_supports_flex_attn", "flash": "_supports_flash_attn"}


def check(name: str | None, config: Any, *, model_class: Any = None, device: str = "cpu") -> str | None:
    """The name that transformers has for the attention `name`, if this architecture and machine can do it.

    Args:
        name: See the module; None is no choice.
        config: The configuration of transformers.
        model_class: The class that is built; by default the one that the configuration names.
        device: Where the model will be: flash attention runs on no CPU.

    Raises:
        RequestError: Unknown, not installed, not for this device, or not done by this architecture
            (`no_attention`); the hint has what can be had instead.
    """
    if name is None:
        return None
    kind = model_class if model_class is not None else _class_of(config)
    can = available(config, model_class=kind, device=device)
    if "/" in name or name.startswith("paged|"):
        raise _refusal(
            name, "would fetch and run code from a hub" if "/" in name else "is for a server of its own", can
        )
    wanted = _ALIASES.get(name, name)
    if wanted == "flash":
        wanted = next((full for full in _FLASH if full in can), "flash")
    if wanted in can:
        return wanted
    raise _refusal(name, _reason(wanted, kind, device, can), can)


def refuse_part(name: str, config: Any, cause: BaseException, *, model_class: Any, device: str = "cpu") -> RequestError:
    """The refusal of an attention that a part of a composite model cannot do, though the whole claims it."""
    can = [other for other in available(config, model_class=model_class, device=device) if other != name]
    return _refusal(name, f"is not done by a part of {_title(model_class)}: {str(cause)[:200]}", can)


def available(config: Any, *, model_class: Any = None, device: str = "cpu") -> list[str]:
    """Every attention that this architecture can be computed with on this machine, by transformers' names."""
    kind = model_class if model_class is not None else _class_of(config)
    if kind is None:
        return ["eager"]
    made = ["eager"]
    made += [name for name in ("sdpa", "flex_attention") if _supports(kind, name) and not _lacks(name, device)]
    if device.partition(":")[0] != "cpu" and _supports(kind, "flash"):
        made += [name for name in _FLASH if _installed(name)]
    return made


def _class_of(config: Any) -> Any:
    import transformers

    named = getattr(config, "architectures", None)
    return getattr(transformers, str(named[0]), None) if named else None


def _supports(kind: Any, name: str) -> bool:
    return bool(getattr(kind, _FLAGS[name], False))


def _installed(name: str) -> bool:
    from transformers.utils import import_utils

    asked: Any = getattr(import_utils, f"is_flash_attn_{_FLASH[name]}_available", None)
    return bool(asked is not None and asked())


def _lacks(name: str, device: str) -> str | None:
    """What this machine lacks for an attention that torch has: flex is compiled at its first call."""
    if name == "flex_attention" and compiled.find_compiler(device) is None:
        return "needs a C++ compiler, and there is none on the PATH"
    return None


def _reason(wanted: str, kind: Any, device: str, can: list[str]) -> str:
    if wanted == "flash" or wanted in _FLASH:
        if not _supports(kind, "flash"):
            return f"is not done by {_title(kind)}"
        if device.partition(":")[0] == "cpu":
            return "does not run on a CPU"
        return "needs the package `flash_attn`, which is not installed or not for this device"
    if wanted in _FLAGS:
        return (_supports(kind, wanted) and _lacks(wanted, device)) or f"is not done by {_title(kind)}"
    meant = near_match(wanted, [*NAMES, *can])
    return f"is no attention; did you mean `{meant}`?" if meant else "is no attention"


def _refusal(name: str, why: str, can: list[str]) -> RequestError:
    return RequestError(
        f"the attention `{name}` {why}",
        code="no_attention",
        hint=f"available for this model here: {', '.join(can)}",
        field="attention",
        available=can,
    )


def _title(kind: Any) -> str:
    return f"`{kind.__name__}`" if kind is not None else "this architecture"
