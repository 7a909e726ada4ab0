"""Parameters that OpenAI or other local servers know and poise does not, with the reason a client is given.

What changes no answer is taken, and named to the caller: harmless fields, and values that ask for nothing. The rest is refused by
name: a client that relies on it learns it at once instead of from odd results."""

from poise.gateway.api.fields import Unsupported
from poise.metrics.clients import FIELDS

_NO_AUDIO = "only text is produced; leave it out"
_NO_EQUIVALENT = "it has no equivalent here; leave it out"
_NO_EFFECT = "it would have no effect; leave it out"
_NO_SAMPLER = "this sampler is not available; use temperature, top_k, top_p, min_p or the penalties"
_NO_TEMPLATE = "the model's own chat template is used as it is; send a raw prompt to /v1/completions instead"


def _table(*entries: Unsupported) -> dict[str, Unsupported]:
    return {entry.name: entry for entry in entries}


_SAMPLERS_OFF: dict[str, tuple[float, ...]] = {
    "mirostat": (0,), "typical_p": (1, 1.0), "tfs_z": (1, 1.0), "top_a": (0, 0.0), "top_n_sigma": (-1, -1.0),
    "dry_multiplier": (0, 0.0), "xtc_probability": (0, 0.0), "dynatemp_range": (0, 0.0), "repeat_last_n": (-1,),
    "use_beam_search": (False,),
}  # fmt: skip
"""Samplers of others, with the values at which they are off."""
_NEUTRAL = {
    "store": (False,), "metadata": ({},), "parallel_tool_calls": (True, False), "early_stopping": (False,),
    "length_penalty": (1, 1.0), "spaces_between_special_tokens": (True,), "priority": (0,), "cache_prompt": (True,),
    "id_slot": (-1,),
}  # fmt: skip
"""Values of harmless fields that a strict server takes as well."""
_HARMLESS = tuple(Unsupported(name, _NO_EFFECT, _NEUTRAL.get(name, ()), harmless=True) for name in FIELDS)
_BOTH = (
    *_HARMLESS,
    Unsupported("samplers", _NO_SAMPLER),
    *(Unsupported(name, _NO_SAMPLER, neutral) for name, neutral in _SAMPLERS_OFF.items()),
    Unsupported("stop_token_ids", "only stop strings are available; use 'stop'", ([],)),
    Unsupported("bad_words", "use 'logit_bias' with -100", ([],)),
    Unsupported("allowed_token_ids", "use 'logit_bias'"),
    Unsupported("include_stop_str_in_output", "the stop string is never part of the answer", (False,)),
    Unsupported("skip_special_tokens", "control tokens are never part of the answer", (True,)),
    Unsupported("prompt_logprobs", "use 'echo' with 'logprobs' on /v1/completions"),
    Unsupported("truncate_prompt_tokens", "a prompt that is too long is refused, never cut; shorten it"),
    Unsupported("n_probs", "use 'logprobs'", (0,)),
    Unsupported("modalities", _NO_AUDIO, (["text"],)),
    Unsupported("audio", _NO_AUDIO),
)  # fmt: skip

CHAT = _table(
    *_BOTH,
    Unsupported("web_search_options", "there is no web search; leave it out"),
    Unsupported("moderation", _NO_EQUIVALENT),
    Unsupported("echo", _NO_TEMPLATE, (False,)),
    Unsupported("add_special_tokens", _NO_TEMPLATE, (False,)),
    Unsupported("chat_template", _NO_TEMPLATE),
    Unsupported("documents", "put them into the messages", ([],)),
    Unsupported("best_of", "a chat has 'n' choices; ask for these", (1,)),
)

COMPLETION = _table(
    *_BOTH,
    Unsupported("context_policy", "a raw prompt has no turns that could be left out; shorten it", ("reject",)),
    Unsupported("add_special_tokens", "the prompt gets what the model's vocabulary asks for", (True,)),
)

MESSAGE = _table(Unsupported("annotations", _NO_EFFECT, ([],), harmless=True), Unsupported("audio", _NO_AUDIO))
STREAM_OPTIONS = _table(Unsupported("include_obfuscation", "events are not padded; leave it out", (False,), harmless=True))

CONTENT_PARTS = ("image_url", "input_audio", "file", "video_url", "audio_url", "input_image", "image")
"""Types of message content that others know; only text is read here."""
