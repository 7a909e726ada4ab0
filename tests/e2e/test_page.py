"""The page at /: a browser against a scripted server for exact stream behaviour, then against a real one."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from playwright.sync_api import Browser, Locator, Route, expect

from poise.gateway.text.segments import Segmenter
from tests.e2e.page_support import (
    IDLE,
    IDLE_CLASS,
    READY,
    Break,
    Hold,
    PageWatch,
    ScriptedServer,
    Visitor,
    answer,
    chromium,
    chunk,
    ending,
    error_frame,
    refusal,
    segmented,
    text_of,
    thought,
    wait_until,
)
from tests.e2e.server import PoiseServer

pytestmark = pytest.mark.slow

Visit = Callable[..., Visitor]

expect.set_options(timeout=60_000)


# Module scope: the browser's driver keeps an event loop running, which asynchronous tests of other modules could not share.
@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer() as server:
        yield server


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    """Opens the page at a URL. Options are those of a browser context. At the end no page may have reported anything."""
    visitors: list[Visitor] = []

    def open_page(url: str, *, goto: bool = True, **options: Any) -> Visitor:
        context = browser.new_context(**({"viewport": {"width": 1280, "height": 800}} | options))
        page = context.new_page()
        visitors.append(Visitor(page, PageWatch(page, url)))
        if goto:
            page.goto(url)
        return visitors[-1]

    yield open_page
    for visitor in visitors:
        visitor.page.context.close()
        visitor.watch.check()


def listed(locator: Locator) -> str:
    return ", ".join(locator.all_inner_texts())


# The empty page


def test_greeting_has_examples_and_a_command_to_copy(server: ScriptedServer, visit: Visit) -> None:
    """A first visitor sees the model's name, three examples, and a curl line that names this server and this model."""
    me = visit(server.url, permissions=["clipboard-read", "clipboard-write"])
    expect(me.page.locator("#model")).to_have_text("tiny-model")
    expect(me.health).to_have_text("Ready")
    expect(me.page.get_by_role("list", name="Examples to try").get_by_role("button")).to_have_count(3)
    command = me.page.locator("#curl")
    expect(command).to_contain_text(f"curl {server.url}/v1/chat/completions")
    expect(command).to_contain_text('"model":"tiny-model"')
    me.page.get_by_role("button", name="Copy").click()
    expect(me.page.get_by_role("button", name="Copied")).to_be_visible()
    assert me.page.evaluate("navigator.clipboard.readText()") == command.inner_text()


def test_an_example_is_asked_by_a_click(server: ScriptedServer, visit: Visit) -> None:
    """An example becomes the first message, and the greeting makes room."""
    server.replies = [answer("It scatters.", ending())]
    me = visit(server.url)
    me.page.get_by_role("button", name="Why is the sky blue?").click()
    expect(text_of(me.answers)).to_have_text("It scatters.")
    expect(me.page.get_by_role("heading", name="Good to see you.")).to_be_hidden()
    assert server.chats[0]["messages"][0]["content"].startswith("Why is the sky blue?")


def test_reasoning_is_folded(server: ScriptedServer, visit: Visit) -> None:
    """It stands apart from the answer, closed, and opens at a click."""
    server.replies = [answer(thought("Light "), thought("scatters."), "Because of that.", ending())]
    me = visit(server.url)
    me.page.get_by_role("button", name="Why is the sky blue?").click()
    expect(text_of(me.answers)).to_have_text("Because of that.")
    reasoning = me.answers.get_by_text("Light scatters.")
    expect(reasoning).to_be_hidden()
    me.answers.get_by_text("Reasoning").click()
    expect(reasoning).to_be_visible()


@pytest.mark.parametrize(
    ("health", "label", "notice"),
    [
        ({"status": "loading", "progress": 0.42, "stage": "reading weights"}, "Loading 42 %", "reading weights"),
        ({"status": "restarting", "detail": "it was killed by SIGSEGV"}, "Restarting", "it was killed by SIGSEGV"),
        ({"status": "draining", "level": "draining"}, "Stopping", "new messages are not taken"),
        ({"status": "failed", "detail": "no such file: a.gguf"}, "Failed", "needs its operator: no such file: a.gguf"),
    ],
)
def test_health_says_why_it_is_not_ready(
    server: ScriptedServer, visit: Visit, health: dict[str, object], label: str, notice: str
) -> None:
    """The dot's label and the notice tell the server's own reason, and both go when the server is ready."""
    server.documents["/health"] = READY | {"ready": False} | health
    me = visit(server.url, goto=False)
    me.watch.allow("status of 503")
    me.page.goto(server.url)
    expect(me.health).to_have_text(label)
    expect(me.page.locator("#notice")).to_contain_text(notice)
    server.documents["/health"] = READY
    expect(me.health).to_have_text("Ready")
    expect(me.page.locator("#notice")).to_be_hidden()


def test_a_level_that_is_not_normal_is_shown(server: ScriptedServer, visit: Visit) -> None:
    """Beside the dot, while messages are taken as before."""
    server.documents["/health"] = READY | {"level": "constrained"}
    me = visit(server.url)
    expect(me.health).to_have_text("Ready, constrained")
    expect(me.page.locator("#notice")).to_be_hidden()


# The stream


