"""The parameters of the OpenAI API that poise supports, one object each, and the readers of those with a shape of their own."""

import re
from collections.abc import Mapping
from typing import Any

from poise.gateway.api import fields
from poise.gateway.api.fields import INT64_MIN, STRICT, Custom, Field, Flag, Ignored, Integer, Real, Schema, Text
from poise.gateway.api.openai import unsupported
from poise.gateway.api.openai.rendering import PREFIX
from poise.gateway.api.openai.tools import CALLED, CALLS, read_calls
from poise.gateway.request.generate import AnswerOptions
from poise.gateway.request.refusals import invalid_type, invalid_value, missing_parameter, shown, unsupported_parameter
from poise.scheduler.request import RequestClass
from poise.wire.text import Message

MAX_MESSAGES = 4096
MAX_PARTS = 1024
MAX_ALL_PARTS = 8192
"""Parts and calls of all messages together: each one is looked at, and every stream waits meanwhile."""
MAX_PROMPTS = 1024
MAX_PROMPT_IDS = 1 << 20
MAX_STOPS = 32
MAX_STOP_CHARS = 1024
MAX_BIASES = 1024
ROLES = ("system", "developer", "user", "assistant", "tool")
MAY_BE_SILENT = ("assistant", "tool", "function")
"""Roles whose messages need no text: a turn that was stopped at once, a tool that has nothing to say."""
PART_TEXTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
"""By type of a content part that is read, the field that has its text."""
_OLDER_TOOL = "function"

TIER_CLASSES = dict.fromkeys(("auto", "default", "priority"), RequestClass.INTERACTIVE) | {"flex": RequestClass.BACKGROUND}


def _read_stop(value: object, param: str) -> tuple[str, ...]:
    """Empty strings ask for nothing."""
    text = Text(param, "", max_chars=MAX_STOP_CHARS)
    if type(value) is str or value == []:
        return (text.read(value, param),) if value else ()
    stops = fields.read_list(value, param, "a string or a list of strings", MAX_STOPS)
    return tuple(text.read(stop, f"{param}[{i}]") for i, stop in enumerate(stops) if stop != "")


def _read_logit_bias(value: object, param: str) -> tuple[tuple[int, float], ...]:
    biases = fields.read_object(value, param)
    if len(biases) > MAX_BIASES:
        raise invalid_value(param, f"have at most {MAX_BIASES} entries", None, f"has {len(biases)}")
    amount = Real("bias", "", -100, 100)
    pairs = []
    for key, bias in biases.items():
        if not re.fullmatch(r"0|[1-9][0-9]{0,8}", key):
            raise invalid_value(param, "have token ids as keys", key, f"has the key {shown(key)}")
        number = amount.read(bias, f"{param}[{key}]")
        # OpenAI's -100 means never. As a finite bias it would merely be improbable.
        pairs.append((int(key), float("-inf") if number == -100 else number))
    return tuple(sorted(pairs))


def read_stream_options(value: object, param: str, ignored: Ignored = STRICT) -> AnswerOptions:
    options = fields.read_object(value, param)
    fields.check_names(options, _STREAM_FIELDS, unsupported.STREAM_OPTIONS, prefix=f"{param}.", ignored=ignored)
    usage, continuous_usage, segments = (field.get(options, False, f"{param}.") for field in _STREAM_FIELDS)
    return AnswerOptions(usage, continuous_usage, segments)


def read_messages(value: object, param: str, ignored: Ignored = STRICT) -> list[Message]:
    messages = fields.read_list(value, param, "a list of messages", MAX_MESSAGES)
    lists = (m.get(name) for m in messages if type(m) is dict for name in ("content", "tool_calls"))
    n_parts = sum(len(parts) for parts in lists if type(parts) is list)
    if n_parts > MAX_ALL_PARTS:
        rule = f"have at most {MAX_ALL_PARTS} content parts and calls in all; join those of a message, or send strings"
        raise invalid_value(param, rule, None, f"has {n_parts}")
    return [_read_message(message, f"{param}[{i}]", ignored) for i, message in enumerate(messages)]


