"""Tasks that read pictures or sounds with text: rows of a batch are what they are alone; results are transformers' own."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from modelyard.errors import ModelError, RequestError
from modelyard.weights.load import loading
from modelyard.weights.media import Audio
from modelyard.weights.model import Model
from modelyard.weights.predict.media_results import Vectors
from modelyard.weights.predict.multimodal_retrieval import score_pages
from task_models import multimodal
from task_models.audio import RATE, sound, wav
from task_models.multimodal import BOXES, WORDS, ask
from task_models.opened_media import SAMPLES, assert_rows_alone, open_media, pipeline_of
from task_models.vision import clip, picture

CASES = [(task, kind) for task, row in multimodal.ARCHITECTURES.items() for kind in row]
GIVEN = Image.fromarray(picture(48, 40, seed=3))
OTHER = Image.fromarray(picture(33, 64, seed=4))


def rows_of(task: str, kind: str) -> list[Any]:
    """Three rows of pictures or sounds of different sizes with texts of different lengths."""
    if task == "visual-question-answering":
        return [
            {"image": GIVEN, "question": "where is my card?"},
            {"image": OTHER, "question": "one two three"},
            {"image": GIVEN, "question": "one?"},
        ]
    if task == "document-question-answering":
        return [
            {"image": GIVEN, "question": "what is the total?", "words": WORDS, "boxes": BOXES},
            {"image": OTHER, "question": "who?", "words": WORDS[:2], "boxes": BOXES[:2]},
            {"image": GIVEN, "question": "who has paid it?", "words": WORDS[1:], "boxes": BOXES[1:]},
        ]
    if task.startswith("zero-shot"):
        return [
            {"image": GIVEN, "candidate_labels": ["cat", "a lazy dog"]},
            {"image": OTHER, "candidate_labels": ["cat", "a lazy dog"]},
            {"image": OTHER, "candidate_labels": ["one", "two", "my card"]},
        ]
    if task == "retrieval":
        return [{"text": "where is my card?"}, {"image": OTHER}, {"text": "one", "images": [GIVEN, OTHER]}]
    if kind == "blip":
        return [
            {"image": GIVEN, "text": "where is"},
            {"image": OTHER, "text": "one two three"},
            {"image": OTHER, "text": "my"},
        ]
    if task == "any-to-any":
        return [
            ask({"type": "audio", "audio": wav(sound(0.5))}, {"type": "text", "text": "one"}),
            ask({"type": "text", "text": "where is my card?"}),
            ask(
                {"type": "audio", "audio": Audio(sound(0.3, 900), RATE)},
                {"type": "audio", "audio": Audio(sound(0.8, 300), RATE)},
                {"type": "text", "text": "two"},
            ),
        ]
    return [
        ask({"type": "image", "image": GIVEN}, {"type": "text", "text": "where is my card?"}),
        ask({"type": "text", "text": "one two"}),
        ask({"type": "image", "image": OTHER}, {"type": "image", "image": GIVEN}, {"type": "text", "text": "three"}),
    ]


def options_of(task: str) -> dict[str, Any]:
    """Short answers."""
    return {"max_new_tokens": 12} if task in ("image-text-to-text", "any-to-any") else {}


@pytest.mark.parametrize(("task", "kind"), CASES)
def test_each_row_of_a_batch_is_what_it_is_alone(task: str, kind: str) -> None:
    """Different pictures, sounds and texts in one call: no row knows of the others."""
    found = assert_rows_alone(open_media(task, kind), rows_of(task, kind), **options_of(task))
    assert repr(found[0]) != repr(found[2])


@pytest.mark.parametrize(("task", "kind"), CASES)
def test_the_callers_modes_stay_as_they_were(task: str, kind: str) -> None:
    """Gradients stay on and the random state is untouched."""
    model = open_media(task, kind)
    before = torch.random.get_rng_state()
    model.predict(rows_of(task, kind)[:1], **options_of(task))
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("kind", list(multimodal.ARCHITECTURES["zero-shot-image-classification"]))
def test_zero_shot_labels_are_the_pipelines(kind: str) -> None:
    """Softmax over the labels for CLIP, a sigmoid for each for SigLIP."""
    model = open_media("zero-shot-image-classification", kind)
    labels = ["cat", "dog", "a lazy fox"]
    theirs = pipeline_of("zero-shot-image-classification", model)(GIVEN, candidate_labels=labels)
    ours = model.predict(GIVEN, candidate_labels=labels)
    assert [one.label for one in ours.labels] == [one["label"] for one in theirs]
    assert [one.score for one in ours.labels] == pytest.approx([one["score"] for one in theirs], rel=1e-4, abs=1e-5)
    assert ours == model.predict({"image": GIVEN, "candidate_labels": labels})
    assert model.predict(GIVEN, candidate_labels=labels, hypothesis_template="{}") != ours


def test_zero_shot_objects_are_the_pipelines() -> None:
    """Labels, scores and boxes, each label asked for itself."""
    model = open_media("zero-shot-object-detection")
    labels = ["cat", "a lazy dog"]
    theirs = pipeline_of("zero-shot-object-detection", model)(GIVEN, candidate_labels=labels, threshold=0.3)
    ours = model.predict(GIVEN, candidate_labels=labels, threshold=0.3).objects
    assert len(ours) == len(theirs) > 0
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.label == other["label"]
        assert mine.score == pytest.approx(other["score"], rel=1e-4, abs=1e-5)
        box = [int(side) for side in (mine.box.left, mine.box.top, mine.box.right, mine.box.bottom)]
        assert box == [other["box"][side] for side in ("xmin", "ymin", "xmax", "ymax")]


def test_grounded_objects_are_what_the_models_processor_decodes(tmp_path: Any) -> None:
    """Grounding DINO reads all labels as one text, each ended by a full stop."""
    import transformers

    folder = multimodal.save_grounding_dino(tmp_path / "model")
    with loading():
        kind: Any = transformers.AutoModelForZeroShotObjectDetection
        make: Any = transformers.AutoProcessor
        model = Model(kind.from_pretrained(folder), make.from_pretrained(folder), "zero-shot-object-detection", folder)
    given = model.processor(images=GIVEN, text="cat. a lazy dog.", return_tensors="pt")
    with torch.no_grad():
        outputs = model.model(**given)
    theirs = model.processor.post_process_grounded_object_detection(
        outputs, given["input_ids"], threshold=0.2, text_threshold=0.2, target_sizes=[(40, 48)]
    )[0]
    ours = model.predict(GIVEN, candidate_labels=["cat", "a lazy dog"], threshold=0.2).objects
    wanted = sorted(zip(theirs["scores"].tolist(), theirs["text_labels"], strict=True), reverse=True)
    assert [one.label for one in ours] == [label for _, label in wanted]
    assert [one.score for one in ours] == pytest.approx([score for score, _ in wanted], rel=1e-4)
    assert ours
    assert_rows_alone(model, rows_of("zero-shot-object-detection", "grounding-dino"), threshold=0.2)


def test_labels_that_are_none_are_refused() -> None:
    """No labels, an empty one, one that is too long, a template without a place, fewer answers than one."""
    model = open_media("zero-shot-image-classification")
    for row, options, words in (
        (GIVEN, {}, "row 0 has no labels"),
        ({"image": GIVEN, "candidate_labels": ["cat", " "]}, {}, "row 0 has no labels"),
        (GIVEN, {"candidate_labels": ["cat " * 40]}, "tokens and the model takes 24"),
        (GIVEN, {"candidate_labels": ["cat"], "hypothesis_template": "photo"}, "hypothesis_template"),
        (GIVEN, {"candidate_labels": ["cat"], "top_k": 0}, "top_k"),
    ):
        with pytest.raises(RequestError, match=words):
            model.predict(row, **options)
    assert model.predict(GIVEN, candidate_labels=["cat", "dog"], hypothesis_template="{a photo} of {}").label in {
        "cat",
        "dog",
    }


def test_a_classifiers_answers_are_its_likeliest_labels() -> None:
    """ViLT, whose pipeline transformers 5 dropped: a sigmoid for each answer, the first five."""
    model = open_media("visual-question-answering")
    given = model.processor(images=GIVEN, text="where is my card?", return_tensors="pt")
    with torch.no_grad():
        scores = model.model(**given).logits[0].sigmoid().tolist()
    ours = model.predict({"image": GIVEN, "question": "where is my card?"})
    assert {one.label: one.score for one in ours.labels} == {
        name: pytest.approx(score, rel=1e-4, abs=1e-5) for name, score in zip(("yes", "no", "two"), scores, strict=True)
    }
    assert ours.score == pytest.approx(max(scores), rel=1e-4, abs=1e-5)
    with pytest.raises(RequestError, match=r"row 0 has .* tokens"):
        model.predict({"image": GIVEN, "question": "card " * 60})
    with pytest.raises(RequestError, match="row 0 has no `question`"):
        model.predict({"image": GIVEN})
    with pytest.raises(RequestError, match="`top_k` is 0"):
        model.predict({"image": GIVEN, "question": "where is my card?"}, top_k=0)


def test_a_generating_models_answer_is_what_it_writes() -> None:
    """BLIP: the text of its own `generate`."""
    model = open_media("visual-question-answering", "blip")
    given = model.processor(images=GIVEN, text="where is my card?", return_tensors="pt")
    with torch.no_grad():
        made = model.model.generate(**given, max_new_tokens=20, do_sample=False)[0]
    ours = model.predict({"image": GIVEN, "question": "where is my card?"})
    assert ours.text == model.tokenizer.decode(made, skip_special_tokens=True).strip()
    assert ours.token_ids == tuple(made.tolist())


def thousandths(boxes: Any) -> list[list[int]]:
    """Boxes in pixels of a page of 48 x 40 as thousandths of it."""
    return [[int(1000 * a / 48), int(1000 * b / 40), int(1000 * c / 48), int(1000 * d / 40)] for a, b, c, d in boxes]


def test_answers_in_documents_are_the_pipelines() -> None:
    """LayoutLM: words and score for the same words and boxes (in thousandths of the page)."""
    model = open_media("document-question-answering", "layoutlm")
    pipe = pipeline_of("document-question-answering", model, tokenizer=model.tokenizer, image_processor=None)
    held = list(zip(WORDS, thousandths(BOXES), strict=True))
    theirs = pipe(image=GIVEN, question="what is the total?", word_boxes=held)[0]
    ours = model.predict({"image": GIVEN, "question": "what is the total?", "words": WORDS, "boxes": BOXES}, top_k=3)
    assert (ours.text, ours.start, ours.end) == (theirs["answer"], theirs["start"], theirs["end"])
    assert ours.score == pytest.approx(theirs["score"], rel=1e-4, abs=1e-5)
    assert len(ours.alternatives) == 2
    assert ours.score >= ours.alternatives[0].score >= ours.alternatives[1].score


def test_answers_in_documents_see_the_page() -> None:
    """LayoutLMv3: every span scored by brute force with the picture in; the pipeline of 5.23 leaves the picture out."""
    model = open_media("document-question-answering", "layoutlmv3")
    made = model.tokenizer("what is the total?", WORDS, boxes=thousandths(BOXES), return_tensors="pt")
    pixels = model.processor.image_processor(images=GIVEN, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        outputs = model.model(**made, pixel_values=pixels)
    inside = [at for at, text in enumerate(made.sequence_ids(0)) if text == 1]
    used = [0, *inside]
    start, end = (logits[0, used].softmax(-1).tolist() for logits in (outputs.start_logits, outputs.end_logits))
    spans = [
        (start[first] * end[last], made.word_ids(0)[used[first]], made.word_ids(0)[used[last]])
        for first in range(1, len(used))
        for last in range(first, min(first + 15, len(used)))
    ]
    wanted = max(spans)
    row = {"image": GIVEN, "question": "what is the total?", "words": WORDS, "boxes": BOXES}
    ours = model.predict(row)
    assert (ours.start, ours.end) == wanted[1:]
    assert ours.score == pytest.approx(wanted[0], rel=1e-4, abs=1e-5)
    assert model.predict({**row, "image": Image.new("RGB", (48, 40))}).score != pytest.approx(ours.score, rel=1e-3)


def test_a_document_without_words_is_refused() -> None:
    """No text is recognized here: the code and the hint say what to give; boxes must fit words and page."""
    model = open_media("document-question-answering")
    with pytest.raises(RequestError, match="no text is recognized") as caught:
        model.predict({"image": GIVEN, "question": "what?"})
    assert caught.value.code == "needs_words"
    for change, words in (
        ({"boxes": BOXES[:1]}, "4 words and 1 boxes"),
        ({"boxes": [(0, 0, 900, 10)] * 4}, "not on the page"),
        ({"image": None}, "no `image`"),
        ({"words": WORDS * 40, "boxes": BOXES * 40}, "tokens and the model takes"),
    ):
        with pytest.raises(RequestError, match=words):
            model.predict({"image": GIVEN, "question": "what?", "words": WORDS, "boxes": BOXES, **change})
    many = {"image": GIVEN, "question": "what?", "words": WORDS * 40, "boxes": BOXES * 40}
    assert model.predict(many, truncation="end").start < 40


@pytest.mark.parametrize("kind", ["llava", "gemma3"])
def test_answers_about_pictures_are_the_pipelines(kind: str) -> None:
    """Greedy text for one picture, two pictures, and none."""
    model = open_media("image-text-to-text", kind)
    pipe = pipeline_of("image-text-to-text", model, processor=model.processor)
    for conversation in rows_of("image-text-to-text", kind):
        theirs = pipe(text=conversation, max_new_tokens=10, do_sample=False, return_full_text=False)
        ours = model.predict(conversation, max_new_tokens=10)
        assert ours.text == theirs[0]["generated_text"]
        assert ours.text


def test_captions_continue_their_text() -> None:
    """BLIP has no chat template: a row is a picture and the text that is continued; the answer is the model's own."""
    model = open_media("image-text-to-text", "blip")
    given = model.processor(images=GIVEN, text="where is", return_tensors="pt")
    with torch.no_grad():
        made = model.model.generate(**given, max_new_tokens=8, do_sample=False)[0]
    ours = model.predict({"image": GIVEN, "text": "where is"}, max_new_tokens=8)
    assert ours.text == model.tokenizer.decode(made, skip_special_tokens=True)


