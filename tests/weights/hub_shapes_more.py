"""As `hub_shapes`: encoders with decoders, of sentences and of other kinds, sounds, pictures and both."""

from __future__ import annotations

import torch

from task_models.pictures import HEADS, SIZE, SWIN, VIT
from task_models.sounds import WAV2VEC2
from tiny_models import VOCABULARY
from weights.hub_shapes import (
    BERT,
    DISTILBERT,
    LLAMA,
    ROBERTA,
    Shape,
    adding,
    both,
    copying,
    pooler,
    positions,
    renaming,
    weight_norm,
    without,
)

_ELECTRA = {**BERT, "embedding_size": 8}
_WHISPER = {
    "vocab_size": VOCABULARY,
    "num_mel_bins": 8,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_source_positions": 20,
    "max_target_positions": 20,
    "bos_token_id": 1,
    "eos_token_id": 1,
    "pad_token_id": 1,
    "decoder_start_token_id": 1,
}
_SPEECH = {**WAV2VEC2, "num_codevectors_per_group": 4, "codevector_dim": 8, "proj_codevector_dim": 8}
_QUANTIZER = (
    "quantizer.codevectors",
    "quantizer.weight_proj.weight",
    "quantizer.weight_proj.bias",
    "project_q.weight",
    "project_q.bias",
    "project_hid.weight",
    "project_hid.bias",
)
_CLIP = {
    "text_config": {**BERT, "max_position_embeddings": 40, "bos_token_id": 0, "eos_token_id": 1},
    "vision_config": VIT,
    "projection_dim": 8,
}
_SWIN_INDEX = tuple(
    f"swin.encoder.layers.{layer}.blocks.0.attention.self.relative_position_index" for layer in range(2)
)

T5 = {"vocab_size": VOCABULARY, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
T5.update({"eos_token_id": 1, "pad_token_id": 0, "decoder_start_token_id": 0})
BART = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 40,
    "bos_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 1,
    "forced_eos_token_id": 1,
}
_SHARED = "model.shared.weight"
_ST = {
    "modules.json": b'[{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},'
    b' {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]',
    "config_sentence_transformers.json": b'{"__version__": {"sentence_transformers": "2.0.0"}}',
    "sentence_bert_config.json": b'{"max_seq_length": 256, "do_lower_case": false}',
    "1_Pooling/config.json": b'{"word_embedding_dimension": 16, "pooling_mode_mean_tokens": true}',
    "README.md": b"# MiniLM\n",
    ".gitattributes": b"*.bin filter=lfs\n",
}

