"""The requests of the OpenAI API: what is accepted, within which limits, and what the engine will be asked for.

`RequestParser` turns a decoded JSON body into a checked `Generate`, or raises ApiError. It sees neither
tokens nor the engine: lengths in tokens are checked where the vocabulary is at hand."""

from dataclasses import replace
from math import ceil
from typing import Any

import msgspec

from poise.config import Settings
from poise.config.classes import class_settings, default_output
from poise.gateway.api.fields import Field, Ignored, Integer, Schema, check_names, object_schema
from poise.gateway.api.openai import parameters as p
from poise.gateway.api.openai import rendering, structured, tools, unsupported
from poise.gateway.api.openai.completion_types import ChatCompletion, Completion, generated
from poise.gateway.api.openai.writer import ChatWriter, CompletionWriter
from poise.gateway.api.operation import Spoken
from poise.gateway.dialect import Dialect
from poise.gateway.http.body import JsonObject
from poise.gateway.request.generate import PLAIN, AnswerOptions, Conversation, Generate, Prompt
from poise.gateway.request.refusals import invalid_value, missing_parameter
from poise.wire.to_engine import SamplingParams


class RequestParser:
    """Both request schemas under the limits of one configuration."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._strict = settings.server.strict
        self._sampling_defaults = settings.sampling.model_dump(include=set(p.SAMPLING))
        self._n = Integer("n", "Choices to generate for each prompt.", 1, settings.server.max_choices)
        shared = (p.MODEL, *p.SHARED, self._n, *structured.FIELDS)
        chat = (p.MESSAGES, p.LOGPROBS, p.TOP_LOGPROBS, p.CONTEXT_POLICY, p.TEMPLATE, p.PREDICTION)
        self._chat: tuple[Field[Any], ...] = (*shared, *chat, *rendering.FIELDS, *rendering.THINKING_FIELDS, *tools.FIELDS)
        self._completion: tuple[Field[Any], ...] = (*shared, p.PROMPT, p.LOGPROBS_COUNT, p.BEST_OF, p.ECHO, p.SUFFIX)
        self._elsewhere_chat = {"prompt": "It belongs to /v1/completions."}
        self._elsewhere_text = {"top_logprobs": "Use 'logprobs' with a count here."} | {
            name: "It belongs to /v1/chat/completions."
            for name in ("messages", "template", *unsupported.CHAT, *(field.name for field in tools.FIELDS))
            if name not in unsupported.COMPLETION
        }

    def chat(self, values: JsonObject) -> Generate:
        ignored = Ignored(strict=self._strict)
        check_names(values, self._chat, unsupported.CHAT, elsewhere=self._elsewhere_chat, ignored=ignored)
        if values.get("messages") is None:
            raise missing_parameter("messages", "a list of at least one message is needed")
        n_logprobs = -1
        top_logprobs = p.TOP_LOGPROBS.get(values, None)
        if p.LOGPROBS.get(values, False):
            n_logprobs = top_logprobs or 0
        elif top_logprobs:
            raise invalid_value("top_logprobs", "come with 'logprobs': true", top_logprobs, "'logprobs' is not true")
        messages = p.read_messages(values["messages"], "messages", ignored)
        use, is_older = tools.read_tools(values, ignored)
        shown_tools = [tool.as_shown() for tool in use.offered]
        conversation = Conversation(
            messages,
            context_policy=p.CONTEXT_POLICY.get(values, "reject"),
            template=p.TEMPLATE.get(values, ""),
            rendering=msgspec.structs.replace(rendering.read_rendering(values, messages), tools=shown_tools),
            thinking=rendering.read_thinking(values),
            prediction=p.PREDICTION.get(values, ""),
        )
        request = self._request(values, conversation, n_logprobs, ignored)
        return replace(request, tools=use, answer=replace(request.answer, legacy_calls=is_older))

    def completion(self, values: JsonObject) -> Generate:
        ignored = Ignored(strict=self._strict)
        check_names(values, self._completion, unsupported.COMPLETION, elsewhere=self._elsewhere_text, ignored=ignored)
        if values.get("prompt") is None:
            raise missing_parameter("prompt", "a string, a list of strings, token ids or lists of token ids are needed")
        prompts = p.PROMPT.read(values["prompt"], "prompt")
        limit = self._settings.server.max_choices
        n = self._n.get(values, 1)
        if (made := len(prompts) * n) > limit:
            raise invalid_value("prompt", f"make at most {limit} choices", None, f"{len(prompts)} prompts make {made}")
        best_of = p.BEST_OF.get(values, n)
        if best_of > n:
            raise invalid_value("best_of", f"be at most 'n' ({n}): ask for more choices and choose among them", best_of)
        echo, suffix, n_logprobs = p.ECHO.get(values, False), p.SUFFIX.get(values, ""), p.LOGPROBS_COUNT.get(values, -1)
        if suffix and (echo or not isinstance(prompts[0], str)):
            raise invalid_value("suffix", "come with a prompt that is text, and without 'echo'", suffix)
        asked = self._request(values, prompts, n_logprobs, ignored)
        sampling = msgspec.structs.replace(asked.sampling, n_prompt_logprobs=n_logprobs if echo else -1)
        return replace(asked, echo=echo, suffix=suffix, sampling=sampling)

    def chat_schema(self) -> Schema:
        return object_schema(self._chat, ["messages"])

    def completion_schema(self) -> Schema:
        return object_schema(self._completion, ["prompt"])

    def _request(self, values: JsonObject, prompt: Prompt, n_logprobs: int, ignored: Ignored) -> Generate:
        tier = self._tier(values, ignored)
        request_class = p.TIER_CLASSES[tier]
        limits = class_settings(self._settings, request_class)
        max_tokens = p.MAX_TOKENS.get(values, None)
        if max_tokens is not None and max_tokens < 0:
            max_tokens = None
        min_tokens = p.MIN_TOKENS.get(values, 0)
        allowed = default_output(limits) if max_tokens is None else min(max_tokens, limits.max_output_tokens)
        if min_tokens > allowed:
            rule = f"be at most {allowed}, the output allowance"
            raise invalid_value(p.MIN_TOKENS.written(values), rule, min_tokens)
        stream = p.STREAM.get(values, False)
        seed = p.SEED.get(values, None)
        return Generate(
            model=p.MODEL.get(values, ""),
            prompt=prompt,
            n=self._n.get(values, 1),
            stream=stream,
            max_tokens=max_tokens,
            stop=p.STOP.get(values, ()),
            seed=None if seed == -1 else seed,
            sampling=self._sampling(values, n_logprobs, min_tokens),
            request_class=request_class,
            queue_timeout_ms=ceil(1000 * p.QUEUE_TIMEOUT.get(values, limits.queue_timeout_s)),
            background=p.BACKGROUND.get(values, False),
            answer=replace(self._written(values, stream, ignored), service_tier="default" if tier == "auto" else tier),
            ignored=self._labelled(values, ignored),
            fallback=p.FALLBACK.get(values, True),
            structure=structured.read_structure(values),
        )

    def _tier(self, values: JsonObject, ignored: Ignored) -> str:
        """Tiers that other services have are as good as none."""
        named = values.get("service_tier")
        if type(named) is str and named not in p.TIER_CLASSES and not ignored.strict:
            ignored.take("service_tier")
            return "auto"
        return p.SERVICE_TIER.get(values, "auto")

    def _written(self, values: JsonObject, stream: bool, ignored: Ignored) -> AnswerOptions:
        options = values.get("stream_options")
        answer = PLAIN if options is None else p.read_stream_options(options, "stream_options", ignored)
        if stream or answer == PLAIN:
            return answer
        if ignored.strict:
            raise invalid_value("stream_options", "come with 'stream': true", None, "'stream' is not true")
        ignored.take("stream_options")
        return PLAIN

    def _labelled(self, values: JsonObject, ignored: Ignored) -> tuple[str, ...]:
        """All that has no effect, the caller's own label among it."""
        if ignored.strict:
            p.USER.get(values, "")
        elif values.get("user") is not None:
            ignored.take("user")
        return ignored.names

    def _sampling(self, values: JsonObject, n_logprobs: int, min_tokens: int) -> SamplingParams:
        named = {name: field.get(values, None) for name, field in p.SAMPLING.items()}
        chosen = self._sampling_defaults | {name: value for name, value in named.items() if value is not None}
        if chosen["top_p"] == 0:  # OpenAI's way to ask for the likeliest token
            chosen |= {"top_p": 1.0, "top_k": 1}
        return SamplingParams(
            **(chosen | {"top_k": max(0, chosen["top_k"])}),
            repetition_penalty=p.REPETITION_PENALTY.get(values, 1.0),
            n_logprobs=n_logprobs,
            min_output=min_tokens,
        )


def spoken(settings: Settings) -> list[Spoken]:
    """OpenAI's endpoints that generate."""
    parser = RequestParser(settings)
    chat = Dialect("chat", "messages", "chatcmpl-", parser.chat_schema, parser.chat, ChatWriter)
    text = Dialect("text_completion", "prompt", "cmpl-", parser.completion_schema, parser.completion, CompletionWriter)
    return [
        Spoken("/v1/chat/completions", chat, "chat", "Continue a conversation", answers=generated(ChatCompletion)),
        Spoken("/v1/completions", text, "complete", "Continue a text", answers=generated(Completion)),
    ]
