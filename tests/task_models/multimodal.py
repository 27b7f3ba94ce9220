"""Tiny model folders for every task that reads images or sounds together with text: random weights, hidden size 16 to 32.

As `task_models.vision`: `ARCHITECTURES`, `MODELS`, `SAMPLES`, `REASONS`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from task_models.pictures import SIZE, SWIN, VIT, config, picture, processor, save, square
from task_models.sounds import RATE, sound, wav
from tiny_models import TEXT, make_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ANSWERS = {0: "yes", 1: "no", 2: "two"}
HEADS = {"id2label": ANSWERS, "label2id": {name: at for at, name in ANSWERS.items()}}
TEMPLATE = (
    "{%- for message in messages -%}{{- '<|' ~ message.role ~ '|>' -}}"
    "{%- if message.content is string -%}{{- message.content -}}{%- else -%}"
    "{%- for part in message.content -%}"
    "{%- if part.type == 'image' -%}{{- 'IMAGE' -}}"
    "{%- elif part.type == 'audio' -%}{{- 'AUDIO' -}}"
    "{%- elif part.type == 'text' -%}{{- part.text -}}{%- endif -%}"
    "{%- endfor -%}{%- endif -%}{{- '<|end|>' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)
TEXT_MODEL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def words(kind: str = "BertTokenizer", **options: Any) -> Any:
    """A word-piece tokenizer of letters and a few words, which frames a text with [CLS] and [SEP]."""
    import transformers

    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,?!'"
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    names += sorted({word for text in TEXT for word in text.split() if len(word) > 1})
    return getattr(transformers, kind)(vocab={name: at for at, name in enumerate(names)}, **options)


def subwords(*added: str, **named: str) -> Any:
    """The byte-level tokenizer of `tiny_models` with more special tokens; `named` ones become its attributes."""
    import transformers
    from tokenizers import Tokenizer

    plain = make_tokenizer(None)
    make: Any = transformers.PreTrainedTokenizerFast
    return make(
        tokenizer_object=Tokenizer.from_str(plain.backend_tokenizer.to_str()),
        eos_token="<|end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|system|>", "<|user|>", "<|assistant|>", *added],
        **named,
    )


def save_vilt(folder: Path) -> Path:
    """ViLT for visual question answering."""
    import transformers

    tokenizer = words()
    values = config(
        "ViltConfig", **VIT, vocab_size=len(tokenizer), max_position_embeddings=40, max_image_length=-1, **HEADS
    )
    make: Any = transformers.ViltProcessor
    images = processor("Vilt", size={"shortest_edge": SIZE}, size_divisor=8)
    return save(folder, "ViltForQuestionAnswering", values, make(images, tokenizer))


def _blip_config(tokenizer: Any) -> Any:
    return config(
        "BlipConfig",
        text_config={
            **TEXT_MODEL,
            "vocab_size": len(tokenizer),
            "encoder_hidden_size": 16,
            "projection_dim": 16,
            "max_position_embeddings": 40,
            "bos_token_id": tokenizer.cls_token_id,
            "eos_token_id": tokenizer.sep_token_id,
            "sep_token_id": tokenizer.sep_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={**VIT, "projection_dim": 16},
        projection_dim=16,
        image_text_hidden_size=16,
    )


def _blip(name: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        import transformers

        tokenizer = words()
        make: Any = transformers.BlipProcessor
        made = make(square("Blip"), tokenizer)
        return save(folder, name, _blip_config(tokenizer), made)

    return write


LAYOUT = {**TEXT_MODEL, "max_position_embeddings": 80, "max_2d_position_embeddings": 1024, "pad_token_id": 0}


def save_layoutlm(folder: Path) -> Path:
    """LayoutLM for document question answering: words and boxes, no pixels."""
    tokenizer = words(model_max_length=80)
    values = config("LayoutLMConfig", **LAYOUT, vocab_size=len(tokenizer))
    return save(folder, "LayoutLMForQuestionAnswering", values, tokenizer)


def save_layoutlmv3(folder: Path) -> Path:
    """LayoutLMv3 for document question answering: words, boxes and pixels."""
    import transformers
    from tokenizers import pre_tokenizers

    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    make_tokens: Any = transformers.LayoutLMv3Tokenizer
    tokenizer = make_tokens(vocab={name: at for at, name in enumerate(names)}, merges=[], model_max_length=120)
    values = config(
        "LayoutLMv3Config",
        **{**LAYOUT, "pad_token_id": 1, "max_position_embeddings": 130},
        vocab_size=len(tokenizer),
        coordinate_size=2,
        shape_size=4,
        input_size=SIZE,
        patch_size=8,
        bos_token_id=0,
        eos_token_id=2,
    )
    images = square("LayoutLMv3", apply_ocr=False)
    make: Any = transformers.LayoutLMv3Processor
    return save(folder, "LayoutLMv3ForQuestionAnswering", values, make(images, tokenizer))


def _clip_text(tokenizer: Any, positions: int = 24) -> dict[str, Any]:
    return {
        **TEXT_MODEL,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": positions,
        "bos_token_id": tokenizer.cls_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def save_clip(folder: Path) -> Path:
    """CLIP for zero-shot image classification."""
    import transformers

    tokenizer = words(model_max_length=24)
    values = config("CLIPConfig", text_config=_clip_text(tokenizer), vision_config=VIT, projection_dim=16)
    images = processor("CLIP", size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    make: Any = transformers.CLIPProcessor
    return save(folder, "CLIPModel", values, make(images, tokenizer))


def save_siglip(folder: Path) -> Path:
    """SigLIP for zero-shot image classification: independent probabilities, texts padded to their full length."""
    import transformers

    tokenizer = words(model_max_length=64)
    values = config("SiglipConfig", text_config=_clip_text(tokenizer, 64), vision_config=VIT)
    make: Any = transformers.SiglipProcessor
    return save(folder, "SiglipModel", values, make(square("Siglip"), tokenizer))


def save_owlvit(folder: Path) -> Path:
    """OWL-ViT for zero-shot object detection."""
    import transformers

    tokenizer = words(model_max_length=16)
    text = {**_clip_text(tokenizer, 16)}
    values = config("OwlViTConfig", text_config=text, vision_config=VIT, projection_dim=16)
    images = processor(
        "OwlViT", size={"height": SIZE, "width": SIZE}, crop_size={"height": SIZE, "width": SIZE}, do_center_crop=False
    )
    make: Any = transformers.OwlViTProcessor
    return save(folder, "OwlViTForObjectDetection", values, make(images, tokenizer))


def save_grounding_dino(folder: Path) -> Path:
    """Grounding DINO for zero-shot object detection: all labels in one text."""
    import transformers

    tokenizer = words(model_max_length=64)
    stages = ["stage1", "stage2", "stage3"]
    values = config(
        "GroundingDinoConfig",
        backbone_config=config(
            "SwinConfig", **{**SWIN, "depths": [1, 1, 1], "num_heads": [2, 2, 2]}, out_features=stages
        ),
        text_config={"model_type": "bert", **TEXT_MODEL, "vocab_size": len(tokenizer), "max_position_embeddings": 64},
        d_model=32,  # normed in 32 groups
        encoder_layers=1,
        decoder_layers=2,  # one would tie its box head to nothing
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_queries=6,
        num_feature_levels=3,
        max_text_len=64,
    )
    images = processor("GroundingDino", size={"shortest_edge": SIZE, "longest_edge": 64})
    make: Any = transformers.GroundingDinoProcessor
    return save(folder, "GroundingDinoForObjectDetection", values, make(images, tokenizer))


LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": None,
    "eos_token_id": 1,
    "pad_token_id": 0,
}


def save_llava(folder: Path) -> Path:
    """LLaVA: CLIP's eyes on a Llama."""
    import transformers

    tokenizer = subwords("<image>")
    values = config(
        "LlavaConfig",
        vision_config={"model_type": "clip_vision_model", **VIT, "projection_dim": 16},
        text_config={**LLAMA, "vocab_size": len(tokenizer)},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy="default",
        vision_feature_layer=-1,
        image_seq_length=16,
    )
    images = processor("CLIP", size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    make: Any = transformers.LlavaProcessor
    made = make(
        images,
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE.replace("IMAGE", "<image>"),
    )
    return save(folder, "LlavaForConditionalGeneration", values, made)


def save_gemma3(folder: Path) -> Path:
    """Gemma 3: SigLIP's eyes on a decoder with windows."""
    import transformers

    tokenizer = subwords(boi_token="<start_of_image>", eoi_token="<end_of_image>", image_token="<image_soft_token>")
    ids = tokenizer.convert_tokens_to_ids
    values = config(
        "Gemma3Config",
        vision_config={**VIT, "vision_use_head": False},
        text_config={
            **{key: value for key, value in LLAMA.items() if key != "model_type"},
            "vocab_size": len(tokenizer),
            "head_dim": 8,
            "sliding_window": 64,
        },
        mm_tokens_per_image=4,
        boi_token_index=ids("<start_of_image>"),
        eoi_token_index=ids("<end_of_image>"),
        image_token_index=ids("<image_soft_token>"),
        eos_token_id=1,
    )
    make: Any = transformers.Gemma3Processor
    made = make(
        square("Gemma3"), tokenizer, image_seq_length=4, chat_template=TEMPLATE.replace("IMAGE", "<start_of_image>")
    )
    return save(folder, "Gemma3ForConditionalGeneration", values, made)


def save_qwen2_audio(folder: Path) -> Path:
    """Qwen2-Audio: Whisper's ears on a decoder; windows of one second."""
    import transformers

    tokenizer = subwords("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>")
    values = config(
        "Qwen2AudioConfig",
        audio_config={
            "d_model": 16,
            "encoder_layers": 2,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "num_mel_bins": 16,
            "max_source_positions": 50,
        },
        text_config={**LLAMA, "model_type": "qwen2", "vocab_size": len(tokenizer)},
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
    )
    make_features: Any = transformers.WhisperFeatureExtractor
    make: Any = transformers.Qwen2AudioProcessor
    made = make(
        make_features(feature_size=16, chunk_length=1, sampling_rate=RATE),
        tokenizer,
        chat_template=TEMPLATE.replace("AUDIO", "<|audio_bos|><|AUDIO|><|audio_eos|>"),
    )
    return save(folder, "Qwen2AudioForConditionalGeneration", values, made)


def save_colpali(folder: Path) -> Path:
    """ColPali for retrieval: a vector for every token of a page and of a query."""
    import transformers

    tokenizer = subwords("<image>")
    tokenizer.bos_token = "<|system|>"
    for at in range(4):
        tokenizer.add_tokens([f"<loc{at:04d}>"])
    values = config(
        "ColPaliConfig",
        vlm_config={
            "model_type": "paligemma",
            "vision_config": {
                "model_type": "siglip_vision_model",
                **VIT,
                "vision_use_head": False,
                "projection_dim": 16,
            },
            "text_config": {
                **LLAMA,
                "model_type": "gemma",
                "head_dim": 8,
                "vocab_size": len(tokenizer),
            },
            "image_token_index": tokenizer.convert_tokens_to_ids("<image>"),
            "projection_dim": 16,
        },
        embedding_dim=8,
    )
    images = square("Siglip")
    images.image_seq_length = 16
    make: Any = transformers.ColPaliProcessor
    return save(folder, "ColPaliForRetrieval", values, make(images, tokenizer))


ARCHITECTURES: dict[str, dict[str, Callable[[Path], Path]]] = {
    "visual-question-answering": {"vilt": save_vilt, "blip": _blip("BlipForQuestionAnswering")},
    "document-question-answering": {"layoutlmv3": save_layoutlmv3, "layoutlm": save_layoutlm},
    "zero-shot-image-classification": {"clip": save_clip, "siglip": save_siglip},
    "zero-shot-object-detection": {"owlvit": save_owlvit},
    "image-text-to-text": {
        "llava": save_llava,
        "gemma3": save_gemma3,
        "blip": _blip("BlipForConditionalGeneration"),
    },
    "any-to-any": {"qwen2_audio": save_qwen2_audio},
    "retrieval": {"colpali": save_colpali},
}
"""Task, model type, and what writes its folder."""

MODELS: dict[str, Callable[[Path], Path]] = {task: next(iter(row.values())) for task, row in ARCHITECTURES.items()}

WORDS = ["invoice", "total", "42", "paid"]
BOXES = [(2, 2, 14, 6), (2, 10, 10, 14), (14, 10, 20, 14), (2, 20, 12, 24)]


def ask(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    """A conversation of one question."""
    return [{"role": "user", "content": list(parts)}]


SAMPLES: dict[str, Any] = {
    "visual-question-answering": {"image": picture(), "question": "where is my card?"},
    "document-question-answering": {
        "image": picture(),
        "question": "what is the total?",
        "words": WORDS,
        "boxes": BOXES,
    },
    "zero-shot-image-classification": {"image": picture(), "candidate_labels": ["cat", "dog", "a quick fox"]},
    "zero-shot-object-detection": {"image": picture(), "candidate_labels": ["cat", "a lazy dog"]},
    "image-text-to-text": ask({"type": "image", "image": picture()}, {"type": "text", "text": "where is my card?"}),
    "any-to-any": ask({"type": "audio", "audio": wav(sound())}, {"type": "text", "text": "one two three"}),
    "retrieval": {"text": "where is my card?"},
}
"""Task to an input of `predict`."""

REASONS: dict[str, str] = {}