MORE: dict[str, Shape] = {
    "t5-small": Shape(
        "T5ForConditionalGeneration",
        ("T5", T5),
        both(
            copying(
                lm_head__weight="shared.weight",
                encoder__embed_tokens__weight="shared.weight",
                decoder__embed_tokens__weight="shared.weight",
            ),
            adding("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight", shape=(32, 2)),
        ),
        dropped=frozenset({"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"}),
    ),
    "google/flan-t5-small": Shape(
        "T5ForConditionalGeneration",
        ("T5", {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
        copying(encoder__embed_tokens__weight="shared.weight", decoder__embed_tokens__weight="shared.weight"),
    ),
    "facebook/bart-base": Shape(
        "BartModel",
        ("Bart", BART),
        both(
            copying(encoder__embed_tokens__weight="shared.weight", decoder__embed_tokens__weight="shared.weight"),
            adding("encoder.version", "decoder.version", shape=(1,)),
        ),
        dropped=frozenset({"encoder.version", "decoder.version"}),
    ),
    "facebook/bart-large-cnn": Shape(
        "BartForConditionalGeneration",
        ("Bart", BART),
        copying(
            model__encoder__embed_tokens__weight=_SHARED,
            model__decoder__embed_tokens__weight=_SHARED,
            lm_head__weight=_SHARED,
        ),
    ),
    "facebook/bart-large-mnli": Shape(
        "BartForSequenceClassification",
        ("Bart", BART),
        both(
            copying(model__encoder__embed_tokens__weight=_SHARED, model__decoder__embed_tokens__weight=_SHARED),
            adding("model.encoder.version", "model.decoder.version", shape=(1,)),
        ),
        dropped=frozenset({"model.encoder.version", "model.decoder.version"}),
    ),
    "Helsinki-NLP/opus-mt-en-de": Shape(
        "MarianMTModel",
        ("Marian", {**BART, "decoder_start_token_id": 0}),
        copying(
            model__encoder__embed_tokens__weight=_SHARED,
            model__decoder__embed_tokens__weight=_SHARED,
            lm_head__weight=_SHARED,
        ),
    ),
    "facebook/mbart-large-50": Shape(
        "MBartForConditionalGeneration",
        ("MBart", BART),
        both(
            copying(model__encoder__embed_tokens__weight=_SHARED, model__decoder__embed_tokens__weight=_SHARED),
            without("final_logits_bias"),
        ),
    ),
    "google/pegasus-xsum": Shape(
        "PegasusForConditionalGeneration",
        ("Pegasus", BART),
        copying(
            model__encoder__embed_tokens__weight=_SHARED,
            model__decoder__embed_tokens__weight=_SHARED,
            lm_head__weight=_SHARED,
        ),
    ),
    "facebook/nllb-200-distilled-600M": Shape(
        "M2M100ForConditionalGeneration",
        ("M2M100", BART),
        both(
            copying(
                model__encoder__embed_tokens__weight=_SHARED,
                model__decoder__embed_tokens__weight=_SHARED,
                lm_head__weight=_SHARED,
            ),
            adding("model.encoder.embed_positions.weights", "model.decoder.embed_positions.weights", shape=(42, 16)),
        ),
        dropped=frozenset({"model.encoder.embed_positions.weights", "model.decoder.embed_positions.weights"}),
    ),
    "sentence-transformers/all-MiniLM-L6-v2": Shape(
        "BertModel",
        ("Bert", BERT),
        positions("embeddings.position_ids"),
        dropped=frozenset({"embeddings.position_ids"}),
        values=_ST,
    ),
    "sentence-transformers/all-mpnet-base-v2": Shape(
        "MPNetModel",
        ("MPNet", ROBERTA),
        positions("embeddings.position_ids"),
        "MPNetForMaskedLM",
        frozenset({"embeddings.position_ids"}),
        values=_ST,
    ),
    "sentence-transformers/multi-qa-distilbert": Shape(
        "DistilBertModel", ("DistilBert", DISTILBERT), named="DistilBertForMaskedLM", values=_ST
    ),
    "Qwen/Qwen3-Embedding-0.6B": Shape(
        "Qwen3Model", ("Qwen3", {**LLAMA, "head_dim": 8}), named="Qwen3ForCausalLM", values=_ST
    ),
    "microsoft/mpnet-base": Shape(
        "MPNetForMaskedLM",
        ("MPNet", ROBERTA),
        both(
            copying(lm_head__decoder__weight="mpnet.embeddings.word_embeddings.weight"),
            adding(*pooler("mpnet.")),
            positions("mpnet.embeddings.position_ids"),
        ),
        dropped=frozenset({*pooler("mpnet."), "mpnet.embeddings.position_ids"}),
    ),
    "microsoft/deberta-v3-base": Shape(
        "DebertaV2Model",
        ("DebertaV2", {**BERT, "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8}),
        both(
            renaming("^", "deberta."),
            adding(
                "lm_predictions.lm_head.dense.weight",
                "lm_predictions.lm_head.LayerNorm.weight",
                "lm_predictions.lm_head.bias",
                "mask_predictions.dense.weight",
                "mask_predictions.classifier.weight",
            ),
            positions("deberta.embeddings.position_ids"),
        ),
        dropped=frozenset(
            {
                "lm_predictions.lm_head.dense.weight",
                "lm_predictions.lm_head.LayerNorm.weight",
                "lm_predictions.lm_head.bias",
                "mask_predictions.dense.weight",
                "mask_predictions.classifier.weight",
                "deberta.embeddings.position_ids",
            }
        ),
        settings={"architectures": None},
    ),
    "google/electra-base-discriminator": Shape(
        "ElectraForPreTraining",
        ("Electra", _ELECTRA),
        positions("electra.embeddings.position_ids"),
        dropped=frozenset({"electra.embeddings.position_ids"}),
    ),
    "google/electra-base-generator": Shape(
        "ElectraForMaskedLM",
        ("Electra", _ELECTRA),
        both(
            copying(generator_lm_head__weight="electra.embeddings.word_embeddings.weight"),
            positions("electra.embeddings.position_ids"),
        ),
        dropped=frozenset({"electra.embeddings.position_ids"}),
    ),
    "albert-base-v2": Shape(
        "AlbertForPreTraining",
        ("Albert", {**_ELECTRA, "inner_group_num": 1, "num_hidden_groups": 1}),
        both(
            copying(
                predictions__decoder__weight="albert.embeddings.word_embeddings.weight",
                predictions__decoder__bias="predictions.bias",
            ),
            positions("albert.embeddings.position_ids"),
        ),
        "AlbertForMaskedLM",
        frozenset(
            {
                "albert.pooler.weight",
                "albert.pooler.bias",
                "sop_classifier.classifier.weight",
                "sop_classifier.classifier.bias",
                "albert.embeddings.position_ids",
            }
        ),
    ),
    "facebook/esm2_t6_8M_UR50D": Shape(
        "EsmForMaskedLM",
        ("Esm", {**ROBERTA, "position_embedding_type": "rotary", "token_dropout": False}),
        both(
            copying(lm_head__decoder__weight="esm.embeddings.word_embeddings.weight"),
            positions("esm.embeddings.position_ids"),
            adding("esm.embeddings.position_embeddings.weight", shape=(40, 16)),
        ),
        dropped=frozenset({"esm.embeddings.position_ids", "esm.embeddings.position_embeddings.weight"}),
    ),
    "openai/whisper-tiny": Shape(
        "WhisperForConditionalGeneration", ("Whisper", _WHISPER), without(r"^proj_out"), beside="whisper"
    ),
    "facebook/wav2vec2-base-960h": Shape(
        "Wav2Vec2ForCTC",
        ("Wav2Vec2", _SPEECH),
        both(weight_norm, without("masked_spec_embed")),
        added=("wav2vec2.masked_spec_embed",),
        beside="speech",
    ),
    "facebook/wav2vec2-large-xlsr-53-fine-tuned": Shape(
        "Wav2Vec2ForCTC",
        ("Wav2Vec2", _SPEECH),
        both(weight_norm, adding(*_QUANTIZER)),
        dropped=frozenset(_QUANTIZER),
        beside="speech",
    ),
    "facebook/wav2vec2-base": Shape("Wav2Vec2ForPreTraining", ("Wav2Vec2", _SPEECH), weight_norm, beside="waves"),
    "facebook/hubert-base-ls960": Shape("HubertModel", ("Hubert", _SPEECH), weight_norm, beside="waves"),
    "google/vit-base-patch16-224": Shape(
        "ViTForImageClassification",
        ("ViT", {**VIT, **HEADS}),
        adding(*pooler("vit.")),
        dropped=frozenset(pooler("vit.")),
        beside="image",
    ),
    "google/vit-base-patch16-224-in21k": Shape("ViTModel", ("ViT", VIT), beside="image"),
    "facebook/dino-vits16": Shape("ViTModel", ("ViT", VIT), without("pooler"), beside="image"),
    "facebook/deit-base-distilled-patch16-224": Shape(
        "DeiTForImageClassificationWithTeacher", ("DeiT", {**VIT, **HEADS}), beside="image"
    ),
    "openai/clip-vit-base-patch32": Shape(
        "CLIPModel",
        ("CLIP", _CLIP),
        both(
            positions("text_model.embeddings.position_ids"),
            lambda held: {**held, "vision_model.embeddings.position_ids": torch.arange(17).expand(1, -1)},
        ),
        dropped=frozenset({"text_model.embeddings.position_ids", "vision_model.embeddings.position_ids"}),
        beside="clip",
    ),
    "microsoft/swin-tiny-patch4-window7-224": Shape(
        "SwinForImageClassification",
        ("Swin", {**SWIN, **HEADS}),
        adding(*_SWIN_INDEX, shape=(16, 16), dtype=torch.int64),
        dropped=frozenset(_SWIN_INDEX),
        beside="image",
    ),
    "facebook/convnext-tiny-224": Shape(
        "ConvNextForImageClassification",
        ("ConvNext", {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "image_size": SIZE, **HEADS}),
        beside="image",
    ),
}