def test_parser_does_not_care_where_the_network_cuts(server: ScriptedServer, visit: Visit) -> None:
    """Whatever two places the text is cut at, with LF, CR and CRLF line ends, the same events come out."""
    me = visit(server.url)
    found = me.page.evaluate(
        r"""async () => {
            const { EventStreamParser } = await import("/page/stream.js");
            const text = ": queued position=3\r\n\r\ndata: one\r\ndata:two\r\n\r\nevent: x\rdata\r\r"
                + "id: 1\n\n: ping\ndata: é {}\n\ndata: lost";
            const results = new Set();
            for (let i = 0; i <= text.length; i++)
                for (let j = i; j <= text.length; j++) {
                    const parser = new EventStreamParser();
                    const parts = [text.slice(0, i), text.slice(i, j), text.slice(j)];
                    results.add(JSON.stringify(parts.flatMap((part) => parser.feed(part))));
                }
            return [...results];
        }"""
    )
    events = [{"comment": "queued position=3"}, {"data": "one\ntwo"}, {"data": ""}, {"comment": "ping"}, {"data": "é {}"}]
    assert [json.loads(result) for result in found] == [events]


def test_an_answer_grows_while_frames_arrive_in_pieces(server: ScriptedServer, visit: Visit) -> None:
    """A frame cut inside a two-byte letter appears when it is whole; what came before is shown already."""
    frame = chunk(" café")
    cut = frame.index("é".encode()) + 1
    hold = Hold()
    server.replies = [answer("Hello from the", frame[:cut], hold, frame[cut:], ending("stop", 12, 5))]
    me = visit(server.url)
    reply = me.say("Hi")
    expect(text_of(reply)).to_have_text("Hello from the")
    expect(me.stop).to_be_visible()
    hold.release()
    expect(text_of(reply)).to_have_text("Hello from the café")
    expect(me.send).to_be_visible()
    figures = listed(reply.get_by_role("list", name="Figures").get_by_role("listitem"))
    for part in ("first token ", " tokens/s", "12 in", "5 tokens", "finish: stop"):
        assert part in figures, figures


def test_a_queued_request_says_its_place(server: ScriptedServer, visit: Visit) -> None:
    """The queue comment becomes a sentence, for eyes and screen readers, and leaves with the first token."""
    hold = Hold()
    server.replies = [answer(b": queued position=3 eta_ms=1200\n\n", hold, "Here.", ending())]
    me = visit(server.url)
    reply = me.say("Hi")
    expect(reply.locator(".status")).to_have_text("Waiting, 3rd in line, about 1.2 s")
    expect(me.page.locator("#announcer")).to_have_text("Waiting, 3rd in line, about 1.2 s")
    hold.release()
    expect(text_of(reply)).to_have_text("Here.")
    expect(reply.locator(".status")).to_be_hidden()


def test_numbers_read_as_people_write_them(server: ScriptedServer, visit: Visit) -> None:
    """Ordinals, durations and rates at their turning points."""
    me = visit(server.url)
    written = me.page.evaluate(
        """async () => {
            const f = await import("/page/format.js");
            return [[1, 2, 3, 4, 11, 12, 21, 112].map(f.ordinal),
                    [0, 999.4, 999.6, 9960, 59_600, 61_000, 7_200_000, 90_000_000, null].map(f.duration),
                    [0, 0.25, 9.94, 9.96, 1234, undefined].map(f.rate),
                    [{}, { position: 1 }, { etaMs: 900 }].map(f.waiting)];
        }"""
    )
    assert written == [
        ["1st", "2nd", "3rd", "4th", "11th", "12th", "21st", "112th"],
        ["0 ms", "999 ms", "1.0 s", "10 s", "1 min", "1 min 1 s", "2 h", "1 d 1 h", "–"],
        ["0", "0.3", "9.9", "10", "1,234", "–"],
        ["Waiting", "Waiting, 1st in line", "Waiting, about 900 ms"],
    ]


def test_a_cut_answer_is_marked(server: ScriptedServer, visit: Visit) -> None:
    """An answer that reached its token limit says so."""
    server.replies = [answer("Once upon a", ending("length"))]
    reply = visit(server.url).say("Tell me a story")
    expect(reply.locator(".status")).to_have_text("cut at the token limit")


# What can go wrong


def test_an_error_in_the_stream_keeps_the_partial_answer(server: ScriptedServer, visit: Visit) -> None:
    """After an error event the text stays, the server's words are shown, and Retry replaces the answer."""
    server.replies = [answer("Half an", error_frame("The engine was lost.")), answer("A whole answer.", ending())]
    me = visit(server.url)
    reply = me.say("Hi")
    expect(reply.get_by_role("alert")).to_have_text("The engine was lost. What had arrived is kept above.")
    expect(text_of(reply)).to_have_text("Half an")
    me.retry.click()
    expect(text_of(me.answers)).to_have_text("A whole answer.")
    expect(me.page.get_by_role("alert")).to_have_count(0)
    assert server.chats[0] == server.chats[1]


def test_a_broken_connection_is_not_taken_for_the_end(server: ScriptedServer, visit: Visit) -> None:
    """A stream that breaks off is reported as incomplete, with what had arrived."""
    hold = Hold()
    server.replies = [answer("Half an", hold, Break())]
    me = visit(server.url, goto=False)
    me.watch.allow("ERR_INCOMPLETE_CHUNKED_ENCODING")
    me.page.goto(server.url)
    reply = me.say("Hi")
    expect(text_of(reply)).to_have_text("Half an")
    hold.release()
    expect(reply.get_by_role("alert")).to_contain_text("The connection broke before the answer was complete.")
    expect(text_of(reply)).to_have_text("Half an")


