"""OpenAI's two dialects, of chats and of completions, and the paths at which they are spoken."""

from poise.config import Settings
from poise.gateway.api.openai.completion_types import ChatCompletion, Completion, generated
from poise.gateway.api.openai.parser import RequestParser
from poise.gateway.api.openai.writer import ChatWriter, CompletionWriter
from poise.gateway.api.operation import Spoken
from poise.gateway.dialect import Dialect


def spoken(settings: Settings) -> list[Spoken]:
    parser = RequestParser(settings)
    chat = Dialect("chat", "messages", "chatcmpl-", parser.chat_schema, parser.chat, ChatWriter)
    text = Dialect("text_completion", "prompt", "cmpl-", parser.completion_schema, parser.completion, CompletionWriter)
    return [
        Spoken("/v1/chat/completions", chat, "chat", "Continue a conversation", answers=generated(ChatCompletion)),
        Spoken("/v1/completions", text, "complete", "Continue a text", answers=generated(Completion)),
    ]
