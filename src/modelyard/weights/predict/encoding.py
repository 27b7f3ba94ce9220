"""Texts become batches of tensors: encoded, held to the model's length by the caller's policy, padded.

Tokens are cut and windows are laid over what the tokenizer gave for the whole text, so the tokenizer's own settings never
change: two threads may predict with one tokenizer. Rows are padded on the right with the padding token that the *model*
is configured for; models that padding changes, or that have no such token, get rows of one length at a time.

Knows tokens and offsets; knows no task and no result.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from modelyard.errors import ModelError, RequestError
from modelyard.weights.predict.batching import batches

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from modelyard.weights.model import Model
    from modelyard.weights.predict.batching import PredictOptions

__all__ = [
    "Encoded",
    "check_text",
    "collate",
    "core",
    "encode",
    "find_limit",
    "find_room",
    "find_tokenizer",
    "hold",
    "plan_batches",
    "read_pair",
]

_EQUAL_LENGTH = frozenset({"canine", "convbert", "fnet", "funnel", "mra", "nystromformer", "reformer", "xlnet", "yoso"})
"""Model types in which padding reaches the tokens beside it (convolutions, Fourier mixing, pooling, chunks), or that read
the last position whatever stands there. Of the 98 types with a text classifier that can be made small, seven say something
else of a padded row (docs/log.md); `mra` and `reformer` read in chunks and are kept with them."""

_RELATIVE = frozenset(
    {"t5", "mt5", "umt5", "xlnet", "switch_transformers", "longt5", "pix2struct", "udop", "pop2piano"}
)
"""Model types whose config has a length that their weights do not: positions are relative."""


_TOGETHER = 512
"""Texts that are tokenized in one call."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """The tokens of one row, or of one window of it.

    Attributes:
        row: Of the input.
        ids: Token ids, special tokens included.
        extra: Further inputs of the model that have one value for each token (`token_type_ids`), by name.
        sequence: For each token 0 or 1 (first or second text), None for a special token that the tokenizer added.
        offsets: For each token where it stands in its text; None where the tokenizer does not know.
        words: For each token the number of its word in its text, None for special tokens; None as `offsets`.
        positions: For each token its place in the whole encoding, which tells the windows of a row apart.
    """

    row: int
    ids: tuple[int, ...]
    extra: Mapping[str, tuple[int, ...]]
    sequence: tuple[int | None, ...]
    offsets: tuple[tuple[int, int], ...] | None
    words: tuple[int | None, ...] | None
    positions: tuple[int, ...]

    def keep(self, places: Sequence[int]) -> Encoded:
        """The tokens at `places` alone."""
        return replace(
            self,
            ids=tuple(self.ids[at] for at in places),
            extra={name: tuple(values[at] for at in places) for name, values in self.extra.items()},
            sequence=tuple(self.sequence[at] for at in places),
            offsets=None if self.offsets is None else tuple(self.offsets[at] for at in places),
            words=None if self.words is None else tuple(self.words[at] for at in places),
            positions=tuple(self.positions[at] for at in places),
        )


def core(model: Any) -> Any:
    """The model of transformers inside a PEFT model."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def find_tokenizer(model: Model) -> Any:
    """The model's tokenizer.

    Raises:
        ModelError: It has none.
    """
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise ModelError(f"`{model.folder}` has no tokenizer", hint="it needs tokenizer.json or tokenizer_config.json")
    return tokenizer


def find_limit(model: Model) -> int | None:
    """Most tokens that the model takes at once, special tokens included; None where nothing bounds it.

    The smaller of what its position embeddings hold (RoBERTa and its kin leave their first ones unused) and what the
    tokenizer was saved with.
    """
    from modelyard.weights.generation.defaults import read_context

    inner = core(model.model)
    said = getattr(model.tokenizer, "model_max_length", None)
    limits = [said] if isinstance(said, int) and 0 < said < 10**9 else []
    # DeBERTa without absolute positions reads on beyond the length in its config, as the types above do.
    if inner.config.model_type not in _RELATIVE and getattr(inner.config, "position_biased_input", True):
        context = read_context(inner.config)
        if context is not None:
            limits.append(context - _unused_positions(inner))
    return min(limits) if limits else None


def find_room(model: Model) -> int | None:
    """Most tokens that the decoder of an encoder-decoder has positions for; None where positions are relative."""
    from modelyard.weights.generation.defaults import read_context

    config = core(model.model).config
    return None if config.model_type in _RELATIVE else read_context(config)


def _unused_positions(inner: Any) -> int:
    """Positions below the padding index, which models that number tokens from there never use."""
    for name, module in inner.named_modules():
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            return int(module.padding_idx) + 1
    return 0