def test_a_stream_that_just_stops_is_not_taken_for_the_end(server: ScriptedServer, visit: Visit) -> None:
    """A tidy end of the connection without a finish reason or [DONE] is an incomplete answer, too."""
    server.replies = [answer("Half an")]
    reply = visit(server.url).say("Hi")
    expect(reply.get_by_role("alert")).to_contain_text("The connection ended before the answer was complete.")


def test_a_full_queue_says_when_to_come_back(server: ScriptedServer, visit: Visit) -> None:
    """429 with Retry-After: the server's reason, its suggestion, and a button that asks again."""
    server.replies = [refusal(429, "The queue is full.", Retry_After="30"), answer("Now there is room.", ending())]
    me = visit(server.url, goto=False)
    me.watch.allow("status of 429")
    me.page.goto(server.url)
    reply = me.say("Hi")
    expect(reply.get_by_role("alert")).to_have_text("The queue is full.")
    expect(reply).to_contain_text("The server suggests in ")
    me.retry.click()
    expect(text_of(me.answers)).to_have_text("Now there is room.")


def test_a_server_that_is_gone_is_named(server: ScriptedServer, visit: Visit) -> None:
    """Without a server the dot, the notice and the answer say so, in words of the page."""
    me = visit(server.url)
    expect(me.health).to_have_text("Ready")
    me.watch.allow("ERR_CONNECTION_REFUSED")
    me.page.route("**/*", lambda route: route.abort("connectionrefused"))
    reply = me.say("Hi")
    expect(reply.get_by_role("alert")).to_have_text("The server cannot be reached.")
    expect(me.health).to_have_text("No connection")
    expect(me.page.locator("#live-problem")).to_have_text("The server cannot be reached.")


def test_a_wanted_key_is_asked_for_and_kept_for_the_tab_only(server: ScriptedServer, visit: Visit) -> None:
    """401 leads to the key field; the key is sent from then on, and stays out of the lasting store."""
    server.key = "secret-1"
    server.replies = [answer("Welcome.", ending())]
    me = visit(server.url, goto=False)
    me.watch.allow("status of 401")
    me.page.goto(server.url)
    reply = me.say("Hi")
    expect(reply.get_by_role("alert")).to_have_text("An API key is needed.")
    expect(me.page.locator("#live-problem")).to_contain_text("enter one in Settings")
    me.page.get_by_role("button", name="Enter the API key").click()
    expect(me.page.get_by_label("API key")).to_be_focused()
    me.page.keyboard.type("secret-1")
    me.page.keyboard.press("Enter")
    expect(me.page.locator("#model")).to_have_text("tiny-model")
    expect(me.page.locator("#live-problem")).to_be_hidden()
    me.retry.click()
    expect(text_of(me.answers)).to_have_text("Welcome.")
    assert "secret-1" not in me.page.evaluate("JSON.stringify(localStorage) + document.cookie + document.body.innerHTML")
    me.page.reload()
    expect(me.page.locator("#model")).to_have_text("tiny-model")


# Stopping, retrying, continuing


def test_stop_keeps_the_partial_answer_and_closes_the_connection(server: ScriptedServer, visit: Visit) -> None:
    """Stop ends the request at the server too; what had arrived stays, marked, and is part of the next request."""
    server.replies = [answer("One, two, three", Hold()), answer("Six.", ending())]
    me = visit(server.url)
    reply = me.say("Count")
    expect(text_of(reply)).to_have_text("One, two, three")
    me.stop.click()
    expect(reply.locator(".status")).to_have_text("Stopped")
    expect(text_of(reply)).to_have_text("One, two, three")
    assert server.client_left.wait(120)
    expect(text_of(me.say("Go on"))).to_have_text("Six.")
    assert [m["content"] for m in server.chats[1]["messages"]] == ["Count", "One, two, three", "Go on"]


def test_keys_send_break_lines_and_stop(server: ScriptedServer, visit: Visit) -> None:
    """Enter sends, Shift+Enter makes a new line, Escape stops, and the focus stays in the message box."""
    server.replies = [answer(Hold())]
    me = visit(server.url)
    expect(me.box).to_be_focused()
    me.page.keyboard.type("first")
    me.page.keyboard.press("Shift+Enter")
    me.page.keyboard.type("second")
    me.page.keyboard.press("Enter")
    expect(me.page.locator(".question")).to_contain_text("first\nsecond")
    expect(me.box).to_have_value("")
    expect(me.stop).to_be_visible()
    me.page.keyboard.press("Escape")
    expect(me.answers.locator(".status")).to_have_text("Stopped before the first token")
    expect(me.box).to_be_focused()
    assert server.client_left.wait(120)


def test_only_the_last_answer_can_be_asked_for_again(server: ScriptedServer, visit: Visit) -> None:
    """Retry asks with the same history and replaces the last answer; a turn without an answer is left out later."""
    server.replies = [
        answer("A.", ending()),
        answer("B.", ending()),
        answer("C.", ending()),
        answer(error_frame("No.")),
        answer("D.", ending()),
    ]
    me = visit(server.url)
    for question, wanted in (("1", "A."), ("2", "B.")):
        expect(text_of(me.say(question))).to_have_text(wanted)
        expect(me.retry).to_have_count(1)
    me.retry.click()
    expect(text_of(me.answers.last)).to_have_text("C.")
    expect(me.answers).to_have_count(2)
    assert server.chats[2] == server.chats[1]
    expect(me.say("3").get_by_role("alert")).to_have_text("No.")
    expect(text_of(me.say("4"))).to_have_text("D.")
    assert [m["content"] for m in server.chats[4]["messages"]] == ["1", "A.", "2", "C.", "4"]


