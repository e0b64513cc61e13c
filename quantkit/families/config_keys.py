"""Every key of config.json, and what becomes of it. The one place that decides.

A key of the table is READ and written so that llama.cpp computes the same, or HARMLESS because it
does not change what the model computes, or has ONLY certain values that can be built. The original
is what transformers' own class for the architecture computes, so a key that no such class reads
changes nothing: it is named in a remark, because whoever wrote it may think otherwise. Where such a
key is known to change the arithmetic of other architectures (FOREIGN) and the folder brings
modeling code of its own, the class is not the original, and the folder is refused.
"""

import reprlib
from collections.abc import Iterator, Mapping
from typing import Any

from quantkit.core.errors import CheckpointError

# Read by families (decoder.py, rope.py, mixtral.py), by the checkpoint's reader, by the tokenizer.
READ = frozenset({
    "architectures", "model_type", "vocab_size", "hidden_size", "intermediate_size",
    "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings",
    "rope_theta", "rope_scaling", "rope_parameters", "original_max_position_embeddings",
    "partial_rotary_factor",
    "attention_bias", "mlp_bias",  # Llama's; the other classes have no biases
    "sliding_window",  # Mistral's and Mixtral's; Llama's class has none
    "num_local_experts", "num_experts", "num_experts_per_tok",  # Mixtral's
    "quantization_config", "auto_map",
    "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "decoder_start_token_id",
    "tokenizer_class", "prefix", "add_bos_token", "add_eos_token", "unk_token_id",
})  # fmt: skip

# Values that can be built. Everything else is refused with the reason.
ONLY: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "hidden_act": (("silu", "swish"), "llama.cpp computes this architecture with SiLU alone"),
    # null is as good as false: transformers asks whether it is true.
    "is_causal": ((True,), "attention would look ahead, and a GGUF of this architecture does not"),
    "is_encoder_decoder": ((False, None), "a GGUF of this architecture is a decoder alone"),
    "add_cross_attention": ((False, None), "a GGUF of this architecture has no cross attention"),
    "pruned_heads": (({}, [], None), "a GGUF of this architecture has all of its heads"),
    "per_layer_config": (({}, None), "a GGUF of this architecture has equal layers"),
    "block_configs": (([], {}, None), "a GGUF of this architecture has equal layers"),
    "text_config": ((None,), "the language model is only a part of this one"),
    "vision_config": ((None,), "the language model is only a part of this one"),
    "audio_config": ((None,), "the language model is only a part of this one"),
    "decoder": ((None,), "the language model is only a part of this one"),
    "generator": ((None,), "the language model is only a part of this one"),
    "transformers_weights": ((None,), "quantkit reads model*.safetensors alone"),
    "fusion_config": (({}, None), "quantkit reads plain layers alone"),
}

HARMLESS: Mapping[str, frozenset[str]] = {
    "training only": frozenset({
        "attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop",
        "initializer_range", "router_aux_loss_coef", "router_jitter_noise", "output_router_logits",
        "gradient_checkpointing", "neftune_noise_alpha", "use_flash_attention",
    }),
    "how it is run, not what is computed": frozenset({
        "use_cache", "pretraining_tp", "torch_dtype", "dtype", "torchscript", "use_bfloat16",
        "chunk_size_feed_forward", "return_dict", "use_return_dict", "output_attentions",
        "output_hidden_states", "_output_attentions", "attn_implementation",
        "_attn_implementation", "_attn_implementation_internal", "_attn_implementation_autoset",
        "_flash_attn_2_enabled", "experts_implementation", "_experts_implementation",
        "_experts_implementation_internal", "tf_legacy_loss", "distributed_config",
        "keys_to_ignore_at_inference", "tie_last_hidden_states",
    }),
    "for heads and models of other kinds": frozenset({
        "is_decoder", "tie_encoder_decoder", "cross_attention_hidden_size", "finetuning_task",
        "id2label", "label2id", "num_labels", "problem_type", "task_specific_params",
    }),
    "how text is generated": frozenset({
        "assistant_confidence_threshold", "assistant_lookbehind", "bad_words_ids",
        "begin_suppress_tokens", "diversity_penalty", "do_sample", "early_stopping",
        "encoder_no_repeat_ngram_size", "encoder_repetition_penalty", "epsilon_cutoff",
        "eta_cutoff", "exponential_decay_length_penalty", "forced_bos_token_id",
        "forced_eos_token_id", "length_penalty", "max_length", "max_new_tokens", "min_length",
        "min_new_tokens", "min_p", "no_repeat_ngram_size", "num_assistant_tokens",
        "num_assistant_tokens_schedule", "num_beam_groups", "num_beams", "num_return_sequences",
        "output_scores", "remove_invalid_values", "repetition_penalty", "return_dict_in_generate",
        "suppress_tokens", "target_lookbehind", "temperature", "top_k", "top_p", "typical_p",
        "generation_config",
    }),
    "books that tools keep": frozenset({
        "_name_or_path", "name_or_path", "_commit_hash", "_post_init_done", "transformers_version",
        "transformers.js_config", "language", "unsloth_version", "unsloth_fixed",
        "unsloth_optimized", "mergekit_version", "mistral_common_version", "model_name",
        "is_llama_config", "max_sequence_length", "seq_length", "padding_side",
        "tokenizer_model_max_length", "tokenizer_padding_side", "license", "tags",
        "ignore_keys_at_rope_validation",
    }),
}  # fmt: skip
_HARMLESS = frozenset[str]().union(*HARMLESS.values())

