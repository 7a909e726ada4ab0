"""One API request on its way through the local engine: perhaps a summary first, then its generation."""

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import msgspec

from poise.gateway.models.local.generation import ChoiceRequest, Generation, Leaves
from poise.gateway.models.local.prompts import Plan, Prompts
from poise.gateway.models.local.refusals import summary_failed
from poise.gateway.records.following import Stop
from poise.gateway.records.record import Follower, Record
from poise.gateway.records.values import Usage
from poise.gateway.request.bugs import log_bug
from poise.gateway.request.generate import Conversation, Generate
from poise.gateway.request.refusals import ApiError, internal_error
from poise.gateway.text.answers import AnswerParser
from poise.gateway.text.tokens import TextModel
from poise.scheduler.request import Hold, RequestClass
from poise.wire.to_engine import SamplingParams

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
        self.leaves: Leaves | None = None
        """See `Generation`."""

    def start(self, record: Record) -> None:
        """Hand it to the engine."""
        assert self._asked is not None, "it has started"
        (request, plan), self._asked = self._asked, None
        generation = self._generation_of(record)
        generation.leaves = self.leaves
        if plan.summary is None:
            record.start(generation)
            _submit(generation, record, request, plan, self._text)
            return
        work = SummaryFirst(record, generation, self._generation_of, self._text)
        record.start(work)
        record.note("summarizing", turns=plan.summary.n_turns)
        work.begin(request, plan, self._prompts)


class SummaryFirst:
    """Work in two stages: the summary that a prompt needs, in pieces one after the other, and then the generation."""

    def __init__(
        self, record: Record, generation: Generation, generation_of: Callable[[Record], Generation], text: TextModel
    ) -> None:
        self._record = record
        self._generation = generation
        self._generation_of = generation_of
        self._text = text
        self._piece: Generation | None = None
        """Of the summary, the one that is being made, as long as that stage lasts."""
        self._task: asyncio.Task[None] | None = None

    def begin(self, request: Generate, plan: Plan, prompts: Prompts) -> None:
        """Start with the summary."""
        self._task = asyncio.create_task(self._run(request, plan, prompts), name="summary")

    def stop(self, why: Stop) -> None:
        task, self._task = self._task, None  # what a cancelled task has raised knows its frames, and they know this
        if task is not None:
            task.cancel()
        self._generation.stop(why)

    def hold(self, level: Hold) -> None:
        self._generation.hold(level)

    def requests(self) -> list[tuple[int, int]]:
        """What the engine is computing for it now, the summary included."""
        return (self._piece or self._generation).requests()

    async def _run(self, request: Generate, plan: Plan, prompts: Prompts) -> None:
        """Make the prompt that the summary belongs to, then go on as usual."""
        assert plan.summary is not None
        try:
            summary, usage = await self._summarize(plan.summary.pieces, plan.summary.n_output)
            self._piece = None
            await prompts.finish(plan, self._text.of(plan.account), summary, usage)
            _submit(self._generation, self._record, request, plan, self._text)
        except ApiError as error:
            self._generation.fail(error)
        except Exception as bug:
            error_id = log_bug(log, self._record.origin.request_id, bug)
            self._generation.fail(internal_error(error_id))

    async def _summarize(self, prompts: Sequence[list[int]], n_output: int) -> tuple[str, Usage]:
        """The answers to all prompts, made one after the other, and what they took. Raises ApiError when one fails; cancelled, it
        leaves nothing."""
        usage = Usage(0, 0)
        share = n_output // len(prompts)
        texts = [await self._answer(prompt, share, usage) for prompt in prompts]
        joined = "\n".join(text for text in texts if text)
        if not joined:
            raise summary_failed("the model wrote nothing")
        return joined, usage

    async def _answer(self, prompt: list[int], n_output: int, usage: Usage) -> str:
        origin = replace(
            self._record.origin,
            request_id=self._record.origin.request_id + "-summary",
            request_class=RequestClass.BACKGROUND,
            arrived_s=time.perf_counter(),
        )
        record = Record(origin, self._record.heading, 1)
        record.n_prompt, record.erased = len(prompt), self._record.erased
        follower = Follower(record)
        self._piece = generation = self._generation_of(record)
        record.start(generation)
        try:
            asked = ChoiceRequest(prompt, n_output, SamplingParams(temperature=0.0))
            generation.submit([asked], parser=partial(self._text.parser, prompt, {}))
            await follower.ended()
        finally:
            generation.stop(Stop.CANCELLED)
            follower.leave()
            self._record.served_us += record.served_us
        used = record.usage()
        usage.prompt_tokens += used.prompt_tokens
        usage.completion_tokens += used.completion_tokens
        usage.cached_tokens += used.cached_tokens
        return record.answers()[0].text.strip()


def _submit(generation: Generation, record: Record, request: Generate, plan: Plan, text: TextModel) -> None:
    record.n_prompt, record.notes = sum(len(ids) for ids in plan.ids), plan.notes
    if request.structure is not None:
        record.note("held_to", kind=request.structure.kind)
    tools = {tool.name: tool.parameters or {} for tool in request.tools.offered}
    parser = partial(text.parser, plan.ids[0], tools) if isinstance(request.prompt, Conversation) else AnswerParser
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
            requests.append(ChoiceRequest(ids, max_output, sampling, plan.template, grammar, echo, plan.prediction))
    return requests
