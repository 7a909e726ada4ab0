"""One API request on its way through the local engine: perhaps a summary first, then its generation."""

import asyncio
import logging
import secrets
from collections.abc import Callable
from functools import partial

import msgspec

from poise.gateway.models.local.generation import ChoiceRequest, Generation
from poise.gateway.models.local.prompts import Plan, Prompts
from poise.gateway.models.local.summary import Summarizer
from poise.gateway.records.following import Stop
from poise.gateway.records.record import Record
from poise.gateway.request.bugs import log_bug
from poise.gateway.request.generate import Conversation, Generate
from poise.gateway.request.refusals import ApiError, internal_error
from poise.gateway.text.answers import PlainAnswer
from poise.gateway.text.tokens import TextModel
from poise.scheduler.request import Hold

log = logging.getLogger(__name__)

_SEEDS = 2**32 - 1
"""The engine's seeds are 32 bit, and llama.cpp takes the highest one to mean a random seed."""


class LocalJob:
    """A request and its plan, ready for the engine."""

    def __init__(
        self,
        request: Generate,
        plan: Plan,
        fingerprint: str,
        prompts: Prompts,
        text: TextModel,
        generation_of: Callable[[Record], Generation],
    ) -> None:
        self.n_choices = request.n * max(1, len(plan.ids))  # a prompt that waits for its summary is one
        self.fingerprint = fingerprint
        self.headers = plan.headers
        self.ignored = tuple(plan.ignored)
        self.is_late = plan.summary is not None
        self._asked: tuple[Generate, Plan] | None = (request, plan)
        """Until it starts: from then on the prompt is held by who works on it, and by nobody who outlives that."""
        self._prompts = prompts
        self._text = text
        self._generation_of = generation_of

    def start(self, record: Record) -> None:
        """Hand it to the engine."""
        assert self._asked is not None, "it has started"
        (request, plan), self._asked = self._asked, None
        generation = self._generation_of(record)
        if plan.summary is None:
            record.start(generation)
            _submit(generation, record, request, plan, self._text)
            return
        work = SummaryFirst(record, generation, Summarizer(record, self._generation_of, self._text))
        record.start(work)
        record.note("summarizing", turns=plan.summary.n_turns)
        work.begin(request, plan, self._prompts, self._text)


class SummaryFirst:
    """Work in two stages: the summary that a prompt needs, and then the generation."""

    def __init__(self, record: Record, generation: Generation, summarizer: Summarizer) -> None:
        self._record = record
        self._generation = generation
        self._summarizer: Summarizer | None = summarizer
        """As long as that stage lasts."""
        self._task: asyncio.Task[None] | None = None

    def begin(self, request: Generate, plan: Plan, prompts: Prompts, text: TextModel) -> None:
        """Start with the summary."""
        self._task = asyncio.create_task(self._run(request, plan, prompts, text), name="summary")

    def stop(self, why: Stop) -> None:
        task, self._task = self._task, None  # what a cancelled task has raised knows its frames, and they know this
        if task is not None:
            task.cancel()
        self._generation.stop(why)

    def hold(self, level: Hold) -> None:
        self._generation.hold(level)

    def requests(self) -> list[tuple[int, int]]:
        """What the engine is computing for it now, the summary included."""
        if self._summarizer is not None and self._summarizer.running is not None:
            return self._summarizer.running.requests()
        return self._generation.requests()

    async def _run(self, request: Generate, plan: Plan, prompts: Prompts, text: TextModel) -> None:
        """Make the prompt that the summary belongs to, then go on as usual."""
        assert plan.summary is not None
        assert self._summarizer is not None
        try:
            summary, usage = await self._summarizer.summarize(plan.summary.pieces, plan.summary.n_output)
            self._summarizer = None
            await prompts.finish(plan, text.of(plan.account), summary, usage)
            _submit(self._generation, self._record, request, plan, text)
        except ApiError as error:
            self._generation.fail(error)
        except Exception as bug:
            error_id = log_bug(log, self._record.origin.request_id, bug)
            self._generation.fail(internal_error(error_id))


def _submit(generation: Generation, record: Record, request: Generate, plan: Plan, text: TextModel) -> None:
    record.n_prompt, record.notes = sum(len(ids) for ids in plan.ids), plan.notes
    if request.structure is not None:
        record.note("held_to", kind=request.structure.kind)
    tools = {tool.name: tool.parameters or {} for tool in request.tools.offered}
    parser = partial(text.parser, plan.ids[0], tools) if isinstance(request.prompt, Conversation) else PlainAnswer
    generation.submit(_choices(plan, request, text), request.stop + plan.turn_marks, parser)


def _choices(plan: Plan, request: Generate, text: TextModel) -> list[ChoiceRequest]:
    """One engine request for each choice of each prompt, in the order of their indices."""
    seed = secrets.randbits(32) if request.seed is None else request.seed
    requests = []
    for i_prompt, ids in enumerate(plan.ids):
        echo = request.echoed(i_prompt)
        max_output = plan.allowance.granted(plan.limits, len(ids))
        assert max_output is not None, "the plan fits"
        thinking = None if plan.budget is None else text.budget(plan.budget, ids)
        grammar = plan.grammar
        if grammar is not None and plan.is_closed:
            grammar = msgspec.structs.replace(grammar, until=max_output)
        for i in range(request.n):
            sampling = msgspec.structs.replace(request.sampling, seed=(seed + i) % _SEEDS, thinking=thinking)
            requests.append(ChoiceRequest(ids, max_output, sampling, plan.template, grammar, echo))
    return requests
