"""From a checked request to the prompts that the engine is given, within the limits of its class.

A raw prompt fits or is refused; what cannot fit by its bytes is refused before anybody tokenises it. A conversation may be under
a context policy: then a text worker renders and tokenises it with fewer and fewer turns until it fits, so that every number
that is sent is exact. Turns that are to be summarized leave a `SummaryPlan` behind, because the summary is the engine's work and
may take a while; `finish` takes it in when it is there."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import msgspec

from poise.config import ClassSettings, Settings
from poise.config.classes import class_settings, default_output
from poise.gateway.models.local import summary as summaries
from poise.gateway.models.local.grammars import Grammars, structure_of
from poise.gateway.models.local.templates import Templates
from poise.gateway.records.record import Origin
from poise.gateway.records.values import ContextNote, Notes, Usage
from poise.gateway.request import headers
from poise.gateway.request.generate import Conversation, Generate
from poise.gateway.request.refusals import ApiError, context_length_exceeded, invalid_value, unsupported_parameter
from poise.gateway.request.tools import ToolMode
from poise.gateway.text.context import Allowance, ContextLimits, ContextPolicy, Turns
from poise.gateway.text.tokens import TextModel, Tokens, text_bytes
from poise.scheduler.policy import SHORT_POOL
from poise.scheduler.request import RequestClass
from poise.wire.messages import Ready
from poise.wire.text import INFILL, SYSTEM_ROLES, Cut, Fit, Message, said
from poise.wire.to_engine import Grammar

_PROMPT_HINT = "Shorten it."
_HINTS = {
    ContextPolicy.REJECT: "Shorten the conversation, or let the server leave out the oldest turns: "
    "'context_policy': 'trim', or 'summarize' to keep a summary of them.",
    ContextPolicy.TRIM: "Shorten these.",
    ContextPolicy.SUMMARIZE: "Shorten these, or use 'context_policy': 'trim'.",
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
    asked: Conversation


@dataclass(slots=True)
class Plan:
    """What a request comes to, and what its answer tells of it. With a `summary`, `ids` are still to come."""

    account: str
    """Who the text workers' time is counted to."""
    limits: ContextLimits
    allowance: Allowance
    param: str
    ids: list[list[int]] = field(default_factory=list)
    template: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    notes: Notes | None = None
    summary: SummaryPlan | None = None
    grammar: Grammar | None = None
    """What each output must be."""
    is_closed: bool = True
    """Whether an output that has to end before that is closed. A call that nobody asked for by name is not: it would be made."""
    reasoning: tuple[str, int | None] = ("", None)
    """Text that ends the reasoning, and the token that begins one, where the prompt has not begun it."""
    budget: int | None = None
    """Tokens of reasoning after which its end is forced."""
    prediction: list[int] = field(default_factory=list)
    """Of the output, as far as it can be of use."""
    ignored: list[str] = field(default_factory=list)
    """Fields of the request that have no effect on this model."""
    turn_marks: tuple[str, ...] = ()
    """Texts that end an answer, beside those that were asked for."""

    def warn(self, text: str) -> None:
        """Say it to the caller, unless it is nothing."""
        if text:
            headers.warn(self.headers, text)

    def cut_allowance(self) -> None:
        """Say it where less output is granted than was asked for."""
        sizes = [self.summary.prompt_max] if self.summary is not None else [len(ids) for ids in self.ids]
        asked = self.allowance
        granted = min(asked.granted(self.limits, n_prompt) or 1 for n_prompt in sizes)
        if asked.is_named and granted < asked.tokens:
            self.warn(
                f"output allowance of {asked.tokens} tokens is cut to {granted}, which is what the class may have and the slot "
                "has left beside the prompt"
            )
        if self.summary is not None:
            self.allowance = Allowance(granted, is_named=True)


