"""The tokenizer over HTTP: texts to tokens and back, by the text workers, in the forms of vLLM and llama-server."""

from __future__ import annotations

from typing import Any

import pytest

from poise.config import Settings
from poise.gateway.api.tokenizer import TOKENS_MAX
from poise.gateway.request.headers import WARNING
from poise.wire.text import Prompt, Write
from tests.gateway.fakes import BOS, IM_END, MODEL, FakeEngine, Reply, TextHere, ToyVocab, ask, make_app, text_here

CHAT = {"messages": [{"role": "user", "content": "Hi"}]}
CHATML = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


async def post(path: str, body: dict[str, Any], jobs: TextHere | None = None, **arguments: Any) -> Reply:
    return await ask(make_app(FakeEngine(), jobs=jobs or text_here(ToyVocab(add_bos=True))), "POST", path, body, **arguments)


async def tokens(body: dict[str, Any], jobs: TextHere | None = None) -> Any:
    reply = await post("/tokenize", body, jobs)
    assert reply.status == 200, reply.body
    return reply.json()


@pytest.mark.parametrize("base", ["", "/v1"])
async def test_a_text_becomes_tokens_in_both_forms(base: str) -> None:
    """vLLM's `prompt` begins as a prompt does, llama-server's `content` only if it is told to."""
    for body, ids in (
        ({"prompt": "ab"}, [BOS, 97, 98]),
        ({"prompt": "ab", "model": MODEL, "add_special_tokens": False}, [97, 98]),
        ({"content": "ab"}, [97, 98]),
        ({"content": "ab", "add_special": True}, [BOS, 97, 98]),
        ({"prompt": ""}, [BOS]),
    ):
        reply = await post(base + "/tokenize", body)
        assert reply.status == 200, reply.body
        assert reply.json() == {"tokens": ids, "count": len(ids), "max_model_len": 600, "token_strs": None}


async def test_names_of_control_tokens_mean_these_unless_it_is_said_otherwise() -> None:
    """A program that asks for the id of `<|im_end|>` gets it."""
    text = {"prompt": "<|im_end|>", "add_special_tokens": False}
    assert (await tokens(text))["tokens"] == [IM_END]
    assert (await tokens(text | {"parse_special": False}))["tokens"] == list(b"<|im_end|>")


async def test_token_texts_come_on_request_and_part_of_a_character_is_told_as_bytes() -> None:
    """As log probabilities show them."""
    told = await tokens({"content": "é<|im_end|>", "return_token_strs": True})
    assert told["token_strs"] == ["bytes:\\xc3", "bytes:\\xa9", "<|im_end|>"]


async def test_a_conversation_becomes_the_tokens_of_its_prompt() -> None:
    """What a caller says stays text, as in a chat; `/apply-template` writes the same prompt as text."""
    jobs = text_here()
    opened = await tokens(CHAT, jobs)
    assert opened["tokens"] == jobs.tokeniser.prompt_ids(CHATML)
    closed = await tokens(CHAT | {"add_generation_prompt": False}, jobs)
    assert closed["tokens"] == jobs.tokeniser.prompt_ids(CHATML.removesuffix("<|im_start|>assistant\n"))
    reply = await post("/apply-template", CHAT, jobs)
    assert reply.json() == {"prompt": CHATML, "content": CHATML}


async def test_what_a_template_had_to_move_is_said() -> None:
    """A system message behind others is moved, in the header of warnings, as in a chat."""
    template = (
        "{% for m in messages %}{% if m.role == 'system' and not loop.first %}{{ raise_exception('no') }}{% endif %}"
        "{{ m.content }}|{% endfor %}"
    )
    messages = [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]
    for path in ("/tokenize", "/apply-template"):
        reply = await post(path, {"messages": messages}, text_here(template=template))
        assert reply.status == 200, reply.body
        assert WARNING.lower() in reply.headers