def test_answers_about_sounds_are_the_models_own() -> None:
    """Qwen2-Audio: the tokens of its own `generate` for the template's text and the same samples."""
    model = open_media("any-to-any")
    text = model.processor.apply_chat_template(
        ask({"type": "audio"}, {"type": "text", "text": "one two"}), add_generation_prompt=True, tokenize=False
    )
    given = model.processor(text=[text], audio=[sound()], sampling_rate=RATE, return_tensors="pt")
    with torch.no_grad():
        made = model.model.generate(**given, max_new_tokens=10, do_sample=False)[0, given["input_ids"].shape[1] :]
    ours = model.predict(
        ask({"type": "audio", "audio": Audio(sound(), RATE)}, {"type": "text", "text": "one two"}), max_new_tokens=10
    )
    assert ours.token_ids == tuple(made.tolist())
    other = ask({"type": "audio", "audio": Audio(sound(0.5, 2_000, seed=9), RATE)}, {"type": "text", "text": "one two"})
    assert model.predict(other, max_new_tokens=10).token_ids != ours.token_ids


def test_drawn_answers_come_from_their_seed() -> None:
    """One seed gives one answer, in a batch or alone; another seed another; beams are not greedy."""
    model = open_media("image-text-to-text")
    row = SAMPLES["image-text-to-text"]
    drawn = model.predict([row, row], temperature=1.5, seed=3, max_new_tokens=10)
    assert drawn[0] == drawn[1] == model.predict(row, temperature=1.5, seed=3, max_new_tokens=10)
    assert drawn[0] != model.predict(row, temperature=1.5, seed=4, max_new_tokens=10)
    for options, words in (
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"num_beams": 0}, "num_beams"),
    ):
        with pytest.raises(RequestError, match=words):
            model.predict(row, **options)


