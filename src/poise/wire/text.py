"""Messages between the gateway and a text worker: what is to be made of a text, and the token ids that came of it.

Over the same frames as those of the engine, but another socket: here text does cross. A worker has one job at a time and answers
it before it is given the next one, so an answer needs no number to say whose it is."""

from typing import Any

import msgspec

SYSTEM_ROLES = ("system", "developer")
BLANK_ROLES = ("system", "user", "assistant")
"""Who has to be asked whether a chat template keeps white space."""
INFILL = ("fim_prefix", "fim_suffix", "fim_middle")
"""Names of the tokens by which a model is asked to fill in."""
LARGE_BYTES = 16_384
"""A larger text waits for its like where one worker is kept for small ones, and is worked on at low priority."""


class Call(msgspec.Struct, frozen=True, array_like=True):
    """A call of a function that an assistant has made. `arguments`: should be the JSON of an object, and may be any text."""

    id: str
    name: str
    arguments: str


class Message(msgspec.Struct, frozen=True, array_like=True):
    """One message of a conversation, as the caller sent it."""

    role: str
    content: str
    name: str | None = None
    tool_call_id: str | None = None
    reasoning: str | None = None
    """What an assistant thought before it spoke: the template decides what of it is shown."""
    calls: tuple[Call, ...] = ()
    """An assistant's, after what it said."""


def said(message: Message) -> str:
    """What a message says and calls, for somebody who reads it."""
    return " ".join(filter(None, (message.content, *(f"{call.name}({call.arguments})" for call in message.calls))))


class Rendering(msgspec.Struct, frozen=True, array_like=True):
    """How the chat template is to write a conversation."""

    opens_answer: bool = True
    """It ends where the assistant is to speak (`add_generation_prompt`)."""
    continues: bool = False
    """The last message goes on: nothing comes after its text."""
    variables: dict[str, Any] = {}
    """Further values for the template, as the caller has named them."""
    tools: list[dict[str, Any]] = []
    """What the assistant may call, in the shape in which templates know it."""


AS_USUAL = Rendering()


class Open(msgspec.Struct, tag=True):
    """The first message to a worker: read this model file's vocabulary. `memory_mb`: what it may use beyond that.

    `fingerprint` of the file that the server was started with: another one is not read. Empty: any will do.
    `known`: the vocabulary of that file was read before; making it again would take half of a worker's start. `chat_template`:
    a file with one in the place of the model's own. Without a path there is no model: texts are scanned and grammars are
    read, and that is all."""

    model_path: str
    memory_mb: int
    fingerprint: str = ""
    known: bool = False
    chat_template: str = ""


class Chat(msgspec.Struct, tag=True):
    """The prompt of a conversation, of which `n_added` messages at the start are not the caller's. Answered with Ids."""

    messages: list[Message]
    n_added: int
    ids_max: int
    """Of a longer prompt only the length is wanted."""
    rendering: Rendering = AS_USUAL


class Prompt(msgspec.Struct, tag=True):
    """A raw prompt. Answered with Ids.

    `add_special`: with the beginning-of-text token, if the model wants one. `parse_special`: names of control tokens mean these.
    """

    text: str
    ids_max: int
    add_special: bool = True
    parse_special: bool = True
    suffix: str = ""
    """What is to come after the answer, which fills in between; not for a model that lacks one of INFILL."""


class Write(msgspec.Struct, tag=True):
    """The prompt of a conversation as text. Answered with Written."""

    messages: list[Message]
    rendering: Rendering = AS_USUAL


class Opening(msgspec.Struct, tag=True):
    """The tokens with which every conversation begins that has this system message. Answered with Ids."""

    system: str


class Fit(msgspec.Struct, tag=True):
    """The conversation without the fewest turns, so that it has at most `rooms[0]` tokens, or else `rooms[1]`, and so on.

    `turns` has the number of each message's turn, -1 for one that always stays; turn 0 goes first, the last one never. With a
    `summary`, that message stands for the turns that go, and has `reserve` tokens beyond its own. Answered with Fitted."""

    messages: list[Message]
    turns: list[int]
    n_added: int
    rooms: list[int]
    summary: Message | None = None
    reserve: int = 0
    rendering: Rendering = AS_USUAL


