"""From a checked request to the prompts that the engine is given, within the limits of its class.

A raw prompt fits or is refused. A conversation may be under a context policy: then it is rendered and tokenised with fewer and
fewer turns until it fits, so that every number that is told is exact. Turns that are to be summarized leave a `SummaryPlan`
behind, because the summary is the engine's work and may take a while; `finish` takes it in when it is there.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from poise.config import ClassSettings, Settings
from poise.gateway import summary as summaries
from poise.gateway.context_policy import Allowance, ContextLimits, ContextPolicy, Turns, fewest
from poise.gateway.errors import ApiError, invalid_value
from poise.gateway.openai import ChatRequest, CompletionRequest, Options, class_settings, default_output
from poise.gateway.parameters import SYSTEM_ROLES, Message
from poise.gateway.templates import Templates
from poise.gateway.text import TextModel
from poise.scheduler.request import RequestClass
from poise.wire.messages import Ready

CONTEXT_HEADER = "X-Poise-Context"
WARNING_HEADER = "X-Poise-Warning"
_HINTS = {
    ContextPolicy.REJECT: "Shorten the conversation, ask for fewer output tokens, or let the server leave out the oldest turns: "
    "'context_policy': 'trim', or 'summarize' to keep a summary of them.",
    ContextPolicy.TRIM: "Shorten these, or ask for fewer output tokens.",
    ContextPolicy.SUMMARIZE: "Shorten these, ask for fewer output tokens, or use 'context_policy': 'trim'.",
}


@dataclass(frozen=True, slots=True)
class SummaryPlan:
    """A summary that must be made before the prompt is known: of how many turns and tokens, and from which prompts."""

    turns: Turns
    n_turns: int
    n_tokens: int
    n_output: int
    prompt_max: int
    """Tokens of the prompt with the summary."""
    pieces: list[list[int]]
    n_added: int


@dataclass(slots=True)
class Plan:
    """What a request comes to, and what its answer tells of it. With a `summary`, `ids` are still to come."""

    limits: ContextLimits
    allowance: Allowance
    param: str
    ids: list[list[int]] = field(default_factory=list)
    template: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    notes: dict[str, Any] | None = None
    summary: SummaryPlan | None = None


class Prompts:
    """Makes the plans of all requests under one configuration."""

    def __init__(self, settings: Settings, templates: Templates, on_long_system: Callable[[str], None]) -> None:
        self._settings = settings
        self._templates = templates
        self._on_long_system = on_long_system

    async def completion(self, parsed: CompletionRequest, ready: Ready, text: TextModel) -> Plan:
        """Raises ApiError when a prompt does not fit."""
        plan = Plan(
            limits_of(parsed.options.request_class, self._settings, ready), self._allowance(parsed.options), "prompt"
        )
        for prompt in parsed.prompts:
            ids = await text.prompt_ids(prompt) if isinstance(prompt, str) else prompt
            if not ids:
                raise invalid_value("prompt", "have at least one token", prompt)
            if plan.allowance.granted(plan.limits, len(ids)) is None:
                hint = "Shorten it or ask for fewer output tokens."
                raise plan.limits.exceeded(len(ids), plan.allowance, "prompt", hint=hint)
            plan.ids.append(ids)
        return plan

    async def chat(self, tenant: str, parsed: ChatRequest, ready: Ready, text: TextModel) -> Plan:
        """Raises ApiError when the conversation does not fit, however much of it the caller's policy leaves out."""
        request_class, messages = parsed.options.request_class, parsed.messages
        if parsed.template:
            messages = self._templates.apply(parsed.template, tenant, messages)
        plan = Plan(limits_of(request_class, self._settings, ready), self._allowance(parsed.options), "messages")
        fitter = _Fitter(text, plan, messages, n_added=1 if parsed.template else 0)
        n_whole = await fitter.whole()
        policy = ContextPolicy(parsed.context_policy)
        if policy is ContextPolicy.REJECT or plan.limits.fit(n_whole, plan.allowance.wanted(plan.limits)):
            fitter.take(n_whole, policy)
        elif policy is ContextPolicy.TRIM:
            await fitter.trim()
        else:
            await fitter.summarize(limits_of(RequestClass.BACKGROUND, self._settings, ready))
        await self._warn(plan, text, messages, n_whole)
        self._name_template(plan, parsed)
        return plan

    async def finish(self, plan: Plan, parsed: ChatRequest, text: TextModel, summary: summaries.Summary) -> None:
        """Put the summary in its place; one that came out longer than planned is cut."""
        todo = plan.summary
        assert todo is not None
        said = summary.text

        async def ids(cut: int) -> list[int]:
            message = summaries.summary_message(said[: len(said) - cut])
            return await text.chat_ids(todo.turns.kept(todo.n_turns, message), todo.n_added, in_thread=True)

        async def fits(cut: int) -> bool:
            return len(await ids(cut)) <= todo.prompt_max

        cut = 0 if await fits(0) else await fewest(len(said), fits) or len(said)
        plan.ids = [await ids(cut)]
        plan.summary = None
        used = said[: len(said) - cut]
        plan.notes = {
            "context": {
                "policy": ContextPolicy.SUMMARIZE.value,
                "summarized_turns": todo.n_turns,
                "summarized_messages": len(todo.turns.dropped(todo.n_turns)),
                "summarized_tokens": todo.n_tokens,
                # Counted by itself: a chat template may leave out a system prompt of its own now that there is one.
                "summary_tokens": await text.plain_length(summaries.summary_message(used).content),
                "summary": used,
                "summary_usage": summary.usage.as_json(),
                "prompt_tokens": len(plan.ids[0]),
            }
        }
        self._name_template(plan, parsed)

    def _allowance(self, options: Options) -> Allowance:
        if options.max_tokens is not None:
            return Allowance(options.max_tokens, is_named=True)
        return Allowance(default_output(class_settings(self._settings, options.request_class)), is_named=False)

    def _name_template(self, plan: Plan, parsed: ChatRequest) -> None:
        if parsed.template and plan.ids:
            plan.template = self._templates.begins(parsed.template, plan.ids[0])

    async def _warn(self, plan: Plan, text: TextModel, messages: list[Message], n_whole: int) -> None:
        """Tell the caller of a system prompt that leaves little room for the conversation."""
        share = class_settings(self._settings, RequestClass(plan.limits.request_class)).long_system_share
        most = share * plan.limits.context
        system = "\n".join(message.content for message in messages if message.role in SYSTEM_ROLES)
        # A token is at least a byte, so most requests need no second look.
        if n_whole <= most or len(system.encode()) <= most:
            return
        n_system = await text.plain_length(system)
        if n_system > most:
            plan.headers[WARNING_HEADER] = (
                f"system prompt takes {n_system} of {plan.limits.context} tokens; a shorter one leaves more to the conversation"
            )
            self._on_long_system(plan.limits.request_class)