def check_text(value: Any, row: int, what: str = "text") -> str:
    """`value` if it is a text, of valid Unicode.

    Raises:
        RequestError: It is neither; the message names the row.
    """
    if not isinstance(value, str):
        raise RequestError(f"row {row}: {what} is a {type(value).__name__}, no text", field="inputs", row=row)
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise RequestError(
                f"row {row}: {what} holds a lone surrogate, which is no character",
                hint="give valid Unicode",
                field="inputs",
                row=row,
            ) from error
    return value


def read_pair(value: Any, row: int, names: tuple[str, str], *, optional: bool = False) -> tuple[str, str | None]:
    """Two texts from `{"first": ..., "second": ...}` or a pair; where `optional`, one text stands for itself.

    Raises:
        RequestError: It is neither; the message names the row and the keys.
    """
    if optional and isinstance(value, str):
        return check_text(value, row), None
    if isinstance(value, Mapping):
        unknown = sorted(set(value) - set(names))
        if not unknown and names[0] in value and (optional or names[1] in value):
            second = value.get(names[1])
            first = check_text(value[names[0]], row, f"`{names[0]}`")
            return first, None if second is None and optional else check_text(second, row, f"`{names[1]}`")
    elif isinstance(value, list | tuple) and len(value) == 2:
        return check_text(value[0], row, f"`{names[0]}`"), check_text(value[1], row, f"`{names[1]}`")
    wanted = f'{{"{names[0]}": ..., "{names[1]}": ...}}'
    raise RequestError(
        f"row {row} is no {'text and no ' if optional else ''}pair of texts",
        hint=f"give {'a text or ' if optional else ''}{wanted}",
        field="inputs",
        row=row,
    )


def encode(tokenizer: Any, texts: Sequence[tuple[str, str | None]], rows: Sequence[int] | None = None) -> list[Encoded]:
    """The tokens of each text or pair, as the tokenizer encodes it for a model, whole.

    Args:
        tokenizer: Of transformers, fast or slow.
        texts: One or two texts each.
        rows: The row that each belongs to; by default its place.

    Raises:
        RequestError: A text has no tokens at all.
    """
    numbers = list(range(len(texts)) if rows is None else rows)
    fast = bool(getattr(tokenizer, "is_fast", False))
    found: list[Encoded] = []
    for part in batches(list(zip(numbers, texts, strict=True)), _TOGETHER):
        found += _encode_fast(tokenizer, part) if fast else [_encode_slow(tokenizer, *item) for item in part]
    for item in found:
        if not item.ids:
            raise RequestError(
                f"row {item.row} has no tokens", hint="give a text that is not empty", field="inputs", row=item.row
            )
    return found


def _encode_fast(tokenizer: Any, part: Sequence[tuple[int, tuple[str, str | None]]]) -> list[Encoded]:
    """Several texts at once where all are alone or all are pairs, as nearly always; else one by one."""
    pairs = {second is not None for _, (_, second) in part}
    if len(pairs) > 1:
        return [item for each in part for item in _encode_fast(tokenizer, [each])]
    firsts, seconds = [first for _, (first, _) in part], [second for _, (_, second) in part]
    given = tokenizer(firsts, seconds if pairs == {True} else None, return_offsets_mapping=True, verbose=False)
    found = []
    for at, (row, _) in enumerate(part):
        ids = tuple(given["input_ids"][at])
        values = {name: column[at] for name, column in given.items()}
        found.append(
            Encoded(
                row=row,
                ids=ids,
                extra=_read_extra(values, len(ids)),
                sequence=tuple(given.sequence_ids(at)),
                offsets=tuple((int(start), int(end)) for start, end in values["offset_mapping"]),
                words=tuple(given.word_ids(at)),
                positions=tuple(range(len(ids))),
            )
        )
    return found


def _encode_slow(tokenizer: Any, row: int, texts: tuple[str, str | None]) -> Encoded:
    """A tokenizer in Python knows its special tokens and no more: the first text has as many tokens as it has alone."""
    first, second = texts
    given = tokenizer(first, second, return_special_tokens_mask=True, verbose=False)
    ids = tuple(given["input_ids"])
    alone = len(tokenizer(first, add_special_tokens=False, verbose=False)["input_ids"])
    sequence: list[int | None] = []
    seen = 0
    for special in given["special_tokens_mask"]:
        sequence.append(None if special else int(seen >= alone))
        seen += not special
    return Encoded(row, ids, _read_extra(given, len(ids)), tuple(sequence), None, None, tuple(range(len(ids))))


def _read_extra(given: Any, size: int) -> dict[str, tuple[int, ...]]:
    ours = {"input_ids", "attention_mask", "special_tokens_mask", "offset_mapping"}
    return {
        name: tuple(values)
        for name, values in given.items()
        if name not in ours and isinstance(values, list) and len(values) == size
    }


