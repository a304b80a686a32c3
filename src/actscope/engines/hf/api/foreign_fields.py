"""Fields of other servers' requests that this engine does not have: those that are refused, and those without effect.

The names are those of OpenAI, Anthropic, vLLM and transformers' GenerationConfig, of SGLang, llama.cpp, Ollama, TGI, NIM and
OpenRouter.
"""

from __future__ import annotations

from collections.abc import Mapping

Refusal = tuple[str, tuple[object, ...]]

_CONSTRAINED = "this engine does not constrain answers to a grammar; vLLM does"
_TOOLS = "this engine does not parse tool calls; vLLM does"
_RUNS_NO_TOOLS = "this engine runs no tools"
_UPLOADS = "this engine takes text only"
_STATE = "this engine keeps no answers: send the whole conversation in `input`"
_SAMPLERS = "this engine has no such sampler"
_BEAMS = "this engine samples"
_ONE_MODEL = "this engine has one model, without adapters"
_SPECIAL = "the special tokens are the model's"
_NOT_RETURNED = "this engine does not return them"
_IN_TEMPLATE = "send it as a variable of the chat template, in chat_template_kwargs"
_IN_BODY = "its fields belong into the body of the request itself"
_PREFILL = (
    "send the beginning as the last message, of the assistant, with continue_final_message true and add_generation_prompt "
    "false"
)


def _refused(reason: str, *names: str, **neutral: tuple[object, ...]) -> dict[str, Refusal]:
    """Return fields with one reason. `neutral`: fields with values that mean the same as their absence."""
    return {name: (reason, neutral.get(name, ())) for name in (*names, *neutral)}


_OFF: tuple[object, ...] = (0, 0.0)
_ONE: tuple[object, ...] = (1, 1.0)