async def test_tokens_become_text_again() -> None:
    """With the names of control tokens; a cut character is replaced."""
    reply = await post("/v1/detokenize", {"tokens": [BOS, 97, 0xC3, 0xA9, IM_END, 0xC3]})
    assert reply.json() == {"prompt": "<s>aé<|im_end|>\ufffd", "content": "<s>aé<|im_end|>\ufffd"}


async def test_the_tokenizer_is_described() -> None:
    """What there is none of is null."""
    reply = await ask(make_app(FakeEngine(), jobs=text_here(template="{{ 1 }}")), "GET", "/tokenizer_info")
    assert reply.json() == {
        "tokenizer_class": "llama.cpp",
        "bos_token": "<s>",
        "eos_token": "<|im_end|>",
        "pad_token": None,
        "chat_template": "{{ 1 }}",
        "model_max_length": 600,
    }


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("/tokenize", {}, "missing_required_parameter"),
        ("/tokenize", {"prompt": "a", "content": "b"}, "conflicting_parameters"),
        ("/tokenize", {"prompt": 5}, "invalid_type"),
        ("/tokenize", {"content": "", "add_generation_prompt": "yes"}, "invalid_type"),
        ("/tokenize", {"messages": [{"role": "user", "content": "a"}], "parse_special": "yes"}, "invalid_type"),
        ("/tokenize", {"prompt": "a", "model": "other"}, "model_not_found"),
        ("/tokenize", {"content": "a", "with_pieces": True}, "unsupported_parameter"),
        ("/tokenize", {"prompt": "a" * (TOKENS_MAX + 1)}, "context_length_exceeded"),
        ("/detokenize", {}, "missing_required_parameter"),
        ("/detokenize", {"tokens": ["a"]}, "invalid_type"),
        ("/detokenize", {"tokens": [259]}, "invalid_value"),
        ("/detokenize", {"tokens": [0] * (TOKENS_MAX + 1)}, "invalid_value"),
        ("/apply-template", {}, "missing_required_parameter"),
    ],
)
async def test_what_is_wrong_is_refused_by_name(path: str, body: dict[str, Any], code: str) -> None:
    reply = await post(path, body)
    assert reply.status in (400, 404), reply.body
    assert reply.json()["error"]["code"] == code


async def test_a_key_is_needed_where_keys_are() -> None:
    """And its account is who the workers' time is counted to."""
    jobs = text_here()
    app = make_app(FakeEngine(), Settings.model_validate({"auth": {"keys": {"ann": "k-of-ann-12345"}}}), jobs=jobs)
    for method, path in (("POST", "/tokenize"), ("POST", "/detokenize"), ("POST", "/apply-template"), ("GET", "/tokenizer_info")):
        assert (await ask(app, method, path, {"prompt": "a"} if method == "POST" else None)).status == 401
    known = {"authorization": "Bearer k-of-ann-12345"}
    assert (await ask(app, "POST", "/tokenize", {"prompt": "a"}, headers=known)).status == 200
    assert (await ask(app, "POST", "/apply-template", CHAT, headers=known)).status == 200
    assert [(account, type(job)) for account, job in jobs.asked][-2:] == [("ann", Prompt), ("ann", Write)]


async def test_nothing_is_asked_of_the_engine_and_it_need_not_be_there() -> None:
    """While the vocabulary is being loaded it is a 503, like everything."""
    reply = await ask(make_app(FakeEngine(), with_text=False), "POST", "/tokenize", {"prompt": "a"})
    assert (reply.status, reply.json()["error"]["code"]) == (503, "engine_unavailable")


async def test_what_has_no_effect_is_named() -> None:
    """As elsewhere; strictly, it is refused."""
    body = CHAT | {"trace": 1, "messages": [{"role": "user", "content": "Hi", "id": "m1"}]}
    for path in ("/tokenize", "/apply-template"):
        reply = await post(path, body)
        assert reply.status == 200, reply.body
        assert reply.headers["x-poise-ignored"] == "trace, messages[].id"
    strict = make_app(FakeEngine(), Settings.model_validate({"server": {"strict": True}}))
    assert (await ask(strict, "POST", "/tokenize", body)).status == 400