def _read_message(value: object, param: str, ignored: Ignored) -> Message:
    message = fields.read_object(value, param)
    fields.check_names(message, _MESSAGE_FIELDS, unsupported.MESSAGE, prefix=f"{param}.", ignored=ignored)
    if message.get("role") is None:
        raise missing_parameter(f"{param}.role", f"one of {', '.join(ROLES)} is needed")
    role = _ROLE.read(message["role"], f"{param}.role")
    for field in _PLAIN_FIELDS:
        if message.get(field.name) is not None:
            field.read(message[field.name], f"{param}.{field.name}")
    calls = read_calls(message, param) if role == "assistant" else ()
    content = message.get("content")
    if role in MAY_BE_SILENT and not content:
        content = message.get(_REFUSAL.name) or ""
    if content is None:
        raise missing_parameter(f"{param}.content", "a string or a list of text parts is needed")
    content = _read_content(content, f"{param}.content", ignored)
    reasoning = message.get(_REASONING_CONTENT.name) or message.get(_REASONING.name) or None
    role = "tool" if role == _OLDER_TOOL else role
    return Message(role, content, message.get("name") or None, message.get("tool_call_id"), reasoning, calls)


def _read_content(value: object, param: str, ignored: Ignored = STRICT) -> str:
    if type(value) is str:
        return value
    parts = fields.read_list(value, param, "a string or a list of text parts", MAX_PARTS)
    return "\n".join(_read_part(part, f"{param}[{i}]", ignored) for i, part in enumerate(parts))


def _read_part(value: object, param: str, ignored: Ignored) -> str:
    part = fields.read_object(value, param)
    kind = part.get("type")
    if kind in unsupported.CONTENT_PARTS:
        raise unsupported_parameter(param, kind, "only text is read; use parts of type 'text'")
    if kind not in PART_TEXTS:
        raise invalid_value(f"{param}.type", 'be "text"', kind)
    name = PART_TEXTS[kind]
    fields.check_names(part, (_PART_TYPE, _PART_TEXTS[name]), {}, prefix=f"{param}.", ignored=ignored)
    if part.get(name) is None:
        raise missing_parameter(f"{param}.{name}", "a string is needed")
    return _PART_TEXTS[name].read(part[name], f"{param}.{name}")


def _read_prompt(value: object, param: str) -> list[str] | list[list[int]]:
    what = "a string, a list of strings, a list of token ids or a list of such lists"
    if type(value) is str:
        return [value]
    entries = fields.read_list(value, param, what, MAX_PROMPT_IDS)
    kinds = set(map(type, entries))  # one pass in C: a list of a million entries must not hold up the streams
    if kinds != {int} and len(entries) > MAX_PROMPTS:
        raise invalid_value(param, f"have at most {MAX_PROMPTS} prompts", None, f"has {len(entries)}")
    if kinds == {str}:
        return entries
    if kinds == {int}:
        return [_check_ids(entries, param)]
    if kinds == {list}:
        return [_check_ids(ids, f"{param}[{i}]") for i, ids in enumerate(entries)]
    raise invalid_type(param, what, value)


def _check_ids(ids: list[Any], param: str) -> list[int]:
    fields.read_list(ids, param, "a list of token ids", MAX_PROMPT_IDS)
    if set(map(type, ids)) != {int}:
        raise invalid_type(param, "a list of token ids", ids)
    return ids


def _read_prediction(value: object, param: str) -> str:
    prediction = fields.read_object(value, param)
    _PREDICTION_TYPE.get(prediction, "content", f"{param}.")
    if prediction.get("content") is None:
        raise missing_parameter(f"{param}.content", "a string or a list of text parts is needed")
    return _read_content(prediction["content"], f"{param}.content")


