"""Parameters that OpenAI or other local servers know and poise does not, with the reason a client is given.

A request that carries one is refused by name unless its value asks for nothing: clients that send every parameter with its
neutral value keep working, and a client that relies on one learns it at once instead of from odd results.
"""

from __future__ import annotations

from collections.abc import Iterator

from poise.gateway.api.fields import Unsupported

_NO_TOOLS = "tool calling is not available; describe the tools in the prompt instead"
_NO_GRAMMAR = "constrained output is not available; ask for the format in the prompt and check the answer"
_NO_STORE = "nothing is stored; leave it out"
_NO_AUDIO = "only text is produced; leave it out"
_NO_HINT = "it has no equivalent here; leave it out"
_NO_SAMPLER = "this sampler is not available; use temperature, top_k, top_p, min_p or the penalties"
_NO_TEMPLATE = "the model's own chat template is used as it is; send a raw prompt to /v1/completions instead"
_NO_TOKENS = "it is not available; leave it out"


def _table(*entries: Unsupported) -> dict[str, Unsupported]:
    return {entry.name: entry for entry in entries}


def _all(hint: str, *names: str) -> Iterator[Unsupported]:
    return (Unsupported(name, hint) for name in names)


_BOTH = (
    Unsupported("response_format", _NO_GRAMMAR, ({"type": "text"},)),
    *_all(
        _NO_GRAMMAR, "grammar", "json_schema", "guided_json", "guided_regex", "guided_choice", "guided_grammar",
        "guided_decoding_backend", "guided_whitespace_pattern", "structured_outputs",
    ),
    *_all(
        _NO_SAMPLER, "mirostat", "mirostat_tau", "mirostat_eta", "typical_p", "tfs_z", "top_a", "samplers", "top_n_sigma",
        "dry_multiplier", "dry_base", "dry_allowed_length", "xtc_probability", "xtc_threshold", "dynatemp_range",
        "dynatemp_exponent", "repeat_last_n",
    ),
    Unsupported("use_beam_search", _NO_SAMPLER, (False,)),
    Unsupported("early_stopping", _NO_SAMPLER, (False,)),
    Unsupported("length_penalty", _NO_SAMPLER, (1, 1.0)),
    Unsupported("stop_token_ids", "only stop strings are available; use 'stop'", ([],)),
    Unsupported("bad_words", "use 'logit_bias' with -100", ([],)),
    Unsupported("allowed_token_ids", "use 'logit_bias'"),
    Unsupported("include_stop_str_in_output", "the stop string is never part of the answer", (False,)),
    Unsupported("skip_special_tokens", "control tokens are never part of the answer", (True,)),
    Unsupported("spaces_between_special_tokens", "control tokens are never part of the answer", (True,)),
    Unsupported("prompt_logprobs", _NO_TOKENS),
    Unsupported("truncate_prompt_tokens", "a prompt that is too long is refused, never cut; shorten it"),
    Unsupported("priority", "the class of a request is chosen with 'service_tier'", (0,)),
    Unsupported("cache_prompt", "the server decides what is cached", (True,)),
    Unsupported("cache_salt", "nothing is shared between API keys; leave it out"),
    Unsupported("id_slot", "the server chooses the slot; leave it out", (-1,)),
    Unsupported("n_predict", "use 'max_tokens'"),
    Unsupported("n_probs", "use 'logprobs'", (0,)),
    *_all(_NO_HINT, "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention", "safety_identifier"),
)  # fmt: skip

CHAT = _table(
    *_BOTH,
    Unsupported("tools", _NO_TOOLS, ([],)),
    Unsupported("tool_choice", _NO_TOOLS, ("none",)),
    Unsupported("parallel_tool_calls", _NO_TOOLS, (True, False)),
    Unsupported("functions", _NO_TOOLS, ([],)),
    Unsupported("function_call", _NO_TOOLS, ("none",)),
    Unsupported("modalities", _NO_AUDIO, (["text"],)),
    Unsupported("audio", _NO_AUDIO),
    Unsupported("prediction", _NO_HINT),
    Unsupported("reasoning_effort", "the model's reasoning cannot be steered; leave it out"),
    Unsupported("verbosity", "ask for the length in the prompt, or set 'max_tokens'"),
    Unsupported("web_search_options", "there is no web search; leave it out"),
    Unsupported("store", _NO_STORE, (False,)),
    Unsupported("metadata", _NO_STORE, ({},)),
    Unsupported("moderation", _NO_HINT),
    Unsupported("echo", _NO_TEMPLATE, (False,)),
    Unsupported("add_special_tokens", _NO_TEMPLATE, (False,)),
    Unsupported("chat_template", _NO_TEMPLATE),
    Unsupported("documents", "put them into the messages", ([],)),
)

COMPLETION = _table(
    *_BOTH,
    Unsupported("context_policy", "a raw prompt has no turns that could be left out; shorten it", ("reject",)),
    Unsupported("suffix", "text can only be continued, not filled in; leave it out", ("",)),
    Unsupported("echo", "the prompt is not repeated; put it in front of the answer yourself", (False,)),
    Unsupported("best_of", "it must equal 'n'; ask for n choices and choose among them"),
    Unsupported("add_special_tokens", "the prompt gets what the model's vocabulary asks for", (True,)),
)

MESSAGE = _table(
    Unsupported("tool_calls", _NO_TOOLS, ([],)),
    Unsupported("function_call", _NO_TOOLS),
    Unsupported("audio", _NO_AUDIO),
    Unsupported("refusal", "put the text into 'content'"),
    Unsupported("annotations", _NO_HINT, ([],)),
)

CONTENT_PARTS = ("image_url", "input_audio", "file", "video_url", "audio_url", "input_image", "image", "refusal")
"""Types of message content that others know; only text is read here."""