def test_pictures_come_from_files_and_never_from_a_network(tmp_path: Any) -> None:
    """A path and its bytes are the picture; a URL, and the data URL of an API, are refused with the row."""
    model = open_media("image-text-to-text")
    path = tmp_path / "picture.png"
    GIVEN.save(path)
    wanted = model.predict(ask({"type": "image", "image": GIVEN}), max_new_tokens=8)
    for source in (path, str(path), path.read_bytes()):
        assert model.predict(ask({"type": "image", "image": source}), max_new_tokens=8) == wanted
    data = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    for source in ("https://example.org/cat.png", data):
        with pytest.raises(RequestError, match=r"row 0: .*URL"):
            model.predict(ask({"type": "image", "image": source}))


def test_a_video_is_pictures_to_a_model_of_pictures() -> None:
    """LLaVA takes no videos: a video is its frames, in its place, at most `frames` of them, the first and the last among them."""
    model = open_media("image-text-to-text")
    film = [picture(seed=seed) for seed in range(11)]
    text = {"type": "text", "text": "where is my card?"}

    def said(frames: list[Any], **options: Any) -> Any:
        return model.predict(ask(*({"type": "image", "image": frame} for frame in frames), text), **options)

    row = ask({"type": "video", "video": film}, text)
    assert model.predict(row, frames=3, max_new_tokens=6) == said([film[0], film[5], film[10]], max_new_tokens=6)
    short = ask({"type": "video", "video": film[:2]}, text)
    assert model.predict(short, max_new_tokens=6) == said(film[:2], max_new_tokens=6)
    with pytest.raises(RequestError, match="`frames`"):
        model.predict(row, frames=0)


