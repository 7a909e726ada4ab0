"""The text workers: started, watched, killed when they hang, started again; and who of those that wait is next.

A worker has one job at a time. What it may cost the others is bounded: a job has a time, after which its worker is killed; a job
whose client has left is dropped, or cut off soon if it runs and others wait; one that ends two workers is refused. Where there
are several workers, one is kept for small texts. Streams never notice any of this: what they need is in the gateway."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from poise.config.serving import TextSettings
from poise.gateway.request.refusals import ApiError, server_stopping, text_queue_full, text_rejected, text_unavailable
from poise.gateway.supervision.blame import ending
from poise.gateway.supervision.life import Backoff
from poise.gateway.tasks import Tasks
from poise.gateway.text.process import WORKER_COMMAND, WorkerProcess
from poise.gateway.text.queue import Entry, TextQueue
from poise.gateway.text.tokens import TextFigures, TextWorkerRow, WorkerState
from poise.metrics.early import TextMetrics
from poise.wire import text as wire
from poise.wire.framing import FrameError

log = logging.getLogger(__name__)

DEATHS_MAX = 2
"""Workers that a job may end before it is refused."""
FIRST_STARTS_MAX = 3
"""Workers that may end before one was ever ready, until the start is given up."""
GONE_S = 0.5
"""For so long a job may go on whose client has left, while others wait."""
SLOWDOWN_MAX = 12.0
"""A text's time is CPU time of its worker, because one that others keep from the processors is not at fault; in all it may last
so many times as long. A large text has a tenth of a core on a busy host."""
LOAD_S_MAX = 120.0
RESTART_DELAY_MAX_S = 15.0
STABLE_AFTER_S = 5.0
MEASURED_S = 0.01
"""CPU time is measured in steps of so much."""
RETRY_S = 2.0
DEATHS_KEPT = 64


class TextUnusable(Exception):
    """No worker can be started for this model. One line for the operator."""


@dataclass(eq=False, slots=True)
class _Job(Entry):
    """One job of a request. It is in the queue, or with a worker, or its future is done."""

    message: wire.Job
    future: asyncio.Future[wire.Answer]
    asked_s: float
    n_deaths: int = 0
    began_s: float = 0.0
    began_cpu_s: float = 0.0
    """CPU time that its worker had used before."""
    rendered: bool = False
    timer: asyncio.TimerHandle | None = None


@dataclass(eq=False, slots=True)
class _Place:
    """Where one worker runs, and the next one when it has ended."""

    backoff: Backoff = field(default_factory=lambda: Backoff(RESTART_DELAY_MAX_S))
    process: WorkerProcess | None = None
    job: _Job | None = None
    ready_s: float = 0.0
    """When the worker that is there was ready; 0: it is not."""
    began_s: float = 0.0
    """When it was started."""
    starts: int = 0
    loading: asyncio.TimerHandle | None = None
    """What ends a worker that is not ready in time."""
    killed_for: str = ""
    last_words: str = ""

    @property
    def state(self) -> WorkerState:
        if self.process is None:
            return WorkerState.WAITING
        if not self.ready_s:
            return WorkerState.STARTING
        return WorkerState.READY if self.job is None else WorkerState.BUSY

    def kill(self, why: str) -> None:
        if self.process is not None and not self.killed_for:
            self.killed_for = why
            self.process.kill()


class TextWorkers:
    """TextJobs over real processes. All methods are called in one event loop."""

    def __init__(
        self,
        settings: TextSettings,
        model_path: str,
        command: Sequence[str] = WORKER_COMMAND,
        tasks: Tasks | None = None,
        fingerprint: str = "",
        chat_template: str = "",
    ) -> None:
        """`command` starts a worker; the number of its end of a socket pair is added to it. `model_path` empty: there is no
        model. `fingerprint`: of the model file; `chat_template`: a file with one in the place of its own."""
        self._tasks = tasks or Tasks()
        self.metrics = TextMetrics()
        self.deaths: deque[tuple[float, str]] = deque(maxlen=DEATHS_KEPT)
        """When workers ended without being asked to, and how."""
        self._settings = settings
        self._model_path = model_path
        self._fingerprint = fingerprint
        self._chat_template = chat_template
        self._command = command
        self._queue: TextQueue[_Job] = TextQueue(settings.queue_mb << 20)
        self._places = [_Place() for _ in range(settings.workers)]
        self._keeping: list[asyncio.Task[None]] = []
        self._vocabulary: wire.Vocabulary | None = None
        self._problem = ""
        self._known = asyncio.Event()
        self._is_stopping = False
        self._load_s = 1.0
        """What the last start of a worker took."""
        self.metrics.watch(lambda: sum(bool(place.ready_s) for place in self._places), lambda: self._queue.n_waiting)

    def start(self) -> None:
        """Begin to start the workers, unless that was done."""
        if not self._keeping:
            self._keeping = [
                self._tasks.start(f"text-worker-{i}", partial(self._keep, place), essential=True)
                for i, place in enumerate(self._places)
            ]

    async def stop(self) -> None:
        """End the workers and whatever waits for them."""
        self._is_stopping = True
        for task in self._keeping:
            task.cancel()
        await asyncio.gather(*self._keeping, return_exceptions=True)
        while (job := self._queue.take()) is not None:
            self._end(job, server_stopping(), "unavailable")

    async def vocabulary(self) -> wire.Vocabulary:
        """The model's vocabulary, once a worker has read it. Raises TextUnusable."""
        await self._known.wait()
        if self._vocabulary is None:
            raise TextUnusable(self._problem or "there is no model on this host")
        return self._vocabulary

    def status(self) -> TextFigures:
        """For /status."""
        workers = []
        for place in self._places:
            pid = place.process.process.pid if place.process is not None else None
            workers.append(TextWorkerRow(pid, place.state, max(0, place.starts - 1)))
        return TextFigures(workers, self._queue.n_waiting, self._queue.n_bytes)

    async def run(self, job: wire.Job, account: str, n_bytes: int) -> wire.Answer:
        """The answer to a job. Raises ApiError. When it is cancelled, nothing more is done for it."""
        loop = asyncio.get_running_loop()
        if self._is_stopping:
            raise server_stopping()
        ours = _Job(account, n_bytes, job, loop.create_future(), time.perf_counter())
        if not self._queue.add(ours, time.monotonic_ns()):
            self.metrics.ended("unavailable")
            raise text_queue_full(RETRY_S)
        ours.timer = loop.call_later(self._settings.wait_s, self._waited_too_long, ours)
        self._dispatch()
        try:
            return await ours.future
        except asyncio.CancelledError:
            self._gone(ours)
            raise
        finally:
            del ours  # an error's traceback has this frame, and the job has the error: they would hold each other, and the text

    def _dispatch(self) -> None:
        """Give free workers something to do; what nobody wants any more makes room."""
        for place in self._places:
            if place.ready_s and place.job is None and not place.killed_for:
                n_large = sum(other.job is not None and other.job.is_large for other in self._places)
                if (job := self._queue.take(only_small=n_large >= max(1, len(self._places) - 1))) is not None:
                    self._begin(place, job)
        if self._queue.n_waiting:
            now_s = time.perf_counter()
            for place in self._places:
                if place.job is not None and place.job.future.done() and now_s - place.job.began_s > GONE_S:
                    place.kill("gone")

    def _begin(self, place: _Place, job: _Job) -> None:
        assert place.process is not None
        place.job, job.rendered, job.began_s = job, False, time.perf_counter()
        self.metrics.began(job.began_s - job.asked_s)
        job.began_cpu_s = place.process.cpu_s()
        self._watch(place, job, self._limit_s(job))
        place.process.send(job.message)

    def _watch(self, place: _Place, job: _Job, after_s: float) -> None:
        assert job.timer is not None
        job.timer.cancel()
        job.timer = asyncio.get_running_loop().call_later(after_s, self._look_at_time, place, job)

    def _limit_s(self, job: _Job) -> float:
        is_grammar = isinstance(job.message, wire.CheckGrammar) and job.rendered
        return self._settings.grammar_timeout_s if is_grammar else self._settings.timeout_s

    def _look_at_time(self, place: _Place, job: _Job) -> None:
        """End a worker whose text has had its time, or look again when it may be over."""
        assert place.process is not None
        limit_s = self._limit_s(job)
        left_s = limit_s - (place.process.cpu_s() - job.began_cpu_s)
        longest_s = limit_s * SLOWDOWN_MAX - (time.perf_counter() - job.began_s)
        if min(left_s, longest_s) <= 0.0:
            place.kill("timeout")
        else:
            self._watch(place, job, min(max(left_s, MEASURED_S), longest_s))

    def _receive(self, place: _Place, message: wire.FromWorker) -> None:
        if isinstance(message, wire.Vocabulary | wire.Opened):
            self._opened(place, message)
        elif isinstance(message, wire.Unusable):
            place.last_words = message.problem
            place.kill("exit")
        elif isinstance(message, wire.Rendered):
            if place.job is not None and place.process is not None:
                place.job.rendered = True
                if isinstance(place.job.message, wire.CheckGrammar):  # its time begins when the vocabulary is there
                    place.job.began_cpu_s, place.job.began_s = place.process.cpu_s(), time.perf_counter()
                    self._watch(place, place.job, self._limit_s(place.job))
        elif place.job is not None:
            job = self._took(place)
            self._end(job, message, "gone" if job.future.done() else "done")
            self._dispatch()

    def _opened(self, place: _Place, answer: wire.Vocabulary | wire.Opened) -> None:
        if isinstance(answer, wire.Opened) or self._vocabulary is None:
            self._vocabulary = answer if isinstance(answer, wire.Vocabulary) else self._vocabulary
            self._known.set()
        elif answer != self._vocabulary:
            # Its ids would mean something else to the engine, and to the table that answers are read by.
            place.last_words = "the model file has another vocabulary than before; restart the server to serve it"
            place.kill("exit")
            return
        if place.loading is not None:
            place.loading.cancel()
        place.ready_s = time.monotonic()
        self._load_s = place.ready_s - place.began_s
        self._dispatch()

    def _took(self, place: _Place) -> _Job:
        """The worker is done with its job, in one way or another."""
        job = place.job
        assert job is not None
        assert job.timer is not None
        job.timer.cancel()  # it would end whoever works then
        place.job = None
        worked_s = time.perf_counter() - job.began_s
        self.metrics.worked(worked_s)
        self._queue.charge(job, int(worked_s * 1e6))
        return job

    def _end(self, job: _Job, result: wire.Answer | ApiError | None, outcome: str) -> None:
        """`result`: None for a job that nobody waits for any more."""
        self._queue.end(job)
        self.metrics.ended(outcome)
        if job.timer is not None:
            job.timer.cancel()
        if job.future.done():
            return
        if isinstance(result, ApiError):
            job.future.set_exception(result)
        elif result is not None:
            job.future.set_result(result)

    def _gone(self, job: _Job) -> None:
        """Its client has left."""
        if self._queue.drop(job):
            self._end(job, None, "gone")
        elif any(place.job is job for place in self._places):
            left_s = max(0.0, job.began_s + GONE_S - time.perf_counter())
            asyncio.get_running_loop().call_later(left_s + 0.001, self._dispatch)

    def _waited_too_long(self, job: _Job) -> None:
        if self._queue.drop(job):
            is_any_ready = any(place.ready_s for place in self._places)
            why = "all of them are busy" if is_any_ready else "it is being started again"
            self._end(job, text_unavailable(why, RETRY_S), "unavailable")

    async def _keep(self, place: _Place) -> None:
        """Run workers one after the other until the server stops, or none can be started."""
        while not self._problem:
            delay_s = await self._run_one(place)
            await asyncio.sleep(delay_s)

    async def _run_one(self, place: _Place) -> float:
        """Start one worker and let it work until it ends. Returns the time until the next start."""
        place.killed_for = place.last_words = ""
        place.starts += 1
        place.began_s = time.monotonic()
        try:
            place.process = await WorkerProcess.start(lambda message: self._receive(place, message), self._command)
        except OSError as error:
            return self._note_death(place, f"a text worker cannot be started: {error}", stable=False)
        process = place.process
        place.loading = asyncio.get_running_loop().call_later(LOAD_S_MAX, place.kill, "timeout")
        try:
            known = self._vocabulary is not None and bool(self._fingerprint)
            limits = self._settings.memory_mb
            process.send(wire.Open(self._model_path, limits, self._fingerprint, known, self._chat_template))
            await process.connection.lost
        except ConnectionError:
            pass  # it is gone
        except FrameError as error:
            place.last_words = f"a text worker said what is no message: {error}"
        finally:
            place.loading.cancel()
            code = await process.end()
            place.process, place.ready_s, ready_s = None, 0.0, place.ready_s
            if place.job is not None and self._is_stopping:
                self._end(self._took(place), server_stopping(), "unavailable")
        return self._died(place, code, ready_s)

    def _died(self, place: _Place, code: int, ready_s: float) -> float:
        """What is to become of its job, and when the next worker is started. `ready_s`: since when it was ready, 0: not."""
        how = place.last_words or f"a text worker ended ({ending(code)})"
        if place.job is None:
            return self._note_death(place, how, stable=bool(ready_s) and time.monotonic() - ready_s > STABLE_AFTER_S)
        job = self._took(place)
        cause = place.killed_for or "crash"
        self.metrics.died(cause)
        self._queue.charge(job, int(self._load_s * 1e6))  # what everybody waits for the next one
        if job.future.done():
            self._end(job, None, "gone")
            return 0.0
        self.deaths.append((time.monotonic(), cause))
        if cause == "timeout":
            log.error("a text took longer than it may (%g s); its worker was killed", limit_s := self._limit_s(job))
            self._end(job, _took_too_long(job, limit_s), "rejected")
            return 0.0
        job.n_deaths += 1
        log.error("%s with a text; another one is started", how)
        if job.n_deaths < DEATHS_MAX:
            job.timer = asyncio.get_running_loop().call_later(self._settings.wait_s, self._waited_too_long, job)
            self._queue.put_back(job)
        else:
            self._end(job, text_rejected(f"{job.n_deaths} text workers ended over it"), "rejected")
        return 0.0  # its job's fault

    def _note_death(self, place: _Place, how: str, *, stable: bool) -> float:
        """Note the end of a worker that had no job; returns the time until the next start."""
        self.metrics.died("exit")
        self.deaths.append((time.monotonic(), "exit"))
        delay_s = place.backoff.after(stable=stable)
        if not self._known.is_set() and (place.last_words or place.starts >= FIRST_STARTS_MAX):
            self._problem = self._problem or how
            self._known.set()
        else:
            log.error("%s; another one is started %s", how, f"in {delay_s:.1f} s" if delay_s else "at once")
        return delay_s


def _took_too_long(job: _Job, timeout_s: float) -> ApiError:
    is_template = isinstance(job.message, wire.Chat | wire.Write | wire.Fit | wire.Cut | wire.Opening)
    if is_template and not job.rendered:
        what = f"The model's chat template failed: it was not done after {timeout_s:g} s."
        hint = "/v1/completions takes a prompt that is written out."
        return ApiError(400, "chat_template_failed", f"{what} {hint}", param="messages")
    return text_rejected(f"it was not done after {timeout_s:g} s")