# Keys that change what other architectures compute, and the values with which they do not.
FOREIGN: Mapping[str, tuple[Any, ...]] = {
    "attention_multiplier": (None,),
    "attention_scale": (None,),
    "query_pre_attn_scalar": (None,),
    "embedding_multiplier": (1, None),
    "scale_emb": (1, None),
    "residual_multiplier": (1, None),
    "scale_depth": (None,),
    "dim_model_base": (None,),
    "logits_scaling": (1, None),
    "logit_scale": (1, None),
    "final_logit_softcapping": (0, None),
    "attn_logit_softcapping": (0, None),
    "clip_qkv": (None,),
    "use_qk_norm": (False, None),
    "qk_layernorm": (False, None),
    "use_mrope": (False, None),
    "no_rope_layers": ([], None),
    "no_rope_layer_interval": (0, None),
    "attention_chunk_size": (0, None),
    "parallel_residual": (False, None),
    "use_parallel_residual": (False, None),
    "rotary_dim": (None,),
    "rotary_pct": (1, None),
    "rope_pct": (1, None),
    "rope_percent": (1, None),
    "rotary_emb_base": (None,),
    "rope_local_base_freq": (None,),
    "local_rope_theta": (None,),
    "rope_interleave": (False, None),
    "rope_interleaved": (False, None),
    "alibi": (False, None),
    "bias": (False, None),
    "use_bias": (False, None),
    "qkv_bias": (False, None),
    "layer_types": (None,),  # transformers 5 reads a Mistral's, as decoder.py does
    "mlp_layer_types": ([], None),
    "max_window_layers": (None,),
    "use_sliding_window": (None,),
    "sliding_window_pattern": (None,),
    "layer_norm_eps": (None,),
    "hidden_activation": ("silu", "swish", None),
    "first_k_dense_replace": (0, None),
    "n_shared_experts": (0, None),
    "n_routed_experts": (0, None),
    "moe_intermediate_size": (None,),
    "norm_topk_prob": (True, None),
    "routed_scaling_factor": (1, None),
    "scoring_func": ("softmax", None),
    "n_group": (1, None),
    "topk_group": (1, None),
    "num_nextn_predict_layers": (0, None),
    "kv_lora_rank": (None,),
    "q_lora_rank": (None,),
    "draft_vocab_size": (None,),
}
KNOWN = READ | ONLY.keys() | _HARMLESS | FOREIGN.keys()


def check_keys(config: Mapping[str, Any], family: str) -> Iterator[str]:
    """Refuse a config that cannot be built as it computes; yield remarks on the others.

    Args:
        config: config.json.
        family: the ``model_type`` that its architecture has.

    Raises:
        CheckpointError: a key has a value with which a GGUF would compute something else.

    """
    for key, (values, reason) in ONLY.items():
        if key in config and not any(_same(config[key], value) for value in values):
            raise CheckpointError(
                f"config.json says {key} = {reprlib.repr(config[key])}: {reason}, so it cannot be "
                "built."
            )
    kind = config.get("model_type")
    if kind is not None and kind != family:
        raise CheckpointError(
            f"config.json says model_type = {kind!r}, but its architecture is that of {family!r}: "
            "transformers goes by the first. Correct the one that is wrong."
        )
    foreign = [
        key
        for key, values in FOREIGN.items()
        if key in config and not any(_same(config[key], value) for value in values)
        if (family, key) != ("mistral", "layer_types")
    ]
    unknown = [key for key, value in config.items() if key not in KNOWN and value is not None]
    if _brings_code(config):
        if foreign:
            raise CheckpointError(
                f"config.json says {foreign[0]} = {reprlib.repr(config[foreign[0]])}, which only "
                "the modeling code in the folder can read (auto_map); quantkit runs no such code "
                "and cannot know what it computes."
            )
        yield (
            "The folder brings modeling code of its own (auto_map), which is not run: what is "
            f"built is what transformers' own class for {family} computes."
        )
    if left := sorted(foreign + unknown):
        yield (
            f"config.json has {', '.join(left)}, which transformers' class for {family} does not "
            "read; a GGUF does not say it either."
        )


def _same(value: Any, allowed: Any) -> bool:
    """Equality that tells true from 1."""
    return value == allowed and isinstance(value, bool) == isinstance(allowed, bool)


def _brings_code(config: Mapping[str, Any]) -> bool:
    own = config.get("auto_map")
    return isinstance(own, Mapping) and any(str(key).startswith("AutoModel") for key in own)