class Prompts:
    """Makes the plans of all requests under one configuration."""

    def __init__(self, settings: Settings, templates: Templates, on_long_system: Callable[[str], None]) -> None:
        self._settings = settings
        self._templates = templates
        self._on_long_system = on_long_system
        self.grammars = Grammars(settings.text.grammar_kb_max)

    async def plan(self, origin: Origin, request: Generate, ready: Ready, text: TextModel) -> Plan:
        """Raises ApiError when a prompt does not fit, however much of a conversation the caller's policy leaves out."""
        limits = limits_of(request.request_class, self._settings, ready)
        plan = Plan(origin.account, limits, self._allowance(request), origin.prompt_param)
        if isinstance(request.prompt, Conversation):
            await self._chat(plan, origin.tenant, self._steered(plan, request.prompt, text), ready, text)
            await self._predict(plan, request.prompt.prediction, text)
            if plan.ids and text.begins_inside(plan.ids[0]):
                plan.reasoning = text.reasoning_closes, None
            elif len(text.reasoning_start) == 1:  # else it is a mark that the model may have never seen
                plan.reasoning = text.reasoning_closes, text.reasoning_start[0]
        else:
            for prompt in request.prompt:
                plan.ids.append(await self._continued(plan, prompt, request.suffix, text))
        plan.cut_allowance()
        tried = partial(self.grammars.tried, tenant=origin.tenant, text=text.of(origin.account))
        if (structure := await structure_of(request, text.reading, tried)) is not None:
            grammar = await tried(structure)
            plan.grammar = Grammar(grammar, *(plan.reasoning if structure.after_reasoning else ()))
            plan.is_closed = structure.kind != "tools" or request.tools.mode is ToolMode.REQUIRED
        return plan

    def _steered(self, plan: Plan, asked: Conversation, text: TextModel) -> Conversation:
        """The conversation with what its model can be told of how much to reason; the rest has no effect. Raises ApiError."""
        variables, wish = dict(asked.rendering.variables), asked.thinking
        for param, named in wish.variables.items():
            known = {name: value for name, value in named.items() if text.knows(name)}
            variables = known | variables
            if not known:
                self._ignore(plan, param, next(iter(named.values())))
        if wish.budget is not None and text.reasoning_end:
            plan.budget = wish.budget if wish.budget >= 0 else None
        elif wish.budget is not None:
            self._ignore(plan, wish.budget_param, wish.budget)
        return replace(asked, rendering=msgspec.structs.replace(asked.rendering, variables=variables))

    async def _predict(self, plan: Plan, prediction: str, text: TextModel) -> None:
        """Of a prediction no more than an output can have."""
        if prediction and not self._settings.speculation.max_streams:
            self._ignore(plan, "prediction", None, "speculation.max_streams is 0, so nothing is made of it; leave it out")
        elif prediction:
            most = plan.limits.context
            tokens = text.of(plan.account)
            found = await tokens.prompt(prediction[: most * text.longest], add_special=False, parse_special=False)
            plan.prediction = found.ids[:most]

    def _ignore(
        self, plan: Plan, param: str, value: object, why: str = "this model cannot be told how much to reason; leave it out"
    ) -> None:
        if self._settings.server.strict:
            raise unsupported_parameter(param, value, why)
        plan.ignored.append(param)

    async def _continued(self, plan: Plan, prompt: str | list[int], suffix: str, text: TextModel) -> list[int]:
        """The tokens of a text that is to be continued, up to a suffix if there is one. Raises ApiError when it does not fit."""
        limits = plan.limits
        n, ids = 0, prompt if isinstance(prompt, list) else []
        if isinstance(prompt, str):
            n_bytes = text_bytes(prompt + suffix)
            if error := limits.cannot_fit(n_bytes, text.longest, plan.param, hint=_PROMPT_HINT):
                raise error
            found = await text.of(plan.account).prompt(prompt, limits.prompt, suffix=suffix)
            n, ids = found.n, found.ids
        n = n or len(ids)
        if not n:
            raise invalid_value(plan.param, "have at least one token", prompt)
        if plan.allowance.granted(limits, n) is None:
            raise limits.exceeded(n, plan.param, hint=_PROMPT_HINT)
        return ids

    async def _chat(self, plan: Plan, tenant: str, asked: Conversation, ready: Ready, text: TextModel) -> None:
        """Raises ApiError when the conversation does not fit under its policy."""
        messages = self._templates.apply(asked.template, tenant, asked.messages) if asked.template else asked.messages
        policy = ContextPolicy(asked.context_policy)
        self._check_size(plan, messages, policy, text)
        plan.turn_marks = text.turn_marks
        fitter = _Fitter(text.of(plan.account), plan, messages, asked)
        if policy is ContextPolicy.REJECT:
            n_whole = await fitter.whole()
        elif policy is ContextPolicy.TRIM:
            n_whole = await fitter.trim()
        else:
            n_whole = await fitter.summarize(limits_of(RequestClass.BACKGROUND, self._settings, ready))
        await self._warn(plan, text.of(plan.account), messages, n_whole)
        self._name_template(plan, asked.template)

    async def finish(self, plan: Plan, text: Tokens, summary: str, usage: Usage) -> None:
        """Put the summary in its place; one that came out longer than planned is cut."""
        todo = plan.summary
        assert todo is not None
        message, turns, n_turns = summaries.summary_message(summary), todo.turns, todo.n_turns
        n_head, most, rendering = len(message.content) - len(summary), todo.prompt_max, todo.asked.rendering
        job = Cut(list(turns.messages), turns.numbers, todo.n_added, n_turns, message, n_head, most, rendering)
        cut = await text.cut(job)
        used = summary[: len(summary) - cut.n_chars]
        plan.ids = [cut.ids]
        plan.summary = None
        note = ContextNote(
            policy=ContextPolicy.SUMMARIZE.value,
            summarized_turns=n_turns,
            summarized_messages=len(turns.dropped(n_turns)),
            summarized_tokens=todo.n_tokens,
            # Counted by itself: a chat template may leave out a system prompt of its own now that there is one.
            summary_tokens=await text.length(summaries.summary_message(used).content),
            summary=used,
            summary_usage=usage.as_sent(),
            prompt_tokens=len(plan.ids[0]),
        )
        plan.notes = Notes(note)
        self._name_template(plan, todo.asked.template)

    def _check_size(self, plan: Plan, messages: list[Message], policy: ContextPolicy, text: TextModel) -> None:
        """Refuse what is so long that looking at it would be wasted, or too dear."""
        if policy is ContextPolicy.REJECT:
            n_bytes = text.least_bytes(messages)
            if error := plan.limits.cannot_fit(n_bytes, text.longest, plan.param, hint=_HINTS[policy]):
                raise error
            return
        n_chars, most = sum(len(said(message)) for message in messages), self._settings.text.trim_chars_max
        if n_chars > most:
            message = f"The prompt is too long: {n_chars} characters > {most} maximum under '{policy.value}'."
            raise context_length_exceeded(message, "Leave out the oldest turns before you send it.", plan.param)

    def _allowance(self, request: Generate) -> Allowance:
        if request.max_tokens is not None:
            return Allowance(request.max_tokens, is_named=True)
        return Allowance(default_output(class_settings(self._settings, request.request_class)), is_named=False)

    def _name_template(self, plan: Plan, template: str) -> None:
        if template and plan.ids:
            plan.template = self._templates.begins(template, plan.ids[0])

    async def _warn(self, plan: Plan, text: Tokens, messages: list[Message], n_whole: int) -> None:
        """Tell the caller of a system prompt that leaves little room for the conversation."""
        share = class_settings(self._settings, RequestClass(plan.limits.request_class)).long_system_share
        most = share * plan.limits.context
        system = "\n".join(message.content for message in messages if message.role in SYSTEM_ROLES)
        # A token is at least a byte, so most requests need no second look.
        if n_whole <= most or len(system.encode()) <= most:
            return
        n_system = await text.length(system)
        if n_system > most:
            plan.warn(
                f"system prompt takes {n_system} of {plan.limits.context} tokens; a shorter one leaves more to the conversation"
            )
            self._on_long_system(plan.limits.request_class)


