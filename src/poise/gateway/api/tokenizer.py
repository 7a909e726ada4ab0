"""The model's tokenizer, for programs that count, cut and score texts by tokens: in the forms of vLLM and of llama-server.

    POST /tokenize         {"prompt": ...}, {"content": ...} or {"messages": ...}   token ids, and how many there are
    POST /detokenize       {"tokens": [...]}                                        their text
    POST /apply-template   {"messages": [...]}                                      the prompt of a conversation as text
    GET  /tokenizer_info                                                            control tokens and the chat template

Nothing is generated, so the engine has no part in it. Text workers make the tokens, and their time is shared out as for prompts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from poise.config import Settings
from poise.gateway.api.fields import Custom, Field, Flag, Ignored, Text, Unsupported, check_names, object_schema, read_list
from poise.gateway.api.generation import HttpSender
from poise.gateway.api.openai import parameters as p
from poise.gateway.api.openai import rendering, unsupported
from poise.gateway.api.openai.writer import token_text
from poise.gateway.api.operation import Described, Operation
from poise.gateway.http.body import JsonObject
from poise.gateway.http.connections.peers import credentials_of
from poise.gateway.http.replies import FRESH, json_reply
from poise.gateway.models.local.model import LocalModel, check_ids
from poise.gateway.models.names import ModelNames
from poise.gateway.request import headers
from poise.gateway.request.refusals import context_length_exceeded, invalid_type, invalid_value, missing_parameter
from poise.gateway.tenancy.tenants import Tenants
from poise.gateway.text.tokens import TextModel, Tokens
from poise.scheduler.request import RequestClass
from poise.wire.text import Message, Rendering

TOKENS_MAX = 1 << 17
"""Tokens of one request: reading and writing more of them would hold up the streams."""


class Tokenized(msgspec.Struct, frozen=True):
    tokens: list[int]
    count: int
    max_model_len: int | None
    token_strs: list[str] | None


class PromptText(msgspec.Struct, frozen=True):
    """The same text under vLLM's name and llama-server's."""

    prompt: str
    content: str


class TokenizerInfo(msgspec.Struct, frozen=True):
    tokenizer_class: str
    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    chat_template: str
    model_max_length: int | None


def _read_tokens(value: object, param: str) -> list[int]:
    ids = read_list(value, param, "a list of token ids", TOKENS_MAX) if value != [] else []
    if set(map(type, ids)) - {int}:
        raise invalid_type(param, "a list of token ids", ids)
    return ids


PROMPT = Text("prompt", "A text. As `content` it has no beginning-of-text token by default.", aliases=("content",))
ADD_SPECIAL = Flag(
    "add_special_tokens", "Begin with the model's beginning-of-text token, if it wants one.", aliases=("add_special",)
)
PARSE_SPECIAL = Flag("parse_special", "Names of control tokens in the text mean these tokens; true by default.")
TOKEN_STRS = Flag("return_token_strs", "Return the text of each token, too.")
TOKENS: Field[list[int]] = Custom(
    "tokens", "Token ids.", _read_tokens, {"type": "array", "items": {"type": "integer"}, "maxItems": TOKENS_MAX}
)
WRITE_FIELDS: tuple[Field[Any], ...] = (p.MODEL, p.MESSAGES, *rendering.FIELDS)
TOKENIZE_FIELDS: tuple[Field[Any], ...] = (*WRITE_FIELDS, PROMPT, ADD_SPECIAL, PARSE_SPECIAL, TOKEN_STRS)
DETOKENIZE_FIELDS: tuple[Field[Any], ...] = (p.MODEL, TOKENS)
_UNSUPPORTED = unsupported.CHAT | {"with_pieces": Unsupported("with_pieces", "use 'return_token_strs'", (False,))}


@dataclass(frozen=True, slots=True)
class _Asked:
    """A request that was let in."""

    sender: HttpSender
    text: TextModel
    tokens: Tokens
    body: JsonObject
    ignored: Ignored

    def conversation(self) -> tuple[list[Message], Rendering]:
        if self.body.get(p.MESSAGES.name) is None:
            raise missing_parameter(p.MESSAGES.name, "a list of at least one message is needed")
        messages = p.read_messages(self.body[p.MESSAGES.name], p.MESSAGES.name, self.ignored)
        return messages, rendering.read_rendering(self.body, messages)

    def reply(self, answer: msgspec.Struct, note: str = "") -> Response:
        notes = {headers.IGNORED: headers.list_ignored(self.ignored.names)} if self.ignored.names else {}
        if note:
            headers.warn(notes, note)
        return json_reply(answer, 200, FRESH | notes)


@dataclass(eq=False, repr=False)
class Tokenizer:
    """Answers with and without `/v1` in front: vLLM and llama-server have these paths beside it, clients often within."""

    _settings: Settings
    _names: ModelNames
    _local: LocalModel
    _tenants: Tenants
    _check_level: Callable[[RequestClass], None]

    def operations(self) -> list[Operation]:
        found, errors = list[Operation](), [400, 401, 404, 408, 413, 429, 500, 503]
        for base in ("", "/v1"):
            for path, handler, summary, fields, answer in (
                ("/tokenize", self.tokenize, "Turn a text into tokens", TOKENIZE_FIELDS, Tokenized),
                ("/detokenize", self.detokenize, "Turn tokens into text", DETOKENIZE_FIELDS, PromptText),
                ("/apply-template", self.apply_template, "Write a conversation as text", WRITE_FIELDS, PromptText),
            ):
                schema, answers = object_schema(fields, []), {200: Described(answer)}
                found.append(Operation("POST", base + path, handler, summary, errors, request=schema, answers=answers))
            found.append(Operation("GET", f"{base}/tokenizer_info", self.info, "Describe the tokenizer", [401, 503]))
        return found

    async def tokenize(self, request: Request) -> Response:
        """Either `prompt` (vLLM's, llama-server's name is `content`) or `messages`, which are written as the model is asked."""
        asked = await self._begin(request, TOKENIZE_FIELDS)
        said, body, param = PROMPT.get(asked.body, None), asked.body, PROMPT.written(asked.body)
        if (said is None) == (body.get(p.MESSAGES.name) is None):
            raise missing_parameter(param, "one of 'prompt', 'content' and 'messages' is needed")
        if said is None:
            messages, how = asked.conversation()
            work, param = asked.tokens.chat(messages, 0, TOKENS_MAX, how), p.MESSAGES.name
        else:
            add, parse = ADD_SPECIAL.get(body, param == PROMPT.name), PARSE_SPECIAL.get(body, True)
            work = asked.tokens.prompt(said, TOKENS_MAX, add_special=add, parse_special=parse)
        found = await asked.sender.while_wanted(work)
        if found.n > TOKENS_MAX:
            message = f"The text has {found.n} tokens, and at most {TOKENS_MAX} are returned."
            raise context_length_exceeded(message, "Send it in parts.", param)
        texts = None
        if TOKEN_STRS.get(body, False):
            texts = [token_text(asked.text.token_name(token)) for token in found.ids]
        return asked.reply(Tokenized(found.ids, found.n, self._local.card.context_length, texts), found.note)

    async def detokenize(self, request: Request) -> Response:
        """Control tokens have their names in it; what is no whole character is U+FFFD."""
        asked = await self._begin(request, DETOKENIZE_FIELDS)
        ids = TOKENS.get(asked.body, None)
        if ids is None:
            raise missing_parameter(TOKENS.name, "a list of token ids is needed")
        check_ids(ids, asked.text.n_tokens, TOKENS.name)
        said = b"".join(map(asked.text.token_name, ids)).decode("utf-8", "replace")
        return asked.reply(PromptText(said, said))

    async def apply_template(self, request: Request) -> Response:
        """As `/v1/completions` would take it, where names of control tokens mean these tokens, also in what messages say."""
        asked = await self._begin(request, WRITE_FIELDS)
        written = await asked.sender.while_wanted(asked.tokens.written(*asked.conversation()))
        return asked.reply(PromptText(written.text, written.text), written.note)

    async def info(self, request: Request) -> TokenizerInfo:
        """What is null, the model has not."""
        self._tenants.identify(credentials_of(request))
        text = self._local.text()
        tokens = [text.special.get(name) for name in ("bos", "eos", "pad")]
        bos, eos, pad = [None if token is None else token_text(text.token_name(token)) for token in tokens]
        return TokenizerInfo("llama.cpp", bos, eos, pad, text.chat_template, self._local.card.context_length)

    async def _begin(self, request: Request, fields: Sequence[Field[Any]]) -> _Asked:
        """Who asks, and for what, in the order of the intake's checks. Raises ApiError."""
        sender, ignored = HttpSender(request, self._settings), Ignored(strict=self._settings.server.strict)
        caller = self._tenants.identify(sender.credentials)
        body = await sender.body()
        check_names(body, fields, _UNSUPPORTED, ignored=ignored)
        for field in fields:  # a wrong type is said also where the field has no effect beside the others
            if field is not p.MESSAGES:
                field.get(body, None)
        model = self._names.find(name := p.MODEL.get(body, ""))
        if not isinstance(model, LocalModel):
            raise invalid_value(p.MODEL.name, "name a model that this host computes: others keep their tokenizer", name)
        self._check_level(RequestClass.INTERACTIVE)
        text = model.text()
        return _Asked(sender, text, text.of(caller.account), body, ignored)
