"""Tiny model folders for every text task: random weights, hidden size 32, tokenizers trained on the spot.

`ARCHITECTURES[task][model type]` writes a folder as users have it; `MODELS[task]` is the first of them, `SAMPLES[task]` an
input of `predict` for it, and `REASONS[task]` why a task has none here.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import tiny_models

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TEXTS = [
    "my card has not arrived and I want a refund",
    "where is my card",
    "the quick brown fox jumps over the lazy dog near Paris",
    "Anna Smith works at Acme Corporation in Berlin, Germany.",
    "one two three four five six seven eight nine ten",
    "translate English to German: the house is small",
]
LONG = "Anna Smith works at Acme Corporation in Berlin. The quick brown fox jumps over the lazy dog near Paris. " * 3
TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
LABELS = ["refund", "card", "other"]
NLI = ["contradiction", "neutral", "entailment"]
TABLE = {"actor": ["brad pitt", "george clooney", "anna smith"], "age": ["56", "59", "41"], "films": ["87", "69", "12"]}


def heads(names: list[str]) -> dict[str, Any]:
    """`id2label` and `label2id` of a configuration."""
    return {"id2label": dict(enumerate(names)), "label2id": {name: at for at, name in enumerate(names)}}


@cache
def wordpiece() -> dict[str, int]:
    """A WordPiece vocabulary of BERT, lower case."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[EMPTY]"]
    alphabet = list("abcdefghijklmnopqrstuvwxyz0123456789?.,:;!'-")
    trainer = trainers.WordPieceTrainer(
        vocab_size=160, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    found: dict[str, int] = backend.get_vocab()
    return found


@cache
def bytepairs(*special: str) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A byte-level BPE vocabulary and its merges, as GPT-2 and RoBERTa have them."""
    import json

    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=380,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    merges = json.loads(backend.to_str())["model"]["merges"]
    return backend.get_vocab(), [tuple(pair) for pair in merges]


@cache
def unigram(*special: str) -> list[tuple[str, float]]:
    """A Unigram vocabulary as SentencePiece models have it: pieces with their log probabilities."""
    import json

    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    backend = Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=180,
        special_tokens=list(special),
        unk_token="<unk>",
        initial_alphabet=list("abcdefghijklmnopqrstuvwxyz.,:?"),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    return [(piece, score) for piece, score in json.loads(backend.to_str())["model"]["vocab"]]


def bert_tokenizer(kind: str = "Bert", **values: Any) -> Any:
    """BERT's own tokenizer, or that of a model of its kind."""
    import transformers

    values = {"model_max_length": 64, **values}
    return getattr(transformers, f"{kind}Tokenizer")(vocab=dict(wordpiece()), **values)


def roberta_tokenizer() -> Any:
    """RoBERTa's tokenizer: byte-level, the padding token is number 1."""
    from transformers import RobertaTokenizer

    vocab, merges = bytepairs("<s>", "<pad>", "</s>", "<unk>", "<mask>")
    make: Any = RobertaTokenizer
    return make(vocab=vocab, merges=merges, model_max_length=64)


def gpt2_tokenizer(**values: Any) -> Any:
    """GPT-2's tokenizer, which has no padding token."""
    from transformers import GPT2Tokenizer

    vocab, merges = bytepairs("<|endoftext|>", "<pad>")
    make: Any = GPT2Tokenizer
    return make(vocab=vocab, merges=merges, model_max_length=64, **values)


def t5_tokenizer() -> Any:
    """T5's tokenizer."""
    from transformers import T5Tokenizer

    return T5Tokenizer(vocab=unigram("<pad>", "</s>", "<unk>"), extra_ids=0, model_max_length=64)


def save(folder: Path, name: str, config: Any, *preprocessors: Any) -> Path:
    """Write a model of the class `name` with seeded random weights, and its preprocessors, to `folder`."""
    import torch
    import transformers

    torch.manual_seed(0)
    model: Any = getattr(transformers, name)(config)
    with torch.no_grad():  # the usual 0.02 makes every output nearly equal, and wrong code would pass
        for values in model.parameters():
            if values.ndim > 1 and values.std() < 0.1:
                values.mul_(6)
    model.eval().save_pretrained(folder)
    for preprocessor in preprocessors:
        preprocessor.save_pretrained(folder)
    return folder


BERT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}