def test_new_chat_forgets_the_conversation(server: ScriptedServer, visit: Visit) -> None:
    """A new chat stops what runs, shows the greeting, and sends nothing of what was said before."""
    server.replies = [answer("Secret.", Hold()), answer("Hello.", ending())]
    me = visit(server.url)
    expect(text_of(me.say("Old"))).to_have_text("Secret.")
    me.page.get_by_role("button", name="New chat").click()
    expect(me.page.get_by_role("heading", name="Good to see you.")).to_be_visible()
    assert server.client_left.wait(120)
    expect(text_of(me.say("New"))).to_have_text("Hello.")
    assert [m["content"] for m in server.chats[1]["messages"]] == ["New"]


def test_an_answer_can_be_copied_as_it_was_written(server: ScriptedServer, visit: Visit) -> None:
    """Copy takes the model's own text, marks included."""
    server.replies = [answer("Some **bold** words.", ending())]
    me = visit(server.url, permissions=["clipboard-read", "clipboard-write"])
    me.say("Hi").get_by_role("button", name="Copy").click()
    expect(me.page.get_by_role("button", name="Copied")).to_be_visible()
    assert me.page.evaluate("navigator.clipboard.readText()") == "Some **bold** words."


# What is sent


def test_settings_are_sent_and_survive_a_reload(server: ScriptedServer, visit: Visit) -> None:
    """System prompt, temperature and token limit reach the request, also after a reload; Reset forgets them."""
    server.replies = [answer("Ok.", ending()), answer("Ok.", ending())]
    me = visit(server.url)
    me.set("System prompt", "Be brief.")
    me.set("Temperature", "0.3")
    me.set("Longest answer, in tokens", "64")
    me.page.reload()
    expect(me.page.locator("#model")).to_have_text("tiny-model")
    expect(text_of(me.say("Hi"))).to_have_text("Ok.")
    me.page.get_by_role("button", name="Settings").click()
    me.page.get_by_role("button", name="Reset").click()
    expect(me.page.get_by_label("System prompt")).to_have_value("")
    me.page.keyboard.press("Escape")
    me.page.get_by_role("button", name="New chat").click()
    expect(text_of(me.say("Hi"))).to_have_text("Ok.")
    plain = {
        "model": "tiny-model",
        "messages": [{"role": "user", "content": "Hi"}],
        "stream": True,
        "stream_options": {"include_usage": True, "segments": True},
        "service_tier": "default",
    }
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    assert server.chats == [plain | {"messages": messages, "temperature": 0.3, "max_tokens": 64}, plain]


def test_a_setting_out_of_range_is_shown_and_not_sent(server: ScriptedServer, visit: Visit) -> None:
    """A temperature of 9 is marked in its field, and the server's default is used."""
    server.replies = [answer("Ok.", ending())]
    me = visit(server.url)
    me.set("Temperature", "9")
    assert me.page.get_by_label("Temperature").evaluate("field => field.matches(':invalid')")
    expect(text_of(me.say("Hi"))).to_have_text("Ok.")
    assert "temperature" not in server.chats[0]


def test_class_choice_is_explained_and_sent(server: ScriptedServer, visit: Visit) -> None:
    """Background becomes the flex tier, says what that means, and is remembered."""
    server.replies = [answer("Ok.", ending()), answer("Ok.", ending())]
    me = visit(server.url)
    expect(me.page.locator("#class-help")).to_contain_text("Answered first")
    me.page.get_by_text("Background", exact=True).first.click()
    expect(me.page.locator("#class-help")).to_contain_text("may wait")
    expect(text_of(me.say("Hi"))).to_have_text("Ok.")
    me.page.reload()
    expect(me.page.get_by_role("radio", name="Background")).to_be_checked()
    me.page.get_by_role("radio", name="Background").press("ArrowLeft")
    expect(text_of(me.say("Hi"))).to_have_text("Ok.")
    assert [chat["service_tier"] for chat in server.chats] == ["flex", "default"]


# How an answer looks


def test_model_text_never_becomes_markup(server: ScriptedServer, visit: Visit) -> None:
    """Tags, links and images in an answer stay text, in every kind of block: nothing is parsed, fetched or run."""
    evil = '<img src=x onerror="boom()"><script>boom()</script> [a](javascript:boom()) ![b](http://example.org/b.png)'
    text = f"{evil}\n\n# {evil}\n\n- {evil}\n- **{evil}**\n\n```html\n{evil}\n```\n\n`{evil}`"
    server.replies = [answer(*segmented(text), ending())]
    me = visit(server.url)
    body = text_of(me.say(evil))
    expect(body.locator("pre")).to_have_text(evil)
    assert body.inner_text().count(evil) == 6
    assert me.page.locator(".turns :is(img, script, a, iframe)").count() == 0