class _Fitter:
    """One conversation and what it may take."""

    def __init__(self, text: Tokens, plan: Plan, messages: list[Message], asked: Conversation) -> None:
        """`messages`: those that were asked for, with what is added to them."""
        self._text = text
        self._plan = plan
        self._messages = messages
        self._asked = asked
        self._n_added = 1 if asked.template else 0
        self._turns = Turns(messages)

    async def whole(self) -> int:
        """Take the conversation as it came. Returns its tokens, as the others do."""
        found = await self._text.chat(self._messages, self._n_added, self._plan.limits.prompt, self._asked.rendering)
        if self._plan.allowance.granted(self._plan.limits, found.n) is None:
            raise self._exceeded(found.n, ContextPolicy.REJECT)
        self._plan.ids = [found.ids]
        self._plan.warn(found.note)
        return found.n

    async def trim(self) -> int:
        """Leave out the fewest turns that make it fit, and say so."""
        found = await self._text.fit(self._job())
        n = found.n_dropped
        if n is None:
            raise self._exceeded(found.n_prompt, ContextPolicy.TRIM)
        self._plan.warn(found.note)
        self._plan.ids = [found.ids]
        if n:
            n_dropped = found.n_whole - found.n_prompt
            note = ContextNote(
                policy=ContextPolicy.TRIM.value,
                dropped_turns=n,
                dropped_messages=len(self._turns.dropped(n)),
                dropped_tokens=n_dropped,
                prompt_tokens=found.n_prompt,
            )
            self._plan.notes = Notes(note)
            self._plan.headers[headers.CONTEXT] = f"trim; dropped_turns={n}; dropped_tokens={n_dropped}"
        return found.n_whole

    async def summarize(self, limits: ContextLimits) -> int:
        """Choose the fewest turns that make it fit when a summary stands for them. `limits`: of the class that writes it."""
        n_output = summaries.tokens_max(self._plan.limits)
        found = await self._text.fit(self._job(summaries.summary_message(""), n_output))
        n = found.n_dropped
        if n is None:
            n_output = n_output if self._turns.droppable else 0
            raise self._exceeded(found.n_prompt + n_output, ContextPolicy.SUMMARIZE, n_output)
        self._plan.warn(found.note)
        if n == 0:
            self._plan.ids = [found.ids]
            return found.n_whole
        n_tokens = found.n_whole - found.n_plain
        pieces = await summaries.piece_prompts(self._text, self._turns.dropped(n), limits, n_output)
        most, n_added = found.n_prompt + n_output, self._n_added
        self._plan.summary = SummaryPlan(self._turns, n, n_tokens, n_output, most, pieces, n_added, self._asked)
        self._plan.headers[headers.CONTEXT] = f"summarize; summarized_turns={n}; summarized_tokens={n_tokens}"
        return found.n_whole

    def _job(self, summary: Message | None = None, reserve: int = 0) -> Fit:
        """First for the answer that is wanted; if that cannot be had, for a shorter one."""
        limits, allowance = self._plan.limits, self._plan.allowance
        rooms = [limits.room_for(n_output) for n_output in allowance.wanted(limits)]
        return Fit(self._messages, self._turns.numbers, self._n_added, rooms, summary, reserve, self._asked.rendering)

    def _exceeded(self, n_prompt: int, policy: ContextPolicy, n_summary: int = 0) -> ApiError:
        what = "The prompt"
        if policy is not ContextPolicy.REJECT:
            more = f", and a summary of up to {n_summary} tokens" if n_summary else ""
            what = f"With nothing but its system messages and its last turn{more}, the prompt"
        return self._plan.limits.exceeded(n_prompt, self._plan.param, what=what, hint=_HINTS[policy])


def check_suffix(suffix: str, text: TextModel, name: str) -> None:
    """Raises ApiError where there is one, and the model of that name cannot fill in."""
    if suffix and (lacks := ", ".join(token for token in INFILL if token not in text.special)):
        hint = f"the model '{name}' has no infill tokens ({lacks}); use one that is made for code, or leave it out"
        raise unsupported_parameter("suffix", suffix, hint)


def limits_of(request_class: RequestClass, settings: Settings, ready: Ready) -> ContextLimits:
    """What a class may have on this engine."""
    of_class: ClassSettings = class_settings(settings, request_class)
    cells = {pool.name: pool.slot_cells for pool in ready.pools}
    most = max(cells.values())
    return ContextLimits.of_class(request_class.value, of_class, most, cells.get(SHORT_POOL, most))
