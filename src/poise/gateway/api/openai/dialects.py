"""OpenAI's two dialects, of chats and of completions, and the paths at which they are spoken."""

from __future__ import annotations

from poise.config import Settings
from poise.gateway.api.fields import Schema
from poise.gateway.api.openai.completion_types import ChatCompletion, Completion, generated
from poise.gateway.api.openai.parser import RequestParser
from poise.gateway.api.openai.writer import ChatWriter, CompletionWriter
from poise.gateway.api.operation import Spoken
from poise.gateway.http.body import JsonObject
from poise.gateway.records.writer import Answered, Writer
from poise.gateway.request.generate import Generate
from poise.gateway.request.refusals import ApiError


class Chat:
    """The dialect of /v1/chat/completions."""

    name, prompt_param, id_prefix = "chat", "messages", "chatcmpl-"

    def __init__(self, parser: RequestParser) -> None:
        self._parser = parser

    def schema(self) -> Schema:
        return self._parser.chat_schema()

    def read(self, body: JsonObject) -> Generate:
        return self._parser.chat(body)

    def writer(self, answered: Answered) -> Writer:
        return ChatWriter(answered)

    def refusal(self, error: ApiError) -> bytes:
        return error.body()


class TextCompletion:
    """The dialect of /v1/completions."""

    name, prompt_param, id_prefix = "text_completion", "prompt", "cmpl-"

    def __init__(self, parser: RequestParser) -> None:
        self._parser = parser

    def schema(self) -> Schema:
        return self._parser.completion_schema()

    def read(self, body: JsonObject) -> Generate:
        return self._parser.completion(body)

    def writer(self, answered: Answered) -> Writer:
        return CompletionWriter(answered)

    def refusal(self, error: ApiError) -> bytes:
        return error.body()


def spoken(settings: Settings) -> list[Spoken]:
    parser = RequestParser(settings)
    return [
        Spoken(
            "/v1/chat/completions", Chat(parser), "chat", "Continue a conversation", answers=generated(ChatCompletion)
        ),
        Spoken("/v1/completions", TextCompletion(parser), "complete", "Continue a text", answers=generated(Completion)),
    ]