def test_markdown_is_shown_in_its_safe_subset(server: ScriptedServer, visit: Visit) -> None:
    """Headings, nested lists, code, tables and emphasis; marks that do not belong together stay as they are."""
    text = (
        "# Title\nA *soft* and **`hard`** word, 2 * 3 * 4, a_b_c.\n\n"
        "3. three\n   more\n   - inner\n   ```sh\n   ls\n   ```\n\n   on\n4. four\n\n> so\n>\n> be it\n\nin\n1986. yes\n"
        "```python\nif x:\n    **y**\n```\n| a | b |\n|---|---|\n***\n**open"
    )
    server.replies = [answer(*segmented(text, 1), ending())]  # letter by letter: each state in between is drawn too
    me = visit(server.url)
    body = text_of(me.say("Hi"))
    expect(body.locator("p").last).to_have_text("**open")
    shown = body.evaluate("""body => {
        body.querySelectorAll(".code-head").forEach((head) => head.remove());
        const bare = (node) => node.nodeType === 3 ? node.data
            : `<${node.localName}>${[...node.childNodes].map(bare).join("")}</${node.localName}>`;
        return [...body.children].map(bare);
    }""")
    assert shown == [
        "<h3>Title</h3>",
        "<p>A <em>soft</em> and <strong><code>hard</code></strong> word, 2 * 3 * 4, a_b_c.</p>",
        "<ol><li>three\nmore<ul><li>inner</li></ul><div><pre><code>ls</code></pre></div><p>on</p></li><li>four</li></ol>",
        "<blockquote><p>so</p><p>be it</p></blockquote>",
        "<p>in\n1986. yes</p>",
        "<div><pre><code>if x:\n    **y**</code></pre></div>",
        "<div><pre><code>| a | b |\n|---|---|</code></pre></div>",
        "<hr></hr>",
        "<p>**open</p>",
    ]
    assert body.locator("ol").get_attribute("start") == "3"


STRUCTURED = """# A
Text **b**
c. Is it? 😀

- x
  - y
    ```js
    let a;

    ```
- z

  on

1. z

> q
>
> r

```js
let a;

- no
```
|t|s|
|-|-|
|1|2|
end `c` *d*

---
```
last"""


BLOCKS = "3. x\n4. y\n# a\ntext **b\n\nc** d\n- x\n  - y\n\n1. z\n\n```js\nlet a;\n\n```\n\n```\nb\n```\nend `c` *d*\n|t|\n---\n"


@pytest.mark.parametrize("text", [STRUCTURED, BLOCKS])
def test_ended_blocks_are_drawn_once_and_look_the_same(server: ScriptedServer, visit: Visit, text: str) -> None:
    """At every length the answer that grew equals one that is drawn anew, and a fence is never seen as text; ended blocks keep
    their nodes."""
    segmenter = Segmenter()
    steps = [{"text": letter, "marks": msgspec.to_builtins(segmenter.push(letter))} for letter in text]
    steps.append({"text": "", "marks": msgspec.to_builtins(segmenter.flush())})
    me = visit(server.url)
    result = me.page.evaluate(
        r"""async (steps) => {
            const { MarkdownView } = await import("/page/markdown.js");
            const { Structure } = await import("/page/segments.js");
            const answer = () => {
                const root = document.createElement("div");
                return { text: "", root, view: new MarkdownView(root), structure: new Structure() };
            };
            const add = (to, { text, marks }) => ((to.text += text), to.structure.add(text, marks));
            const show = ({ text, root, view, structure }, done) => (view.render(text, structure, done), root.innerHTML);
            const grown = answer();
            const [differing, fences, kept] = [[], [], new Map()];
            steps.forEach((step, i) => {
                const [fresh, done] = [answer(), i === steps.length - 1];
                steps.slice(0, i + 1).forEach((each) => add(fresh, each));
                add(grown, step);
                if (show(grown, done) !== show(fresh, done)) differing.push(grown.text.slice(-12));
                if (grown.root.textContent.includes("```")) fences.push(grown.text.slice(-12));
                for (const block of grown.structure.blocks) {
                    if (block.end !== null && !kept.has(block)) kept.set(block, block.node);
                }
            });
            const isKept = ([block, node]) => block.node === node && node.parentNode === grown.root;
            return { differing, fences, n: kept.size, kept: [...kept].filter(isKept).length, count: grown.root.children.length };
        }""",
        steps,
    )
    assert (result["differing"], result["fences"]) == ([], [])
    assert result["kept"] == result["n"] == result["count"] - 1  # a rule is no block


def test_what_is_uncertain_is_shown_when_the_answer_ends(server: ScriptedServer, visit: Visit) -> None:
    """A line that could have become a list, also where the answer ends within it, or without the server's last marks."""
    hold = Hold()
    server.replies = [answer(*segmented("Or\n2."), ending()), answer(*segmented("Or\n2.")[:-1], hold, Break())]
    me = visit(server.url)
    me.watch.allow("ERR_INCOMPLETE_CHUNKED_ENCODING")
    whole = me.say("Hi")
    expect(whole.get_by_role("list", name="Figures")).to_be_visible()
    broken = me.say("Hi")
    expect(text_of(broken)).to_have_text("Or")
    hold.release()
    expect(broken.get_by_role("alert")).to_contain_text("The connection broke")
    for reply in (whole, broken):
        expect(text_of(reply)).to_have_text("Or\n2.")


