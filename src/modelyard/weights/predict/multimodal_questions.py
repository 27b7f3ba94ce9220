"""Questions about pictures (visual question answering) and about documents (words with their places).

transformers 5 has no pipeline for the former any more: the answer of a classifier (ViLT) is its likeliest label, that of
a generating model (BLIP) what it writes. Documents come with their words and boxes: no text is recognized here.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelyard.errors import ModelError, RequestError
from modelyard.weights.media import read_image
from modelyard.weights.predict.audio_synthesis import seeded
from modelyard.weights.predict.batching import forward, refuse_windows, to_device
from modelyard.weights.predict.bounds import check_counts
from modelyard.weights.predict.encoding import check_text, core, find_limit, find_tokenizer
from modelyard.weights.predict.labels import rank
from modelyard.weights.predict.media_results import Alternative, DocumentAnswer
from modelyard.weights.predict.results import Classification, Text
from modelyard.weights.predict.vision_inputs import (
    Prepared,
    generating,
    named_row,
    prepare_image,
    preparing,
    read_fields,
    run_batches,
    tensors_of,
)

if TYPE_CHECKING:
    from modelyard.weights.model import Model
    from modelyard.weights.predict.batching import PredictOptions

__all__ = ["AskOptions", "ReadOptions", "answer_document", "answer_picture"]


@dataclass(frozen=True, slots=True)
class AskOptions:
    """What `visual-question-answering` takes.

    Attributes:
        top_k: Answers to give, the likeliest first (classifiers).
        max_new_tokens: Most tokens of an answer that is written (generating models).
    """

    top_k: int | None = 5
    max_new_tokens: int = 20

    def __post_init__(self) -> None:
        check_counts(self, "top_k", "max_new_tokens")


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """What `document-question-answering` takes.

    Attributes:
        top_k: Answers to give, the likeliest first.
        longest: Most tokens of an answer.
    """

    top_k: int = 1
    longest: int = 15

    def __post_init__(self) -> None:
        check_counts(self, "top_k", "longest")


def answer_picture(model: Model, rows: list[Any], options: PredictOptions) -> list[Classification | Text]:
    """The answer to each `{"image", "question"}`: labels of a classifier, text of a generating model.

    Raises:
        RequestError: A wrong option, a row that is none, or a question that is too long.
    """
    chosen = options.take(AskOptions)
    refuse_windows(options)
    items = [_prepare_question(model, value, row) for row, value in enumerate(rows)]
    inner = core(model.model)
    if inner.can_generate():
        return [_write(model, item, chosen) for item in items]

    def decode(outputs: Any, batch: list[Prepared]) -> list[Classification | Text]:
        # Answers are judged each for itself: several may be right (as the models were trained).
        scores = outputs.logits.float().sigmoid().tolist()
        return [rank(row, inner.config.id2label, chosen.top_k) for row, _ in zip(scores, batch, strict=True)]

    if inner.config.model_type != "vilt":
        return run_batches(model, items, options.batch_size, decode)
    found: list[Classification | Text] = []
    for item in items:  # ViLT draws the patches that it looks at: alone and from one seed, each row sees the same ones
        with seeded(0):
            found += run_batches(model, [item], 1, decode)
    return found


def answer_document(model: Model, rows: list[Any], options: PredictOptions) -> list[DocumentAnswer]:
    """The answer to each `{"question", "words", "boxes", "image"}`: words of the document.

    `boxes` are (left, top, right, bottom) of each word in pixels of `image`; without one, in thousandths of the page.

    Raises:
        RequestError: A wrong option, a row that is none, or one without words (code `needs_words`).
    """
    chosen = options.take(ReadOptions)
    refuse_windows(options)
    return [_answer_one(model, value, row, chosen, options.truncation) for row, value in enumerate(rows)]


def _prepare_question(model: Model, value: Any, row: int) -> Prepared:
    fields = read_fields(value, row, ["image", "question"])
    question = check_text(fields["question"], row, "`question`")
    with named_row(row):
        picture = read_image(fields["image"])
    with preparing(model, row):
        made = model.processor(images=picture, text=question, return_tensors="pt")
    tensors = tensors_of(made)
    _check_length(model, tensors["input_ids"].shape[-1], row)
    return Prepared(row, tensors, (picture.height, picture.width))


def _check_length(model: Model, tokens: int, row: int) -> None:
    limit = find_limit(model)
    if limit is not None and tokens > limit:
        raise RequestError(
            f"row {row} has {tokens} tokens and the model takes {limit}",
            hint="a shorter question",
            field="inputs",
            row=row,
        )


def _write(model: Model, item: Prepared, chosen: AskOptions) -> Text:
    inner = core(model.model)
    with generating(model):
        made = inner.generate(**to_device(model, item.tensors), max_new_tokens=chosen.max_new_tokens, do_sample=False)
    ids = made[0].tolist()
    return Text(find_tokenizer(model).decode(ids, skip_special_tokens=True).strip(), tuple(ids))


def _answer_one(model: Model, value: Any, row: int, chosen: ReadOptions, truncation: str) -> DocumentAnswer:
    document = _read_document(value, row)
    words = document[1]
    made = _encode(model, document, row)
    tensors = {name: tensor for name, tensor in tensors_of(made).items() if name in _taken(model)}
    inside, numbers = _places(model, made, row, truncation)
    if len(inside) < tensors["input_ids"].shape[-1]:
        tensors = {
            name: tensor[:, : len(inside)] if name != "pixel_values" else tensor for name, tensor in tensors.items()
        }
    outputs = forward(model, tensors)
    first = find_tokenizer(model).cls_token_id
    nothing = [token == first for token in tensors["input_ids"][0].tolist()]
    spans = _spans(outputs, (inside, nothing, numbers), chosen)
    answers = [
        Alternative(" ".join(words[start : end + 1]), score, start, end) for score, start, end in spans[: chosen.top_k]
    ]
    if not answers:
        return DocumentAnswer("", 0.0, None, None)
    best = answers[0]
    return DocumentAnswer(best.text, best.score, best.start, best.end, tuple(answers[1:]))


def _read_document(value: Any, row: int) -> tuple[str, list[str], list[list[int]], Any]:
    fields = read_fields(value, row, ["question"], ["image", "words", "boxes"])
    question = check_text(fields["question"], row, "`question`")
    if fields.get("words") is None or fields.get("boxes") is None:
        raise RequestError(
            f"row {row} has no `words` with `boxes`, and no text is recognized here",
            code="needs_words",
            hint='run an OCR program, and give {"words": [...], "boxes": [(left, top, right, bottom), ...]}',
            field="inputs",
            row=row,
        )
    words = [check_text(word, row, "a word") for word in fields["words"]]
    boxes = [tuple(float(number) for number in box) for box in fields["boxes"]]
    if not words or len(words) != len(boxes) or any(len(box) != 4 for box in boxes):
        raise RequestError(
            f"row {row} has {len(words)} words and {len(boxes)} boxes of four numbers", field="inputs", row=row
        )
    picture = None
    if fields.get("image") is not None:
        with named_row(row):
            picture = read_image(fields["image"])
    width, height = (1000, 1000) if picture is None else picture.size
    scaled = []
    for left, top, right, bottom in boxes:
        box = [1000 * left / width, 1000 * top / height, 1000 * right / width, 1000 * bottom / height]
        if not (0 <= box[0] <= box[2] <= 1000 and 0 <= box[1] <= box[3] <= 1000):
            raise RequestError(
                f"row {row}: the box {(left, top, right, bottom)} is not on the page", field="inputs", row=row
            )
        scaled.append([int(number) for number in box])
    return question, words, scaled, picture


def _taken(model: Model) -> frozenset[str]:
    return frozenset(inspect.signature(core(model.model).forward).parameters)


def _encode(model: Model, document: tuple[str, list[str], list[list[int]], Any], row: int) -> Any:
    """Question and words as the model takes them, `bbox` included; the encoding knows which word a token is of."""
    import torch

    question, words, boxes, picture = document

    tokenizer = find_tokenizer(model)
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(f"the tokenizer of `{model.folder}` does not say which word a token is of", hint="a fast one")
    with preparing(model, row):
        if "boxes" in inspect.signature(tokenizer.__call__).parameters:  # LayoutLMv2, LayoutLMv3, LayoutXLM
            made = tokenizer(question, words, boxes=list(boxes), return_tensors="pt")
        else:
            made = tokenizer(question.split(), words, is_split_into_words=True, return_tensors="pt")
            edge = [1000, 1000, 1000, 1000]
            ids = made["input_ids"][0].tolist()
            places = zip(ids, made.sequence_ids(0), made.word_ids(0), strict=True)
            made["bbox"] = torch.tensor(
                [
                    [
                        boxes[word] if sequence == 1 else edge if token == tokenizer.sep_token_id else [0, 0, 0, 0]
                        for token, sequence, word in places
                    ]
                ]
            )
    if "pixel_values" in _taken(model):
        if picture is None:
            raise RequestError(f"row {row} has no `image`, and this model looks at it", field="inputs", row=row)
        item = prepare_image(model, picture, row)
        made["pixel_values"] = item.tensors["pixel_values"]
    return made


def _places(model: Model, made: Any, row: int, truncation: str) -> tuple[list[bool], list[int]]:
    """Which tokens are of the document, as many as the model takes, and of which word each is."""
    sequence, words = made.sequence_ids(0), made.word_ids(0)
    limit = find_limit(model)
    if limit is not None and len(sequence) > limit:
        if truncation != "end":
            raise RequestError(
                f"row {row} has {len(sequence)} tokens and the model takes {limit}",
                hint='fewer words, or truncation="end" to cut what is too much',
                field="inputs",
                row=row,
            )
        sequence, words = sequence[:limit], words[:limit]
    return [at == 1 for at in sequence], [0 if word is None else word for word in words]


def _spans(
    outputs: Any, tokens: tuple[list[bool], list[bool], list[int]], chosen: ReadOptions
) -> list[tuple[float, int, int]]:
    """(score, first word, last word) of the likeliest spans, each pair of words once.

    `tokens` says of each token whether it is of the document, whether it stands for no answer, and of which word it is.
    """
    import torch

    inside, nothing, words = tokens
    keep = torch.tensor(inside)  # behind the text, LayoutLMv3 has logits for the patches of the picture too
    judged = keep | torch.tensor(nothing)  # that there is no answer takes its share of the probability
    start, end = (
        logits[0, : len(inside)].float().cpu().masked_fill(~judged, -torch.inf).softmax(-1)
        for logits in (outputs.start_logits, outputs.end_logits)
    )
    scores = torch.outer(start, end)
    places = torch.arange(len(words))
    apart = places[None, :] - places[:, None]
    allowed = keep[:, None] & keep[None, :] & (apart >= 0) & (apart < chosen.longest)
    scores = scores.masked_fill(~allowed, 0.0)
    found: dict[tuple[int, int], float] = {}
    flat = scores.flatten()
    for at in flat.argsort(descending=True, stable=True)[: chosen.top_k * 20].tolist():
        score = float(flat[at])
        pair = (words[at // len(words)], words[at % len(words)])
        if score > 0 and pair not in found:
            found[pair] = score
    return [(score, start_word, end_word) for (start_word, end_word), score in found.items()]