def hold(
    items: Iterable[Encoded],
    limit: int | None,
    options: PredictOptions,
    *,
    cut: int | None = None,
    stride: int | None = None,
) -> list[Encoded]:
    """`items`, each as long as the model takes: as they are, cut, or as windows, as `options.truncation` says.

    Args:
        items: Whole encodings.
        limit: Most tokens; None for any number.
        options: Whose `truncation` decides.
        cut: Which text may be cut: 0 or 1; None cuts the longer of the two.
        stride: Tokens that neighbouring windows share; by default a quarter of what fits into one.

    Raises:
        RequestError: A row is too long and nothing may be cut, or nothing would be left of the text.
    """
    held: list[Encoded] = []
    for item in items:
        if limit is None or len(item.ids) <= limit:
            held.append(item)
        elif options.truncation == "error":
            raise RequestError(
                f"row {item.row} has {len(item.ids)} tokens and the model takes {limit}",
                hint='shorten it, or pass truncation="end" to cut what is too much',
                field="inputs",
                row=item.row,
                tokens=len(item.ids),
                limit=limit,
            )
        elif options.truncation == "windows":
            held += _windows(item, limit, cut or 0, stride)
        else:
            held.append(_shorten(item, limit, options.truncation, cut))
    return held


def _shorten(item: Encoded, limit: int, where: str, cut: int | None) -> Encoded:
    places: dict[int, list[int]] = {0: [], 1: []}
    for at, sequence in enumerate(item.sequence):
        if sequence is not None:
            places[sequence].append(at)
    drop: set[int] = set()
    for _ in range(len(item.ids) - limit):
        longer = int(len(places[1]) > len(places[0])) if cut is None else cut
        if len(places[longer]) <= 1:
            raise _no_room(item, limit)
        drop.add(places[longer].pop(-1 if where == "end" else 0))
    return item.keep([at for at in range(len(item.ids)) if at not in drop])


def _windows(item: Encoded, limit: int, cut: int, stride: int | None) -> list[Encoded]:
    body = [at for at, sequence in enumerate(item.sequence) if sequence == cut]
    room = limit - (len(item.ids) - len(body))
    if room < 1:
        raise _no_room(item, limit)
    shared = room // 4 if stride is None else stride
    if not 0 <= shared < room:
        raise RequestError(
            f"`stride` is {shared} and a window has room for {room} tokens of row {item.row}",
            hint=f"0 to {room - 1}",
            field="stride",
        )
    windows = []
    for start in range(0, max(len(body) - shared, 1), room - shared):
        inside = set(body[start : start + room])
        windows.append(item.keep([at for at, sequence in enumerate(item.sequence) if sequence != cut or at in inside]))
    return windows


def _no_room(item: Encoded, limit: int) -> RequestError:
    return RequestError(
        f"row {item.row} has {len(item.ids)} tokens, the model takes {limit}, and what may not be cut fills them",
        hint="shorten the other text of the row",
        field="inputs",
        row=item.row,
    )


def plan_batches(model: Model, items: Sequence[Encoded], size: int, *, pooled: bool = False) -> Iterator[list[int]]:
    """Places of `items` in batches of at most `size`, long ones first; where padding changes answers, of one length each.

    Args:
        model: The model that will read them.
        items: What is batched.
        size: Rows of a batch, at most.
        pooled: The class finds its last token by the padding token, and takes one row at a time without one
            (classifiers on decoders).
    """
    inner = core(model.model)
    order = sorted(range(len(items)), key=lambda at: -len(items[at].ids))
    if pooled and inner.config.get_text_config().pad_token_id is None:
        yield from batches(order, 1)
    elif inner.config.model_type in _EQUAL_LENGTH:
        groups: dict[int, list[int]] = defaultdict(list)
        for at in order:
            groups[len(items[at].ids)].append(at)
        for group in groups.values():
            yield from batches(group, size)
    else:
        yield from batches(order, size)


def collate(model: Model, items: Sequence[Encoded]) -> dict[str, Any]:
    """One batch of int64 tensors (rows, tokens), padded on the right: ids, attention mask, and what else the model takes."""
    import torch

    width = max(len(item.ids) for item in items)
    taken = _parameters(model)
    padding = _padding_id(model)

    def pad(values: Iterable[tuple[int, ...]], filler: int) -> Any:
        return torch.tensor([[*row, *[filler] * (width - len(row))] for row in values], dtype=torch.long)

    batch = {"input_ids": pad([item.ids for item in items], padding)}
    if "attention_mask" in taken:
        batch["attention_mask"] = pad([(1,) * len(item.ids) for item in items], 0)
    for name in items[0].extra:
        if name in taken:
            batch[name] = pad([item.extra[name] for item in items], 0)
    return batch


def _parameters(model: Model) -> frozenset[str]:
    return frozenset(inspect.signature(core(model.model).forward).parameters)


def _padding_id(model: Model) -> int:
    """What the model itself takes for padding, else what the tokenizer writes, else 0, which the mask hides."""
    config = core(model.model).config.get_text_config()
    for value in (getattr(config, "pad_token_id", None), getattr(model.tokenizer, "pad_token_id", None)):
        if isinstance(value, int) and value >= 0:
            return value
    return 0