def test_the_outline_grows_while_the_answer_does(server: ScriptedServer, visit: Visit) -> None:
    """With the second heading a bar names the one being written; opened, it leads to each; Escape closes it and stops nothing."""
    hold, more = Hold(), Hold()
    parts = segmented("# Tea 🍵\n\nOne.\n\n## *Green* tea\n\n" + "Leaves. " * 20 + "\n\n## Black\n\n" + "More.\n\n" * 40)
    first, second = 3, 10
    server.replies = [answer(*parts[:first], hold, *parts[first:second], more, *parts[second:], ending())]
    me = visit(server.url)
    reply = me.say("Tea?")
    outline = reply.locator(".outline")
    expect(text_of(reply).get_by_role("heading", name="Tea 🍵")).to_be_visible()
    expect(outline).to_be_hidden()
    hold.release()
    expect(outline.locator(".outline-now")).to_have_text("Green tea")
    expect(outline.locator(".outline-count")).to_have_text("2 headings")
    outline.locator("summary").press("Enter")
    entries = outline.get_by_role("navigation", name="Outline of this answer").get_by_role("button")
    expect(entries).to_have_text(["Tea 🍵", "Green tea"])
    expect(entries.last).to_have_attribute("aria-current", "location")
    me.page.keyboard.press("Escape")
    expect(entries.first).to_be_hidden()
    expect(me.stop).to_be_visible()
    more.release()
    expect(reply.get_by_role("list", name="Figures")).to_be_visible()
    outline.locator("summary").click()
    expect(entries).to_have_text(["Tea 🍵", "Green tea", "Black"])
    expect(reply.locator("[aria-current]")).to_have_count(0)
    entries.nth(1).press("Enter")
    heading = text_of(reply).get_by_role("heading", name="Green tea")
    expect(heading).to_be_focused()
    expect(heading).to_be_in_viewport()
    bar, below = outline.bounding_box(), heading.bounding_box()
    assert bar is not None
    assert below is not None
    assert bar["y"] + bar["height"] < below["y"]


def test_outline_first_is_a_switch(server: ScriptedServer, visit: Visit) -> None:
    """It asks for the template by name, is remembered, and takes the person's own system prompt into the first message."""
    server.replies = [answer("Ok.", ending()) for _ in range(3)]
    me = visit(server.url)
    switch = me.page.get_by_role("switch", name="Outline first")
    expect(switch).not_to_be_checked()
    switch.press("Space")
    expect(me.page.locator("#class-help")).to_contain_text("begins with its outline")
    me.page.reload()
    expect(switch).to_be_checked()
    expect(text_of(me.say("Hi"))).to_have_text("Ok.")
    me.set("System prompt", "Be brief.")
    expect(text_of(me.say("Go on"))).to_have_text("Ok.")
    me.page.get_by_text("Outline first", exact=True).click()
    expect(text_of(me.say("So?"))).to_have_text("Ok.")
    assert [chat.get("template") for chat in server.chats] == ["outline-first", "outline-first", None]
    contents = [[message["content"] for message in chat["messages"]] for chat in server.chats]
    assert contents[0] == ["Hi"]
    assert contents[1] == ["Be brief.\n\nHi", "Ok.", "Go on"]
    assert contents[2][:2] == ["Be brief.", "Hi"]


def test_outline_first_is_offered_only_where_it_is_there(server: ScriptedServer, visit: Visit) -> None:
    """A server without the template gets no request for it, also when the switch was on before."""
    server.replies = [answer("Ok.", ending())]
    me = visit(server.url)
    me.page.get_by_role("switch", name="Outline first").press("Space")
    server.documents["/v1/templates"] = {"object": "list", "data": []}
    me.page.reload()
    expect(me.page.locator("#model")).to_have_text("tiny-model")
    expect(me.page.get_by_role("switch", name="Outline first")).to_be_hidden()
    expect(text_of(me.say("Hi"))).to_have_text("Ok.")
    assert "template" not in server.chats[0]


def test_the_view_follows_only_a_reader_who_is_at_the_end(server: ScriptedServer, visit: Visit) -> None:
    """A reader who scrolled up is left in peace, and can jump to the latest; one at the end is kept there."""
    first, second = Hold(), Hold()
    lines = "\n\n".join(f"line {n}" for n in range(80))
    server.replies = [answer(lines, first, "\n\nthe middle", second, "\n\nthe end", ending())]
    me = visit(server.url)
    scroller = me.page.get_by_role("region", name="Conversation")
    distance = "s => s.scrollHeight - s.scrollTop - s.clientHeight"
    reply = me.say("Hi")
    expect(text_of(reply)).to_contain_text("line 79")
    me.page.wait_for_function(f"s => ({distance})(s) < 2", arg=scroller.element_handle())
    scroller.evaluate("s => s.scrollTo(0, 0)")
    jump = me.page.get_by_role("button", name="Jump to the latest")
    expect(jump).to_be_visible()
    first.release()
    expect(text_of(reply)).to_contain_text("the middle")
    assert scroller.evaluate("s => s.scrollTop") == 0
    jump.click()
    expect(jump).to_be_hidden()
    second.release()
    expect(text_of(reply)).to_contain_text("the end")
    me.page.wait_for_function(f"s => ({distance})(s) < 2", arg=scroller.element_handle())


# The live numbers


