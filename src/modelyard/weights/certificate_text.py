"""A certificate in words, for people: `summarize` in a few lines, `render` all of it. Knows values; measures nothing.

>>> from modelyard.weights.certificate import Certificate
>>> made = Certificate("convert", "cast/1", outputs={"model.safetensors": "ab" * 32}, matched={"cast": 3, "kept": 1})
>>> summarize(made)
['convert by cast/1: the same bits everywhere', 'cast 3, kept 1']
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from modelyard.weights.certificate import EVERYWHERE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from modelyard.weights.certificate import Certificate

__all__ = ["render", "summarize"]

_SHOWN = 8
_DETAILS = (
    "operation",
    "before",
    "after",
    "dtype",
    "kind",
    "rank",
    "alpha",
    "changed",
    "elements",
    "error",
    "captured",
)
"""What a line for one tensor says, in this order; the JSON has everything."""


def summarize(certificate: Certificate) -> list[str]:
    """What was done, how far the result is from what it was made from, and what to know: a few lines."""
    lines = [_title(certificate)]
    counts = _counts(certificate.matched)
    lines += [counts] if counts else []
    lines += _measured(certificate.checks)
    lines += [f"warning: {warning}" for warning in certificate.warnings]
    return [_printable(line) for line in lines]


def render(certificate: Certificate) -> list[str]:
    """All of it, but for long lists of files and tensors, of which the first are shown."""
    lines = [_title(certificate)]
    for title, text in (("options", _counts(certificate.options)), ("counts", _counts(certificate.matched))):
        lines += [f"{title}: {text}"] if text else []
    for role, digests in sorted(certificate.inputs.items()):
        lines += _digests(f"from {role}", digests)
    lines += _digests("wrote", certificate.outputs)
    if certificate.changes:
        lines.append(f"tensors: {len(certificate.changes)}")
        rows = [(_tensor(change), _details(change)) for change in certificate.changes[:_SHOWN]]
        lines += [f"  {line}" for line in _columns(rows)]
        lines += _more(len(certificate.changes), "tensors")
    if certificate.checks:
        lines += _measured(certificate.checks)
        lines += [f"  {line}" for line in _columns([_HEADINGS, *map(_check, certificate.checks)])]
    lines += [f"warning: {warning}" for warning in certificate.warnings]
    if certificate.machine:
        lines.append(f"machine: {_counts(certificate.machine)}")
    return [_printable(line) for line in lines]


_HEADINGS = ("check", "difference", "of", "allowed", "KL", "top-1", "tokens", "holds")


def _check(check: Mapping[str, Any]) -> tuple[str, ...]:
    scale, tolerance = check.get("scale"), check.get("tolerance")
    allowed = f"{tolerance * scale:.2g}" if tolerance is not None and scale is not None else "-"
    agreement = check.get("top1_agreement")
    return (
        str(check.get("name", "")),
        _figure(check.get("max_difference")),
        _figure(scale),
        allowed,
        _figure(check.get("kl")),
        "-" if agreement is None else f"{agreement:.1%}",
        f"{check.get('equal_tokens')} of {check['tokens']}" if check.get("tokens") else "-",
        _plain(check.get("holds", "-")),
    )


_ANSWERS = ("dequantized", "original")
"""The two answers to a quantized base, each with checks of its own (`merge.answers`)."""


def _measured(checks: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for all checks, or one for each answer."""
    parts: dict[str, list[Mapping[str, Any]]] = {}
    for check in checks:
        answer = str(check.get("name", "")).partition(": ")[0]
        parts.setdefault(answer if answer in _ANSWERS else "", []).append(check)
    return [f"measured{f' ({answer})' if answer else ''}: {_worst(some)}" for answer, some in parts.items()]


def _worst(checks: Sequence[Mapping[str, Any]]) -> str:
    """The largest difference of all checks, and how many tokens agree, in one sentence."""
    measured = [check for check in checks if check.get("scale") and not check.get("tokens")]
    parts = []
    if measured:
        share = [(check["max_difference"] / check["scale"], check) for check in measured]
        largest, worst = max(share, key=lambda pair: pair[0])
        parts.append(f"at most {largest:.2g} of the largest value ({worst['name']})")
        kl = [check["kl"] for check in measured if check.get("kl") is not None]
        top = [check["top1_agreement"] for check in measured if check.get("top1_agreement") is not None]
        parts += [f"KL {max(kl):.2g}"] if kl else []
        parts += [f"top-1 agrees {min(top):.1%}"] if top else []
    written = [check for check in checks if check.get("tokens")]
    if written:
        equal, tokens = sum(check["equal_tokens"] for check in written), sum(check["tokens"] for check in written)
        parts.append(f"{equal} of {tokens} greedy tokens agree")
    failed = [str(check.get("name")) for check in checks if check.get("holds") is False]
    parts += [f"beyond the tolerance: {', '.join(failed)}"] if failed else []
    return ", ".join(parts) or _all_hold(checks)


def _all_hold(checks: Sequence[Mapping[str, Any]]) -> str:
    return f"{checks[0].get('name')}: as it was" if len(checks) == 1 else f"{len(checks)} checks hold"


def _title(certificate: Certificate) -> str:
    by = f" by {certificate.method}" if certificate.method else ""
    where = "the same bits everywhere" if certificate.exactness == EVERYWHERE else f"exact on {certificate.exactness}"
    return f"{certificate.operation}{by}: {where}"


def _tensor(change: Mapping[str, Any]) -> str:
    return str(change.get("tensor", change.get("name", change.get("module", ""))))


def _details(change: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_plain(change[key])}" for key in _DETAILS if change.get(key) is not None)


def _digests(title: str, digests: Mapping[str, str]) -> list[str]:
    shown = [f"{title}: {name} {str(digest)[:12]}" for name, digest in list(digests.items())[:_SHOWN]]
    return shown + [f"{title}: {line.strip()}" for line in _more(len(digests), "files")]


def _more(count: int, what: str) -> list[str]:
    return [f"  and {count - _SHOWN} more {what}"] if count > _SHOWN else []


def _columns(rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Rows with their columns below each other."""
    cells = list(rows)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def _counts(values: Mapping[str, Any]) -> str:
    said = {key: value for key, value in values.items() if value not in (None, {}, 0, "") or value is False}
    return ", ".join(f"{key} {_plain(value)}" for key, value in said.items() if not isinstance(value, list))


def _figure(value: Any) -> str:
    return "-" if value is None else f"{value:.2g}"


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return " ".join(f"{key} {_plain(item)}" for key, item in value.items())
    return str(value)


def _printable(text: str) -> str:
    """One line as it may be printed: what is not printable is escaped."""
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
