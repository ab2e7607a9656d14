"""transformers: models whose output layer is tied to the table of tokens."""

import functools
import importlib
from typing import Any

import torch

from experiments.third_party.case import Build, Case


def models() -> dict[str, Build]:
    """Return models of transformers whose output layer is tied to the table of tokens."""
    library = importlib.import_module("transformers")
    size = {"vocab_size": 200, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": True}
    wide = {**size, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    t5 = {**size, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0}
    kinds: dict[str, tuple[str, dict[str, Any]]] = {
        "GPT2LMHeadModel": ("GPT2Config", {**size, "n_embd": 16, "n_layer": 1, "n_head": 2}),
        "LlamaForCausalLM": ("LlamaConfig", wide),
        "Qwen2ForCausalLM": ("Qwen2Config", {**wide, "num_key_value_heads": 2}),
        "GemmaForCausalLM": ("GemmaConfig", {**wide, "head_dim": 8, "num_key_value_heads": 2}),
        "OPTForCausalLM": ("OPTConfig", {**wide, "ffn_dim": 32, "word_embed_proj_dim": 16}),
        "BertForMaskedLM": ("BertConfig", wide),
        "RobertaForMaskedLM": ("RobertaConfig", wide),
        "DistilBertForMaskedLM": (
            "DistilBertConfig", {**size, "dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 32}
        ),
        "ElectraForMaskedLM": ("ElectraConfig", {**wide, "embedding_size": 16}),
        "AlbertForMaskedLM": ("AlbertConfig", {**wide, "embedding_size": 16}),
        "T5ForConditionalGeneration": ("T5Config", t5),
        "BartForConditionalGeneration": (
            "BartConfig",
            {**size, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
             "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32},
        ),
    }  # fmt: skip

    def build(name: str) -> Case:
        config, given = kinds[name]
        model = getattr(library, name)(getattr(library, config)(**given))
        ids = torch.randint(3, 200, (4, 6))
        return Case(model, lambda m: m(input_ids=ids, labels=ids).loss)

    return {name: functools.partial(build, name) for name in kinds}