def config(kind: str, **values: Any) -> Any:
    """A configuration of transformers."""
    import transformers

    return getattr(transformers, f"{kind}Config")(**values)


def _bert(name: str, kind: str = "Bert", tokenizer: str = "Bert", **values: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        made = bert_tokenizer(tokenizer)
        return save(folder, name, config(kind, vocab_size=len(made), pad_token_id=0, **{**BERT, **values}), made)

    return write


def _roberta(name: str, **values: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        made = roberta_tokenizer()
        shape = {**BERT, "max_position_embeddings": 66, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
        return save(folder, name, config("Roberta", vocab_size=len(made), **{**shape, **values}), made)

    return write


def _gpt2(name: str, padded: bool = True, **values: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        made = gpt2_tokenizer(pad_token="<pad>") if padded else gpt2_tokenizer()
        ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1 if padded else None}
        shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
        return save(folder, name, config("GPT2", vocab_size=len(made), **shape, **ids, **values), made)

    return write


def _t5(name: str, **values: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        made = t5_tokenizer()
        shape = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
        ids = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
        return save(folder, name, config("T5", vocab_size=len(made), **shape, **ids, **values), made)

    return write


BART = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
}


def _bart(name: str, **values: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        made = roberta_tokenizer()
        ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
        ids["forced_eos_token_id"] = 2
        return save(folder, name, config("Bart", vocab_size=len(made), **BART, **ids, **values), made)

    return write


def save_mbart(folder: Path) -> Path:
    """mBART, whose tokenizer writes the language of a text."""
    from transformers import MBartTokenizer

    made = MBartTokenizer(vocab=unigram("<s>", "<pad>", "</s>", "<unk>"), src_lang="en_XX", model_max_length=64)
    ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    return save(folder, "MBartForConditionalGeneration", config("MBart", vocab_size=len(made), **BART, **ids), made)


def _xlnet(name: str, **values: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        from transformers import XLNetTokenizer

        special = ["<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>", "<eod>", "<eop>"]
        made = XLNetTokenizer(vocab=unigram(*special), model_max_length=64)
        shape = {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}
        return save(folder, name, config("XLNet", vocab_size=len(made), pad_token_id=5, **shape, **values), made)

    return write


def _funnel(name: str, **values: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        special = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]"}
        made = bert_tokenizer("Funnel", mask_token="[MASK]", **special)
        shape = {
            "d_model": 32,
            "n_head": 4,
            "d_head": 8,
            "d_inner": 48,
            "block_sizes": [1, 1, 1],
            "num_decoder_layers": 1,
        }
        return save(folder, name, config("Funnel", vocab_size=len(made), pad_token_id=0, **shape, **values), made)

    return write


def save_clip_text(folder: Path) -> Path:
    """The text tower of CLIP."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    backend = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    vocab = {piece: at for at, piece in enumerate([*alphabet, *(f"{char}</w>" for char in alphabet)])}
    vocab |= {"<|startoftext|>": len(vocab), "<|endoftext|>": len(vocab) + 1}
    made = CLIPTokenizer(vocab=vocab, merges=[], model_max_length=64)
    ids = {"bos_token_id": len(vocab) - 2, "eos_token_id": len(vocab) - 1, "pad_token_id": len(vocab) - 1}
    return save(folder, "CLIPTextModel", config("CLIPText", vocab_size=len(vocab), **BERT, **ids), made)


def save_tapas(folder: Path) -> Path:
    """TAPAS, which selects cells of a table and says what to do with them."""
    from transformers import TapasTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    vocab = sorted(wordpiece(), key=wordpiece().__getitem__)
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n", encoding="utf-8")
    made = TapasTokenizer(str(folder / "vocab.txt"), model_max_length=64)
    labels = {0: "NONE", 1: "SUM", 2: "AVERAGE", 3: "COUNT"}
    shape = {"num_aggregation_labels": 4, "aggregation_labels": labels, "no_aggregation_label_index": 0}
    values = config("Tapas", vocab_size=len(vocab), type_vocab_sizes=[3, 16, 16, 2, 16, 16, 10], **BERT, **shape)
    return save(folder, "TapasForQuestionAnswering", values, made)


def save_llama(folder: Path) -> Path:
    """The Llama of the other tests."""
    return tiny_models.save_model(folder)


def save_jev(folder: Path) -> Path:
    """A decision model: a head on a Qwen2, with the chat tokenizer of the other tests."""
    text = config(
        "Qwen2",
        vocab_size=tiny_models.VOCABULARY + 8,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
    )
    return save(folder, "JevForDecision", config("Jev", hidden_size=32, text_config=text), tiny_models.make_tokenizer())


ARCHITECTURES: dict[str, dict[str, Callable[[Path], Path]]] = {
    "text-generation": {"llama": save_llama, "gpt2": _gpt2("GPT2LMHeadModel", padded=False)},
    "text-classification": {
        "bert": _bert("BertForSequenceClassification", **heads(LABELS)),
        "roberta": _roberta("RobertaForSequenceClassification", **heads(LABELS)),
        "gpt2": _gpt2("GPT2ForSequenceClassification", **heads(LABELS)),
        "gpt2-unpadded": _gpt2("GPT2ForSequenceClassification", padded=False, **heads(LABELS)),
        "bart": _bart("BartForSequenceClassification", **heads(NLI)),
        "xlnet": _xlnet("XLNetForSequenceClassification", **heads(LABELS)),
        "convbert": _bert("ConvBertForSequenceClassification", "ConvBert", embedding_size=32, **heads(LABELS)),
        "fnet": _bert("FNetForSequenceClassification", "FNet", **heads(LABELS)),
        "funnel": _funnel("FunnelForSequenceClassification", **heads(LABELS)),
    },
    "token-classification": {
        "bert": _bert("BertForTokenClassification", **heads(TAGS)),
        "roberta": _roberta("RobertaForTokenClassification", **heads(TAGS)),
    },
    "question-answering": {
        "bert": _bert("BertForQuestionAnswering"),
        "roberta": _roberta("RobertaForQuestionAnswering"),
        "bart": _bart("BartForQuestionAnswering"),
    },
    "multiple-choice": {"bert": _bert("BertForMultipleChoice"), "roberta": _roberta("RobertaForMultipleChoice")},
    "next-sentence-prediction": {"bert": _bert("BertForNextSentencePrediction")},
    "fill-mask": {"bert": _bert("BertForMaskedLM"), "roberta": _roberta("RobertaForMaskedLM")},
    "text2text-generation": {
        "t5": _t5("T5ForConditionalGeneration"),
        "bart": _bart("BartForConditionalGeneration"),
        "mbart": save_mbart,
    },
    "table-question-answering": {"tapas": save_tapas},
    "feature-extraction": {
        "bert": _bert("BertModel"),
        "gpt2": _gpt2("GPT2Model", padded=False),
        "bart": _bart("BartModel"),
        "t5": _t5("T5Model"),
    },
    "text-encoding": {
        "t5": _t5("T5EncoderModel"),
        "clip_text_model": save_clip_text,
        "roberta": _roberta("RobertaModel"),
    },
    "pretraining": {
        "bert": _bert("BertForPreTraining"),
        "electra": _bert("ElectraForPreTraining", "Electra", embedding_size=32),
        "t5": _t5("T5ForConditionalGeneration"),
    },
    "decision": {"jev": save_jev},
}

MODELS: dict[str, Callable[[Path], Path]] = {task: next(iter(row.values())) for task, row in ARCHITECTURES.items()}
"""Task to what writes a tiny model folder for it."""

SAMPLES: dict[str, Any] = dict.fromkeys(ARCHITECTURES, TEXTS[0]) | {
    "question-answering": {"question": "where does anna work?", "context": TEXTS[3]},
    "multiple-choice": {"prompt": TEXTS[0], "choices": ["my card", "the lazy dog", "ten"]},
    "next-sentence-prediction": {"text": TEXTS[0], "next": TEXTS[1]},
    "fill-mask": "where is my [MASK]",
    "table-question-answering": {"table": TABLE, "query": "how many films has anna smith?"},
    "decision": {
        "state": "my card has not arrived",
        "questions": {
            "refund": {"type": "noul", "instructions": "is a refund wanted?"},
            "topic": {"type": "choice", "instructions": "about what?", "criteria": {"card": "a card", "dog": "a dog"}},
            "anger": {"type": "score", "instructions": "how angry?", "criteria": ["calm", "cross", "furious"]},
        },
    },
}
"""Task to an input of `predict`."""

REASONS: dict[str, str] = {}
"""Task to why no model of it can be made here."""