_ROLE = Text("role", "Who speaks. `developer` is shown to the model as `system`.", choices=(*ROLES, _OLDER_TOOL))
_NAME = Text("name", "Name of the speaker, for templates that show it.", max_chars=256)
_TOOL_CALL_ID = Text("tool_call_id", "Call that a tool message answers, for templates that show it.", max_chars=256)
_REASONING_CONTENT = Text("reasoning_content", "What an assistant thought before it spoke, for templates that show it.")
_REASONING = Text("reasoning", "Another name of `reasoning_content`.")
_REFUSAL = Text("refusal", "Why an assistant did not answer: what it said, where there is no `content`.")
_PART_TYPE = Text("type", "", choices=tuple(PART_TEXTS))
_PART_TEXTS = {name: Text(name, "") for name in PART_TEXTS.values()}
_PART_SCHEMA = fields.object_schema((_PART_TYPE, *_PART_TEXTS.values()), ["type"])
_CONTENT: Field[str] = Custom(
    "content",
    "Text, or parts of text that are joined by newlines.",
    _read_content,
    {"anyOf": [{"type": "string"}, {"type": "array", "items": _PART_SCHEMA, "maxItems": MAX_PARTS}]},
)
_PREDICTION_TYPE = Text("type", "", choices=("content",))
PREDICTION: Field[str] = Custom(
    "prediction",
    "What the answer will probably be, or be like, as a text that is to be changed in few places: it then comes sooner.",
    _read_prediction,
    fields.object_schema((_PREDICTION_TYPE, _CONTENT), ["content"]),
)
_PLAIN_FIELDS: tuple[Field[Any], ...] = (_NAME, _TOOL_CALL_ID, _REASONING_CONTENT, _REASONING, _REFUSAL, PREFIX)
"""Those of a message that are read as they are."""
_MESSAGE_FIELDS = (_ROLE, _CONTENT, *_PLAIN_FIELDS, CALLS, CALLED)
INCLUDE_USAGE = Flag("include_usage", "Send the token counts in a chunk of their own before [DONE].")
CONTINUOUS_USAGE = Flag("continuous_usage_stats", "Send the token counts so far in every chunk.")
_SEGMENTS = "Say in `segments` of a choice where headings, lists, code, sentences and so on begin and end."
SEGMENTS = Flag("segments", _SEGMENTS)
_STREAM_FIELDS = (INCLUDE_USAGE, CONTINUOUS_USAGE, SEGMENTS)

_ID_SCHEMA: Schema = {"type": "integer", "minimum": 0, "maximum": (1 << 31) - 1}
_IDS_SCHEMA: Schema = {"type": "array", "items": _ID_SCHEMA, "minItems": 1, "maxItems": MAX_PROMPT_IDS}
_STOP_SCHEMA: Schema = {"type": "string", "maxLength": MAX_STOP_CHARS}

