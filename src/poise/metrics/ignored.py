"""Fields of requests that were taken though they change no answer, counted by name."""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry

from poise.metrics.shapes import counted

FIELDS = (
    # labels and hints of OpenAI's API
    "metadata", "store", "user", "safety_identifier", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention",
    "service_tier", "parallel_tool_calls", "prediction", "reasoning_effort", "reasoning", "verbosity", "modalities",
    "thinking_token_budget", "reasoning_budget_tokens", "reasoning_budget",
    "stream_options", "include_obfuscation", "annotations",
    # of other servers: where and when it is computed, and settings of what is off
    "priority", "cache_prompt", "cache_salt", "id_slot", "keep_alive", "num_ctx", "think", "enable_thinking", "include_reasoning",
    "mirostat_tau", "mirostat_eta", "dry_base", "dry_allowed_length", "xtc_threshold", "dynatemp_exponent", "early_stopping",
    "length_penalty", "guided_decoding_backend", "spaces_between_special_tokens",
    # that clients leave in messages
    "id", "timestamp", "cache_control", "model", "usage", "opts", "thinking", "provider_options",
)  # fmt: skip
"""Those that are known to have no effect; others have one label together."""
OTHER = "other"


class IgnoredFields:
    def __init__(self, registry: CollectorRegistry) -> None:
        text = (
            "Fields of requests that were taken though they have no effect, as X-Poise-Ignored names them to their callers: each "
            "once for a request, by the last part of its path. 'other': all that are not known here."
        )
        self._count = counted(registry, "poise_ignored_fields_total", text, field=(*FIELDS, OTHER))

    def add(self, paths: Iterable[str]) -> None:
        """Those of one request."""
        for path in paths:
            name = path.rpartition(".")[2]
            self._count(name if name in FIELDS else OTHER)