def test_live_numbers_show_what_status_says(server: ScriptedServer, visit: Visit) -> None:
    """Counts, waits, percentiles, bars and rates, each in its place; no measurement is not zero."""
    busy = {"queued": 7, "running": 2, "wait_estimate_ms": 4200, "ttft_ms": {"p50": 312.4, "p95": 1240, "count": 31}}
    pools = [
        {"name": "short", "slots_held": 5, "slots": 10, "cells_used": 10240, "cells": 40960},
        {"name": "long", "slots_held": 0, "slots": 2, "cells_used": 0, "cells": 16384},
    ]
    rates = {"output": 131.4, "prompt": 8.25}
    server.documents["/status"] = IDLE | {
        "classes": {"interactive": busy, "background": IDLE_CLASS | {"running": 1}},
        "pools": pools,
        "tokens_per_s": rates,
    }
    me = visit(server.url)
    for name, text in {
        "running": "3",
        "output": "131",
        "prompt-rate": "8.3 tokens/s",
        "uptime": "1 min 15 s",
        "interactive.queued": "7",
        "interactive.wait": "about 4.2 s",
        "interactive.p50": "312 ms",
        "interactive.p95": "1.2 s",
        "background.wait": "none",
        "background.p50": "–",
    }.items():
        expect(me.number(name)).to_have_text(text)
    expect(me.page.locator(".pool h3")).to_have_text(["Pool short", "Pool long"])
    expect(me.page.locator(".use-text")).to_have_text(["5 of 10", "10,240 of 40,960", "0 of 2", "0 of 16,384"])
    bars = me.page.locator(".track > div")
    assert [bar.evaluate("bar => bar.style.width") for bar in bars.all()] == ["50%", "25%", "0%", "0%"]
    # One point or more: the page reads on while this test looks at it.
    expect(me.page.locator("#spark-output polyline")).to_have_attribute("points", re.compile(r"(^|,2\.5 )120\.0,2\.5$"))


def test_live_numbers_bear_a_server_that_tells_less(server: ScriptedServer, visit: Visit) -> None:
    """Missing and null fields are shown as unknown, not as zero and not as an error."""
    server.documents["/status"] = {
        "phase": "ready",
        "classes": {"interactive": {"running": 1, "wait_estimate_ms": None, "ttft_ms": {"p50": None, "p95": None}}},
    }
    me = visit(server.url)
    expect(me.number("interactive.running")).to_have_text("1")
    for name in ("output", "uptime", "interactive.wait", "interactive.p50", "background.running"):
        expect(me.number(name)).to_have_text("–")
    expect(me.page.locator("#live-problem")).to_be_hidden()


def test_polling_rests_while_the_page_is_hidden(server: ScriptedServer, visit: Visit) -> None:
    """A hidden page asks for nothing; a visible one asks each second, at once when it comes back."""
    me = visit(server.url, goto=False)
    me.page.clock.install()
    me.page.goto(server.url)
    expect(me.health).to_have_text("Ready")

    def reads() -> int:
        return server.reads.get("/status", 0)

    def pass_a_second() -> None:
        me.page.clock.run_for(1000)
        me.page.evaluate("fetch('/v1/models').then((response) => response.text())")

    def show(hidden: bool) -> None:
        me.page.evaluate(
            """(hidden) => {
                Object.defineProperty(document, "hidden", { configurable: true, get: () => hidden });
                document.dispatchEvent(new Event("visibilitychange"));
            }""",
            hidden,
        )

    for _ in range(3):
        before = reads()
        pass_a_second()
        wait_until(lambda before=before: reads() > before, me.page, "a visible page asks again")  # type: ignore[misc]
    show(hidden=True)
    before = reads()
    for _ in range(10):
        pass_a_second()
    assert reads() <= before + 1  # one may have been on its way
    before = reads()
    show(hidden=False)
    wait_until(lambda: reads() > before, me.page, "a page that comes back asks at once")


# For every screen and everybody


def test_a_narrow_screen_holds_everything(server: ScriptedServer, visit: Visit) -> None:
    """At 360 pixels nothing sticks out sideways, and the numbers take the chat's place on request."""
    server.replies = [answer(*segmented("```\n" + "wide " * 60 + "\n```\n" + "w" * 300), ending())]
    me = visit(server.url, viewport={"width": 360, "height": 640})
    expect(me.health).to_have_text("Ready")
    reply = me.say("m" * 200)
    expect(reply.get_by_role("list", name="Figures")).to_be_visible()
    assert me.page.evaluate("document.documentElement.scrollWidth") == 360
    assert me.page.get_by_role("region", name="Conversation").evaluate("s => s.scrollWidth - s.clientWidth") == 0
    toggle = me.page.get_by_role("button", name="Live")
    expect(me.number("interactive.running")).to_be_hidden()
    toggle.click()
    expect(me.number("interactive.running")).to_be_visible()
    expect(me.box).to_be_hidden()
    expect(toggle).to_have_attribute("aria-expanded", "true")
    toggle.click()
    expect(me.box).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_contrast(server: ScriptedServer, visit: Visit, scheme: str) -> None:
    """Every visible text has a contrast of at least 4.5 to what is behind it, in both colour schemes."""
    server.replies = [
        answer(*segmented("# A `b` **c**\n> q\n## x\n```js\nd\n```"), ending("length")),
        refusal(500, "Internal error.", Retry_After="20"),
        answer(Hold()),
    ]
    me = visit(server.url, goto=False, color_scheme=scheme, reduced_motion="reduce")  # no colours on their way
    me.watch.allow("status of 50")
    me.page.goto(server.url)
    me.page.get_by_role("switch", name="Outline first").press("Space")
    server.documents["/health"] = READY | {"ready": False, "status": "failed", "detail": "why"}
    expect(me.page.locator("#notice")).to_contain_text("why")
    expect(me.say("Hi").locator(".status")).to_have_text("cut at the token limit")
    me.page.locator(".outline summary").click()
    expect(me.say("Hi").get_by_role("alert")).to_be_visible()
    me.say("Hi")
    expect(me.stop).to_be_visible()
    weak = me.page.evaluate(
        """() => {
            const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
            const rgba = (color) => {
                context.clearRect(0, 0, 1, 1);
                context.fillStyle = color;
                context.fillRect(0, 0, 1, 1);
                return [...context.getImageData(0, 0, 1, 1).data];
            };
            const behind = (node) => {
                const color = rgba(getComputedStyle(node).backgroundColor);
                return color[3] === 255 || !node.parentElement ? color : behind(node.parentElement);
            };
            const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
                .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
                .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
            const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
            const seen = (node) => node.checkVisibility({ visibilityProperty: true }) && !node.closest(".sr-only, .skip");
            const nodes = [...document.body.querySelectorAll("*")].filter((node) =>
                seen(node) && [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim()));
            return nodes.map((node) => [node.className || node.localName, node.textContent.slice(0, 30),
                    ratio(light(rgba(getComputedStyle(node).color)), light(behind(node)))])
                .filter(([, , contrast]) => contrast < 4.5);
        }"""
    )
    assert weak == []
    me.stop.click()