MODEL = Text("model", "Name of the model, an alias of it, or `default`, which is meant where there is none.", max_chars=1024)
MESSAGES: Field[list[Message]] = Custom(
    "messages",
    "The conversation so far.",
    read_messages,
    {"type": "array", "items": fields.object_schema(_MESSAGE_FIELDS, ["role"]), "minItems": 1, "maxItems": MAX_MESSAGES},
)
_TEXT_SCHEMA: Schema = {"type": "string"}
_TEXTS_SCHEMA, _LISTS_SCHEMA = ({"type": "array", "items": of, "minItems": 1} for of in (_TEXT_SCHEMA, _IDS_SCHEMA))
PROMPT: Field[list[str] | list[list[int]]] = Custom(
    "prompt",
    "Text or token ids to continue; a list of either makes a choice of each.",
    _read_prompt,
    {"anyOf": [_TEXT_SCHEMA, _TEXTS_SCHEMA, _IDS_SCHEMA, _LISTS_SCHEMA]},
)
MAX_TOKENS = Integer(
    "max_tokens",
    "Most tokens to generate; left out, the class's default. -1 and -2: as left out. 0: none, the prompt is only computed.",
    -2,
    1 << 53,
    aliases=("max_completion_tokens", "max_output_tokens", "max_new_tokens", "n_predict", "num_predict"),
)
MIN_TOKENS = Integer("min_tokens", "The answer does not end before that many tokens.", 0, 1 << 20, aliases=("min_new_tokens",))
TEMPERATURE = Real("temperature", "Randomness; 0 always takes the most likely token.", 0, 2)
TOP_P = Real("top_p", "Draw from the most likely tokens that have this probability together; 0: the most likely.", 0, 1)
TOP_K = Integer("top_k", "Draw from that many of the most likely tokens; 0 or -1 from all.", -1, 1_000_000)
MIN_P = Real("min_p", "Leave out tokens less likely than this share of the most likely one.", 0, 1)
PRESENCE_PENALTY = Real("presence_penalty", "Taken off once from tokens that the answer already has.", -2, 2)
FREQUENCY_PENALTY = Real("frequency_penalty", "Taken off for each time the answer already has the token.", -2, 2)
# Scores are divided by it in 32 bits: nearer to 0 they would overflow.
REPETITION_PENALTY = Real(
    "repetition_penalty", "Divides the score of tokens seen in prompt or answer; 1 is off.", 0.01, 2, aliases=("repeat_penalty",)
)
LOGIT_BIAS: Field[tuple[tuple[int, float], ...]] = Custom(
    "logit_bias",
    "Added to the score of tokens, by token id; -100 means never.",
    _read_logit_bias,
    {
        "type": "object",
        "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
        "propertyNames": {"pattern": "^(0|[1-9][0-9]{0,8})$"},
        "maxProperties": MAX_BIASES,
    },
)
STOP: Field[tuple[str, ...]] = Custom(
    "stop",
    "The answer ends before the first of these strings.",
    _read_stop,
    {"anyOf": [_STOP_SCHEMA, {"type": "array", "items": _STOP_SCHEMA, "maxItems": MAX_STOPS}]},
    aliases=("stop_sequences",),
)
CONTEXT_POLICY = Text(
    "context_policy",
    "A conversation that is too long is refused (`reject`), loses its oldest turns (`trim`) or has them summarized.",
    choices=("reject", "trim", "summarize"),
)
TEMPLATE = Text("template", "A system prompt by name; `/v1/templates` lists them.", min_chars=1)
SEED = Integer(
    "seed",
    "Makes the draw repeatable; choice i uses seed + i, in 32 bits. -1: another one for each request.",
    INT64_MIN,
    2**64 - 1,
    aliases=("random_seed",),
)
LOGPROBS = Flag("logprobs", "Return the log probability of each token.")
TOP_LOGPROBS = Integer("top_logprobs", "Return that many of the most likely tokens too; needs `logprobs`.", 0, 20)
LOGPROBS_COUNT = Integer("logprobs", "Return log probabilities, and that many of the most likely tokens.", 0, 5)
BEST_OF = Integer("best_of", "At most `n`: all choices are sent.", 1, 128)
ECHO = Flag("echo", "The answer begins with the prompt, and `logprobs` with those of the prompt's tokens.")
SUFFIX = Text("suffix", "What is to come after the answer, where the model has tokens for filling in.")
STREAM = Flag("stream", "Send the answer as server-sent events while it is generated.")
STREAM_OPTIONS: Field[AnswerOptions] = Custom(
    "stream_options", "Needs `stream`.", read_stream_options, fields.object_schema(_STREAM_FIELDS, [])
)
SERVICE_TIER = Text(
    "service_tier", "`flex` makes it a background request; all others are interactive.", choices=tuple(TIER_CLASSES)
)
QUEUE_TIMEOUT = Real(
    "queue_timeout",
    "Seconds that the request may wait for its turn; then it is answered with 503.",
    0,
    86_400,
    above_minimum=True,
)
BACKGROUND = Flag("background", "The request goes on when its client leaves; its result can be fetched for a while.")
FALLBACK = Flag("fallback", "Where who is asked first does not answer, another server may; true by default.")
USER = Text("user", "The caller's own label; it has no effect.", max_chars=512)
IGNORE_EOS = Flag("ignore_eos", "Go on after end-of-generation tokens, up to the output allowance.")

_PENALTIES = (PRESENCE_PENALTY, FREQUENCY_PENALTY)
_DRAWN_BY: tuple[Field[Any], ...] = (TEMPERATURE, TOP_P, TOP_K, MIN_P, *_PENALTIES, LOGIT_BIAS, IGNORE_EOS)
SAMPLING: Mapping[str, Field[Any]] = {field.name: field for field in _DRAWN_BY}
"""By field of `SamplingParams`, what sets it as it is. A new parameter of sampling is a row here, a field there, and its use."""
_SERVED_BY = (STREAM, STREAM_OPTIONS, SERVICE_TIER, QUEUE_TIMEOUT, BACKGROUND, FALLBACK, USER)
SHARED: tuple[Field[Any], ...] = (MAX_TOKENS, MIN_TOKENS, *_DRAWN_BY, REPETITION_PENALTY, STOP, SEED, *_SERVED_BY)
