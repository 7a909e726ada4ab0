"""The requests of the OpenAI API: what is accepted, within which limits, and what the engine will be asked for.

`RequestParser` turns a decoded JSON body into a checked `Generate`, or raises ApiError. It sees neither
tokens nor the engine: lengths in tokens are checked where the vocabulary is at hand.
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil
from typing import Any

from poise.config import Settings
from poise.config.classes import class_settings, default_output
from poise.gateway.api.fields import Field, Integer, Schema, check_names, object_schema, same_json
from poise.gateway.api.openai import parameters as p
from poise.gateway.api.openai import rendering, unsupported
from poise.gateway.http.body import JsonObject
from poise.gateway.request.generate import PLAIN, Conversation, Generate, Prompt
from poise.gateway.request.refusals import invalid_value, missing_parameter, shown
from poise.wire.to_engine import SamplingParams


class RequestParser:
    """Both request schemas under the limits of one configuration."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._sampling_defaults = settings.sampling.model_dump(include=set(p.SAMPLING))
        self._n = Integer("n", "Choices to generate for each prompt.", 1, settings.server.max_choices)
        shared = (p.MODEL, *p.SHARED, self._n)
        self._chat: tuple[Field[Any], ...] = (
            *shared,
            p.MESSAGES,
            p.MAX_COMPLETION_TOKENS,
            p.LOGPROBS,
            p.TOP_LOGPROBS,
            p.CONTEXT_POLICY,
            p.TEMPLATE,
            *rendering.FIELDS,
        )
        self._completion: tuple[Field[Any], ...] = (*shared, p.PROMPT, p.LOGPROBS_COUNT)
        self._elsewhere_chat = {"prompt": "It belongs to /v1/completions."}
        self._elsewhere_completion = {
            "messages": "It belongs to /v1/chat/completions.",
            "max_completion_tokens": "Use 'max_tokens' here.",
            "top_logprobs": "Use 'logprobs' with a count here.",
            "template": "It belongs to /v1/chat/completions.",
        } | {
            name: "It belongs to /v1/chat/completions."
            for name in unsupported.CHAT
            if name not in unsupported.COMPLETION
        }

    def chat(self, values: JsonObject) -> Generate:
        check_names(values, self._chat, unsupported.CHAT, elsewhere=self._elsewhere_chat)
        if values.get("messages") is None:
            raise missing_parameter("messages", "a list of at least one message is needed")
        n_logprobs = -1
        top_logprobs = p.TOP_LOGPROBS.get(values, None)
        if p.LOGPROBS.get(values, False):
            n_logprobs = top_logprobs or 0
        elif top_logprobs:
            raise invalid_value("top_logprobs", "come with 'logprobs': true", top_logprobs, "'logprobs' is not true")
        allowance = _same(values, p.MAX_TOKENS, p.MAX_COMPLETION_TOKENS)
        messages = p.MESSAGES.read(values["messages"], "messages")
        conversation = Conversation(
            messages,
            context_policy=p.CONTEXT_POLICY.get(values, "reject"),
            template=p.TEMPLATE.get(values, ""),
            rendering=rendering.read_rendering(values, messages),
        )
        return self._request(values, conversation, allowance, n_logprobs)

    def completion(self, values: JsonObject) -> Generate:
        n = self._n.get(values, 1)
        if same_json(values.get("best_of"), n):
            values = {name: value for name, value in values.items() if name != "best_of"}
        check_names(values, self._completion, unsupported.COMPLETION, elsewhere=self._elsewhere_completion)
        if values.get("prompt") is None:
            raise missing_parameter("prompt", "a string, a list of strings, token ids or lists of token ids are needed")
        prompts = p.PROMPT.read(values["prompt"], "prompt")
        limit = self._settings.server.max_choices
        if len(prompts) * n > limit:
            raise invalid_value(
                "prompt", f"make at most {limit} choices", None, f"{len(prompts)} prompts make {len(prompts) * n}"
            )
        allowance = _same(values, p.MAX_TOKENS, p.MAX_TOKENS)
        return self._request(values, prompts, allowance, p.LOGPROBS_COUNT.get(values, -1))

    def chat_schema(self) -> Schema:
        return object_schema(self._chat, ["messages"])

    def completion_schema(self) -> Schema:
        return object_schema(self._completion, ["prompt"])

    def _request(
        self, values: JsonObject, prompt: Prompt, allowance: tuple[int | None, str], n_logprobs: int
    ) -> Generate:
        tier = p.SERVICE_TIER.get(values, "auto")
        request_class = p.TIER_CLASSES[tier]
        max_tokens, max_tokens_param = allowance
        limits = class_settings(self._settings, request_class)
        if max_tokens is not None and max_tokens > limits.max_output_tokens:
            rule = f"be at most {limits.max_output_tokens} for class '{request_class}'"
            raise invalid_value(max_tokens_param, rule, max_tokens)
        min_tokens = p.MIN_TOKENS.get(values, 0)
        allowed = default_output(limits) if max_tokens is None else max_tokens
        if min_tokens > allowed:
            raise invalid_value("min_tokens", f"be at most {allowed}, the output allowance", min_tokens)
        stream = p.STREAM.get(values, False)
        answer = p.STREAM_OPTIONS.get(values, PLAIN)
        if answer != PLAIN and not stream:
            raise invalid_value("stream_options", "come with 'stream': true", None, "'stream' is not true")
        p.USER.get(values, "")
        return Generate(
            model=p.MODEL.get(values, ""),
            prompt=prompt,
            n=self._n.get(values, 1),
            stream=stream,
            max_tokens=max_tokens,
            stop=p.STOP.get(values, ()),
            seed=p.SEED.get(values, None),
            sampling=self._sampling(values, n_logprobs, min_tokens),
            request_class=request_class,
            queue_timeout_ms=ceil(1000 * p.QUEUE_TIMEOUT.get(values, limits.queue_timeout_s)),
            background=p.BACKGROUND.get(values, False),
            answer=replace(answer, service_tier="default" if tier == "auto" else tier),
        )

    def _sampling(self, values: JsonObject, n_logprobs: int, min_tokens: int) -> SamplingParams:
        repetition, _ = _same(values, p.REPETITION_PENALTY, p.REPEAT_PENALTY)
        named = {name: field.get(values, None) for name, field in p.SAMPLING.items()}
        chosen = self._sampling_defaults | {name: value for name, value in named.items() if value is not None}
        return SamplingParams(
            **(chosen | {"top_k": max(0, chosen["top_k"])}),
            repetition_penalty=1.0 if repetition is None else repetition,
            n_logprobs=n_logprobs,
            min_output=min_tokens,
        )


def _same(values: JsonObject, field: Field[Any], alias: Field[Any]) -> tuple[Any, str]:
    """The value of a parameter with two names, and the name that was used. Two different values are an error."""
    one, other = field.get(values, None), alias.get(values, None)
    if one is not None and other is not None and one != other:
        raise invalid_value(alias.name, f"equal '{field.name}' ({shown(one)}) when both are given", other)
    return (other, alias.name) if one is None and other is not None else (one, field.name)