class Cut(msgspec.Struct, tag=True):
    """The conversation with a summary in the place of its first turns, and as little cut off its end as makes it fit.

    The summary's first `head_chars` characters always stay. Answered with CutDown."""

    messages: list[Message]
    turns: list[int]
    n_added: int
    n_dropped: int
    summary: Message
    head_chars: int
    room: int
    rendering: Rendering = AS_USUAL


class CheckGrammar(msgspec.Struct, tag=True):
    """Whether an answer can be held to this; `kind` and `text` are those of a Structure. Answered with Checked, or Refused."""

    kind: str
    text: str


class Scan(msgspec.Struct, tag=True):
    """Which rules find something in the texts; `words` are the operator's. Answered with Scanned."""

    texts: list[str]
    rules: list[str]
    words: list[str] = []


Job = Scan | CheckGrammar | Chat | Prompt | Write | Opening | Fit | Cut
ToWorker = Open | Job


class Vocabulary(msgspec.Struct, tag=True, frozen=True):
    """The answer to Open: the bytes of all tokens.

    `names` has the names of all tokens one after the other, `ends` where each one ends (unsigned 32 bit, this host's order);
    `hidden` has a byte for each token, 1 for a control token, which shows as nothing in an answer."""

    n_tokens: int
    names: bytes
    ends: bytes
    hidden: bytes
    turn_marks: list[str] = []
    """Texts that end an answer in a chat, because the model has no token that does."""
    special: dict[str, int] = {}
    """Tokens with a task, by its name; see `poise.llama.binding.vocab`."""
    chat_template: str = ""
    knows_tools: bool = True
    """The chat template tells the model which functions there are."""
    keeps_blanks: bool = False
    """The chat template leaves the white space around what is said where it is."""
    ways: dict[str, Any] = {}
    """Fields of a response template, as far as renderings of the chat template show them."""


class Opened(msgspec.Struct, tag=True):
    """The answer to Open where the vocabulary is known, or there is none."""


class Unusable(msgspec.Struct, tag=True):
    """The other answer to Open: no text can be made with this file. One line for the operator."""

    problem: str


class Rendered(msgspec.Struct, tag=True):
    """The chat template is done with the running job's conversation: what follows is the tokeniser's."""


class Ids(msgspec.Struct, tag=True):
    n: int
    ids: list[int]
    """Empty where only the length was wanted."""
    note: str = ""
    """What the caller is to be told of how the conversation was written."""


class Written(msgspec.Struct, tag=True):
    text: str
    note: str = ""
    """As that of Ids."""


class Fitted(msgspec.Struct, tag=True):
    """`n_dropped` None: not even the least fits, and `n_prompt` is its length."""

    n_dropped: int | None
    n_whole: int
    """Tokens of the conversation as it came."""
    n_prompt: int
    """Tokens of the prompt, with the summary's message, without the reserve."""
    n_plain: int
    """The same without the summary's message."""
    ids: list[int]
    """Of the prompt; empty where a summary is to come."""
    note: str = ""


class CutDown(msgspec.Struct, tag=True):
    n_chars: int
    """Characters of the summary that were cut off."""
    ids: list[int]


class Checked(msgspec.Struct, tag=True):
    """The grammar can be used. `text` is its form for the engine, where that is another than what was asked about."""

    text: str = ""


class Scanned(msgspec.Struct, tag=True):
    """Names of rules, and never what they have found."""

    rules: list[str]


class Refused(msgspec.Struct, tag=True):
    """An error for the caller. `trace`: kinds and places for the log, never with text of a request."""

    status: int
    code: str
    message: str
    param: str | None = None
    trace: str = ""


class Broken(msgspec.Struct, tag=True):
    """A bug of the worker's: kinds and places for the log."""

    trace: str


Answer = Scanned | Checked | Ids | Written | Fitted | CutDown | Refused | Broken
FromWorker = Vocabulary | Opened | Unusable | Rendered | Answer