def test_everything_that_can_be_used_has_a_name(server: ScriptedServer, visit: Visit) -> None:
    """Each control, in the page and in the drawer, tells a screen reader what it is."""
    server.replies = [answer(*segmented("```js\nx\n```"), ending())]
    me = visit(server.url)
    expect(me.say("Hi").get_by_role("list", name="Figures")).to_be_visible()
    names: list[str] = []
    for opener in (None, "Settings"):
        if opener:
            me.page.get_by_role("button", name=opener).click()
        tree = me.page.locator("body").aria_snapshot()
        roles = ("button", "textbox", "spinbutton", "radio", "link")
        names += [line.strip(" -") for line in tree.splitlines() if line.strip(" -").startswith(roles)]
    assert len(names) > 12
    assert [name for name in names if '"' not in name] == []


# The real server


def endless(route: Route) -> None:
    """Lets an answer run to its limit, so that the test cannot be outrun by a model that has little to say."""
    request = json.loads(route.request.post_data or "{}")
    route.continue_(post_data=json.dumps(request | {"ignore_eos": True, "max_tokens": 2000}))


def total_running(server: PoiseServer) -> int:
    return sum(figures["running"] for figures in server.get("/status")[1]["classes"].values())


def test_real_page_is_guarded(poise_server: PoiseServer, visit: Visit) -> None:
    """The server sends the page with a policy that allows its own files only, and the page lives with it."""
    me = visit(poise_server.url, goto=False)
    response = me.page.goto(poise_server.url)
    assert response is not None
    assert "script-src 'self'" in response.headers["content-security-policy"]
    expect(me.health).to_have_text("Ready")
    expect(me.page.locator("#model")).not_to_be_empty()


def test_real_conversation(poise_server: PoiseServer, visit: Visit) -> None:
    """Two turns with the real model: each has text and figures, and the live panel shows the pools."""
    me = visit(poise_server.url)
    me.set("Longest answer, in tokens", "24")
    for question in ("Why is the sky blue?", "And at sunset?"):
        reply = me.say(question)
        expect(reply.get_by_role("list", name="Figures")).to_contain_text("finish: ")
        expect(reply.get_by_role("list", name="Figures")).to_contain_text("tokens/s")
        expect(text_of(reply)).not_to_be_empty()
    expect(me.number("interactive.p50")).not_to_have_text("–")
    expect(me.page.locator(".pool").first).to_contain_text("KV cells")


def test_real_stop(poise_server: PoiseServer, visit: Visit) -> None:
    """Tokens stream in; Stop keeps them and ends the work in the engine."""
    me = visit(poise_server.url)
    me.page.route("**/v1/chat/completions", endless)
    body = text_of(me.say("Tell me a long story.")).element_handle()
    length = "body => body.textContent.length"
    me.page.wait_for_function(f"body => ({length})(body) > 0", arg=body)
    seen = body.evaluate(length)
    me.page.wait_for_function(f"([body, seen]) => ({length})(body) > seen", arg=[body, seen])
    expect(me.number("interactive.running")).to_have_text("1")
    with me.page.expect_request(lambda request: request.url.endswith("/cancel")) as cancel:
        me.stop.click()
    expect(me.answers.locator(".status")).to_have_text("Stopped")
    assert body.evaluate(length) > seen
    wait_until(lambda: total_running(poise_server) == 0, me.page, "the engine stops computing")
    kept = poise_server.get(cancel.value.url.removeprefix(poise_server.url).removesuffix("/cancel"))[1]
    assert (kept["outcome"], kept["choices"][0]["finish_reason"]) == ("cancelled", "length")
    assert kept["choices"][0]["text"]
    expect(me.number("interactive.running")).to_have_text("0")


def test_real_class_choice(poise_server: PoiseServer, visit: Visit) -> None:
    """A background message runs as background work."""
    me = visit(poise_server.url)
    me.page.route("**/v1/chat/completions", endless)
    me.page.get_by_text("Background", exact=True).first.click()
    me.say("Tell me a long story.")
    expect(me.number("background.running")).to_have_text("1")
    expect(me.number("interactive.running")).to_have_text("0")
    me.stop.click()
    wait_until(lambda: total_running(poise_server) == 0, me.page, "the engine stops computing")