#: Fields that would change the answer, and that this engine cannot honour: the reason, and values that mean nothing. Refused
#: unless null, false, empty, or one of these values.
REFUSED: Mapping[str, Refusal] = {
    **_refused("this engine has no such programs", "access_programs"),
    **_refused(
        _UPLOADS,
        "audio",
        "image",
        "image_data",
        "images",
        "media_io_kwargs",
        "mm_processor_kwargs",
        modalities=(["text"],),
    ),
    **_refused(
        _STATE,
        "background",
        "context_management",
        "conversation",
        "previous_input_messages",
        "previous_response_id",
        "session_params",
        "thread",
    ),
    **_refused("this engine does not shorten conversations", "compaction", "transforms"),
    **_refused(
        "templates of clients are programs, which this engine does not run",
        "chat_template",
        "template",
        "instruction_template",
    ),
    **_refused("this engine transfers no caches", "ec_transfer_params", "kv_transfer_params", "disaggregated_params"),
    **_refused(
        _NOT_RETURNED,
        "enable_response_messages",
        "output_attentions",
        "output_hidden_states",
        "output_logits",
        "output_scores",
        "return_hidden_states",
        "return_routed_experts",
        "return_meta_info",
        "return_progress",
        "response_fields",
        "details",
    ),
    **_refused(_TOOLS, "functions", function_call=("none", "auto")),
    **_refused(_RUNS_NO_TOOLS, "container", "mcp_servers", "plugins", "tool_prompt"),
    **_refused(
        _CONSTRAINED,
        "constraints",
        "ebnf",
        "force_words_ids",
        "format",
        "grammar",
        "grammar_lazy",
        "grammar_triggers",
        "guided_choice",
        "guided_decoding",
        "guided_decoding_backend",
        "guided_grammar",
        "guided_json",
        "guided_regex",
        "guided_whitespace_pattern",
        "json_schema",
        "output_format",
        "regex",
        "structural_tag",
        "structured_output",
        "structured_outputs",
    ),
    **_refused(
        "this engine returns the log-probabilities of the most likely tokens only",
        "logprob_token_ids",
        "post_sampling_probs",
        "token_ids_logprob",
    ),
    **_refused("this engine does not moderate", "moderation", "safe_prompt", "safety_model", "guideline"),
    **_refused("this engine runs requests in the order of their arrival", priority=(0,)),
    **_refused("this engine takes prompts as text or token ids", "input_embeds", "prompt_embeds"),
    **_refused("this engine does not end answers that repeat themselves", "repetition_detection"),
    **_refused("this engine does not insert", "suffix", "input_prefix", "input_suffix"),
    **_refused(
        "this engine does not limit reasoning",
        "reasoning_budget",
        "thinking_budget",
        thinking_token_budget=(-1,),
    ),
    **_refused("this engine does not separate reasoning from the answer", reasoning_format=("none", "auto")),
    **_refused(
        _BEAMS,
        "use_beam_search",
        "diversity_penalty",
        num_beams=_ONE,
        num_beam_groups=_ONE,
    ),
    **_refused("this engine samples unless temperature is 0: send that", do_sample=(True,)),
    **_refused("this engine has no such hint: say it in a message", verbosity=("medium",)),
    **_refused(
        "they are for vLLM's extensions; options of actscope go into the field `actscope`",
        "vllm_xargs",
        "nvext",
        "custom_params",
    ),
    **_refused("this engine sets no watermarks", "watermark", "watermarking", "watermarking_config"),
    **_refused("this engine does not search", "web_search_options", "enable_search"),
    **_refused(
        _SAMPLERS,
        "assistant_ensemble_weight",
        "adaptive_target",
        "begin_suppress_tokens",
        "dola_layers",
        "dynatemp_exponent",
        "encoder_no_repeat_ngram_size",
        "epsilon_cutoff",
        "eta_cutoff",
        "exponential_decay_length_penalty",
        "logits_processors",
        "custom_logit_processor",
        "min_keep",
        "mirostat_eta",
        "mirostat_tau",
        "no_repeat_ngram_size",
        "penalty_alpha",
        "repetition_penalty_range",
        "samplers",
        "smoothing_factor",
        "token_healing",
        "top_h",
        dry_multiplier=_OFF,
        dynatemp_range=_OFF,
        encoder_repetition_penalty=_ONE,
        guidance_scale=_ONE,
        mirostat=(0,),
        tfs_z=_ONE,
        top_a=_OFF,
        top_n_sigma=(-1, -1.0, 0, 0.0),
        typical=_ONE,
        typical_p=_ONE,
        xtc_probability=_OFF,
        xtc_threshold=(0.1,),
        repeat_last_n=(64,),
        dry_base=(1.75,),
        dry_allowed_length=(2,),
        dry_penalty_last_n=(-1,),
        dry_sequence_breakers=(),
        negative_prompt=(),
    ),
    **_refused(
        _ONE_MODEL,
        "adapter_id",
        "fallbacks",
        "lora",
        "lora_path",
        "lora_request",
        "models",
        "provider",
        "route",
    ),
    **_refused(
        _SPECIAL,
        "bos_token_id",
        "decoder_start_token_id",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "pad_token_id",
        "add_bos_token",
    ),
    **_refused(
        "this engine ends no answer after a time: close the connection, or say max_tokens",
        "max_time",
        "t_max_predict_ms",
    ),
    **_refused("the length of the context is the server's", "num_ctx", "max_prompt_tokens", "n_keep"),
    **_refused(_IN_TEMPLATE, "enable_thinking", "think", "prompt_mode"),
    **_refused(_IN_BODY, "extra_body", "options", "parameters"),
    **_refused(_PREFILL, "prefix", "partial"),
    **_refused("say stop", "stop_regex", "stop_strings", "until"),
    **_refused("say stop_token_ids", "eos_token_id"),
    **_refused("say bad_words", "bad_words_ids", "banned_tokens", "custom_token_bans"),
    **_refused("say logit_bias", "sequence_bias", "suppress_tokens"),
    **_refused(
        "say max_tokens",
        "max_gen_toks",
        "max_length",
        "max_new_tokens",
        "maxOutputTokens",
        "maxTokens",
        "n_predict",
        "num_predict",
    ),
    **_refused("say min_tokens", min_length=(0,), min_new_tokens=(0,)),
    **_refused("say n", num_return_sequences=_ONE),
    **_refused("say repetition_penalty", repeat_penalty=_ONE),
    **_refused("say ignore_eos", "ban_eos_token"),
    **_refused("say seed", "random_seed"),
    **_refused("say include_stop_str_in_output", "no_stop_trim"),
    **_refused("say top_logprobs", "n_probs", "top_n_tokens"),
    **_refused("say prompt_logprobs", "decoder_input_details"),
    **_refused("say echo", "return_full_text"),
    **_refused("say truncate_prompt_tokens", "truncate"),
    **_refused("say return_token_ids", "return_tokens"),
    **_refused("say prompt or messages", "inputs", "input_ids", "raw"),
}