def test_a_model_of_sounds_takes_no_video() -> None:
    """Where a model takes no pictures either, a video is refused by the row."""
    with pytest.raises(RequestError, match="row 0 has videos, and this model takes none"):
        open_media("any-to-any").predict(ask({"type": "video", "video": list(clip())}))


def test_conversations_that_are_none_are_refused() -> None:
    """Roles, parts and contents that do not exist, parts that the model does not take, more than the context."""
    model = open_media("image-text-to-text")
    for row, words in (
        ([{"role": "robot", "content": "hi"}], "message 0 has no role"),
        ([{"role": "user", "content": []}], "no content"),
        ([{"role": "user", "content": [{"type": "imge", "image": GIVEN}]}], "'imge'"),
        ([{"role": "user", "content": [{"type": "image"}]}], "'image'"),
        (ask({"type": "audio", "audio": wav(sound())}), "has audio, and this model takes none"),
        (ask({"type": "text", "text": "card " * 300}), "the context is 256"),
        ({"image": GIVEN, "txt": "hi"}, "`txt` means nothing here"),
        ({}, "is empty"),
        (3, "is a int"),
    ):
        with pytest.raises(RequestError, match=words):
            model.predict(row)


def test_vectors_of_queries_and_pages_score_as_the_library_scores() -> None:
    """ColPali: the vectors are the model's, and the scores those of its processor."""
    model = open_media("retrieval")
    pages = [GIVEN, OTHER]
    query = model.processor.process_queries(text=["where is my card?"], return_tensors="pt")
    with torch.no_grad():
        asked = model.model(**query).embeddings
        held = [
            model.model(**model.processor.process_images(images=[page], return_tensors="pt")).embeddings[0]
            for page in pages
        ]
    wanted = model.processor.score_retrieval([asked[0]], held)[0].tolist()
    ranking = model.predict({"text": "where is my card?", "images": pages})
    assert ranking.scores == pytest.approx(wanted, rel=1e-4)
    assert ranking.order == tuple(np.argsort(-np.asarray(wanted), kind="stable").tolist())
    vectors = [model.predict({"image": page}) for page in pages]
    np.testing.assert_allclose(vectors[0].values, held[0].numpy(), atol=1e-5)
    assert score_pages(model.predict("where is my card?"), vectors) == pytest.approx(ranking.scores)
    assert isinstance(vectors[0], Vectors)
    for row in ({"text": "a", "image": GIVEN}, {"images": pages}, {"text": "a", "images": []}, {}):
        with pytest.raises(RequestError, match="row 0 has"):
            model.predict(row)


def test_a_model_of_another_kind_takes_no_queries() -> None:
    """A preprocessor without queries is named."""
    held = open_media("zero-shot-image-classification")
    with pytest.raises(ModelError, match="knows no queries"):
        Model(held.model, held.processor, "retrieval", held.folder).predict("where?")