class _Fitter:
    """One conversation, tokenised with more or fewer turns; what was found once is remembered."""

    def __init__(self, text: TextModel, plan: Plan, messages: list[Message], n_added: int) -> None:
        self._text = text
        self._plan = plan
        self._messages = messages
        self._n_added = n_added
        self._turns = Turns(messages)
        self._ids: dict[tuple[int, bool], list[int]] = {}

    async def whole(self) -> int:
        """Tokens of the conversation as it came."""
        ids = await self._text.chat_ids(self._messages, self._n_added)
        self._ids[0, False] = ids
        return len(ids)

    def take(self, n_whole: int, policy: ContextPolicy, n_dropped: int = 0) -> None:
        """Settle for a prompt without summary, if it fits. `n_whole`: its tokens."""
        limits, allowance = self._plan.limits, self._plan.allowance
        if allowance.granted(limits, n_whole) is None:
            raise self._exceeded(n_whole, policy)
        self._plan.ids = [self._ids[n_dropped, False]]

    async def trim(self) -> None:
        """Leave out the fewest turns that make it fit, and say so."""
        n = await self._fewest(lambda n_dropped: self._length(n_dropped))
        if n is None:
            raise self._exceeded(await self._length(self._turns.droppable), ContextPolicy.TRIM)
        self.take(await self._length(n), ContextPolicy.TRIM, n)
        if n:
            n_whole, n_prompt = await self._length(0), await self._length(n)
            self._plan.notes = {
                "context": {
                    "policy": ContextPolicy.TRIM.value,
                    "dropped_turns": n,
                    "dropped_messages": len(self._turns.dropped(n)),
                    "dropped_tokens": n_whole - n_prompt,
                    "prompt_tokens": n_prompt,
                }
            }
            self._plan.headers[CONTEXT_HEADER] = f"trim; dropped_turns={n}; dropped_tokens={n_whole - n_prompt}"

    async def summarize(self, limits: ContextLimits) -> None:
        """Choose the fewest turns that make it fit when a summary stands for them. `limits`: of the class that writes it."""
        n_output = summaries.tokens_max(self._plan.limits)

        async def length(n_dropped: int) -> int:
            return await self._length(n_dropped, summary=True) + n_output if n_dropped else await self._length(0)

        n = await self._fewest(length)
        if n is None:
            droppable = self._turns.droppable
            raise self._exceeded(await length(droppable), ContextPolicy.SUMMARIZE, n_output if droppable else 0)
        if n == 0:
            self.take(await self._length(0), ContextPolicy.SUMMARIZE)
            return
        n_tokens = await self._length(0) - await self._length(n)
        pieces = await summaries.piece_prompts(self._text, self._turns.dropped(n), limits, n_output)
        self._plan.summary = SummaryPlan(self._turns, n, n_tokens, n_output, await length(n), pieces, self._n_added)
        self._plan.headers[CONTEXT_HEADER] = f"summarize; summarized_turns={n}; summarized_tokens={n_tokens}"

    async def _fewest(self, length: Callable[[int], Awaitable[int]]) -> int | None:
        """Fewest turns to leave out for the answer that is wanted; if that cannot be had, for the least answer."""
        limits, allowance = self._plan.limits, self._plan.allowance
        for n_output in (allowance.wanted(limits), allowance.least):

            async def fits(n_dropped: int, n_output: int = n_output) -> bool:
                return limits.fit(await length(n_dropped), n_output)

            if await fits(0):
                return 0
            if (n := await fewest(self._turns.droppable, fits)) is not None:
                return n
        return None

    async def _length(self, n_dropped: int, *, summary: bool = False) -> int:
        """Tokens of the prompt without its first turns, perhaps with the heading of a summary in their place."""
        key = (n_dropped, summary)
        if key not in self._ids:
            stands_for = summaries.summary_message("") if summary else None
            messages = self._turns.kept(n_dropped, stands_for)
            try:
                self._ids[key] = await self._text.chat_ids(messages, self._n_added, in_thread=True)
            except ApiError as error:
                if stands_for is None or error.status != 400:
                    raise
                reason = f"The model's chat template has no place for a summary: {error.message} Use 'trim'."
                raise ApiError(400, "invalid_messages", reason, param="context_policy") from None
        return len(self._ids[key])

    def _exceeded(self, n_prompt: int, policy: ContextPolicy, n_summary: int = 0) -> ApiError:
        what = "The prompt"
        if policy is not ContextPolicy.REJECT:
            what = "With nothing but its system messages and its last turn, the prompt"
        if n_summary:
            what += f" with a summary of up to {n_summary} tokens"
        return self._plan.limits.exceeded(
            n_prompt, self._plan.allowance, self._plan.param, what=what, hint=_HINTS[policy]
        )


def limits_of(request_class: RequestClass, settings: Settings, ready: Ready) -> ContextLimits:
    """What a class may have on this engine."""
    of_class: ClassSettings = class_settings(settings, request_class)
    return ContextLimits.of_class(request_class.value, of_class, max(pool.slot_cells for pool in ready.pools))