#: Refused fields whose `false` is a wish too.
EVEN_FALSE = frozenset({"do_sample", "enable_thinking", "think"})


def _harmless(reason: str, *names: str) -> dict[str, str]:
    return dict.fromkeys(names, reason)


#: Fields that are accepted without effect on the answer, and why they have none.
WITHOUT_EFFECT: Mapping[str, str] = {
    **_harmless(
        "labels of a request, its sender or its price",
        "metadata",
        "request_id",
        "rid",
        "safety_identifier",
        "session_id",
        "user",
        "user_profile_id",
        "workspace_id",
        "billing_policy",
        "fallback_credit_token",
        "betas",
        "diagnostics",
    ),
    **_harmless(
        "where and how fast other services run a request",
        "inference_geo",
        "service_tier",
        "speed",
        "data_parallel_rank",
    ),
    **_harmless("nothing is stored", "store"),
    **_harmless(
        "hints to a cache of prompts; no answer depends on it",
        "cache_control",
        "cache_prompt",
        "cache_salt",
        "extra_key",
        "id_slot",
        "keep_alive",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "skip_reading_prefix_cache",
    ),
    **_harmless(
        "how other engines keep caches and compile",
        "cache_config",
        "cache_implementation",
        "compile_config",
        "continuous_batching_config",
        "disable_compile",
        "low_memory",
        "max_cache_len",
        "prefill_chunk_size",
        "use_cache",
    ),
    **_harmless(
        "hints for guessing tokens ahead, which leaves the answer as it is",
        "assistant_confidence_threshold",
        "assistant_early_exit",
        "assistant_lookbehind",
        "is_assistant",
        "max_matching_ngram_size",
        "num_assistant_tokens",
        "num_assistant_tokens_schedule",
        "prediction",
        "prompt_lookup_num_tokens",
        "speculation_type",
        "target_lookbehind",
        "use_mtp",
    ),
    **_harmless("of beam search, which is refused itself", "early_stopping", "length_penalty"),
    **_harmless(
        "of parsers of reasoning and tool calls: this engine's answers have neither",
        "include_reasoning",
        "max_tool_calls",
        "parallel_tool_calls",
        "parse_tool_calls",
        "separate_reasoning",
        "stream_reasoning",
    ),
    **_harmless(
        "sizes of the chunks of a stream, and padding against eavesdroppers", "stream_interval", "stream_options"
    ),
    **_harmless(
        "of rendering, images and routing to experts, which are not part of these answers",
        "mm_payload",
        "return_mm_kwargs",
        "return_token_offsets",
        "routed_experts_prompt_start",
    ),
    **_harmless(
        "how other libraries write their results",
        "remove_invalid_values",
        "renormalize_logits",
        "return_dict_in_generate",
        "spaces_between_special_tokens",
        "timings_per_token",
        "transformers_version",
    ),
}
