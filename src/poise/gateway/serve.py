"""`poise serve`: check what can be checked at once, start the engine, answer HTTP until a signal, end cleanly."""

import asyncio
import contextlib
import errno
import gc
import logging
import os
import signal
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

from starlette.applications import Starlette

from poise import __version__
from poise.audit.log import AuditError
from poise.config import LoadedSettings, Settings
from poise.config.paths import keys_file, ledger_file
from poise.engine.leash import no_core_dumps
from poise.gateway.app import create_app
from poise.gateway.http.connections.files import raise_limit
from poise.gateway.http.connections.server import HttpServer
from poise.gateway.models.egress.hosts import EgressSetupError
from poise.gateway.models.local.templates import TemplateUnusable
from poise.gateway.models.money.books import LedgerError
from poise.gateway.models.money.ledger import Ledger
from poise.gateway.models.money.prices import Prices
from poise.gateway.models.names import UnknownTarget
from poise.gateway.models.routing.policy import AUTO
from poise.gateway.supervision.absent import NoEngine
from poise.gateway.supervision.engine import SERVER_STOPPING, EnginePhase, EngineState
from poise.gateway.supervision.preflight import CannotStart, Checked
from poise.gateway.supervision.preflight import check as check_model
from poise.gateway.supervision.supervisor import Supervisor
from poise.gateway.tasks import Tasks
from poise.gateway.tenancy.auditing import Audit, open_audit
from poise.gateway.tenancy.exposure import Exposed, check, count_keys, tls_context
from poise.gateway.tenancy.keys import KeyRing, KeysError
from poise.gateway.tenancy.tenants import LocalOperators
from poise.gateway.text.tokens import TextModel, TextSlot
from poise.gateway.text.workers import TextUnusable, TextWorkers
from poise.llama.files.memory import available_bytes
from poise.metrics.traces import Traces, TracesUnavailable, open_traces
from poise.operator_token import TokenFile, write_token
from poise.wire.messages import Ready

log = logging.getLogger(__name__)

CANNOT_START = 2
CANNOT_GO_ON = 70
"""Exit code when a task without which nothing works cannot go on: EX_SOFTWARE of sysexits.h, for a service manager to act on."""
DRAIN_POLL_S = 0.05
SHUTDOWN_GRACE_S = 3


def serve(loaded: LoadedSettings) -> int:
    """Serve until SIGINT or SIGTERM. Returns the exit code; a start that cannot succeed is one line on stderr and 2."""
    settings = loaded.settings
    if not settings.server.core_dumps:
        no_core_dumps()
    logging.basicConfig(
        level=os.environ.get("POISE_LOG", "warning").upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    raise_limit()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing has been started that would have to be ended in order
    try:
        checked = check_model(loaded) if settings.engine.enabled else Checked("")
        _warn(checked)
        settings = settings.with_layout(checked.layout)
        keys = KeyRing(keys_file(settings.auth))
        tls = tls_context(settings.server)
        listeners = _listen(settings, keys)
        audit = open_audit(settings)
        costs = any(Prices.of(backend).most(1, 1) for backend in settings.backends.values())
        ledger = Ledger(settings, ledger_file(settings.egress)) if costs else None
    except (CannotStart, KeysError, Exposed, AuditError, LedgerError, _CannotListen) as error:
        print(f"poise: {error}", file=sys.stderr)  # noqa: T201 - the terminal is where the person is
        return CANNOT_START
    with contextlib.ExitStack() as stack:
        for listener in listeners:
            stack.enter_context(listener)
        try:
            service = _Service(settings, Path(checked.path), listeners, keys, audit, ledger, tls)
        except (TracesUnavailable, UnknownTarget, EgressSetupError) as error:
            print(f"poise: {error}", file=sys.stderr)  # noqa: T201
            return CANNOT_START
        return service.run()


class _CannotListen(Exception):
    pass


class _Service:
    """The gateway's parts, put together once."""

    def __init__(
        self,
        settings: Settings,
        path: Path,
        listeners: list[socket.socket],
        keys: KeyRing,
        audit: Audit,
        ledger: Ledger | None,
        tls: ssl.SSLContext | None,
    ) -> None:
        self._settings = settings
        self._token = _open_token(listeners[0])
        self._audit, self._ledger = audit, ledger
        self._tls = tls
        self._path = path
        self._listeners = listeners
        self._exit_code = 0
        self._is_cut_off = False
        self._tasks = Tasks(on_give_up=self._give_up)
        is_front, file = not settings.engine.enabled, "" if path == Path() else str(path)
        supervisor = None if is_front else Supervisor(settings, file, tasks=self._tasks)
        self._supervisor: Supervisor | NoEngine = supervisor or NoEngine()
        self._model_name = settings.model.name or (AUTO if is_front else path.stem)
        self._workers = TextWorkers(
            settings.text,
            file,
            tasks=self._tasks,
            fingerprint="" if supervisor is None else supervisor.model.fingerprint,
            chat_template=settings.model.chat_template,
        )
        self._text_known = asyncio.Event()
        self._app = app = create_app(
            settings,
            self._supervisor,
            model_name=self._model_name,
            text=TextSlot(self._workers),
            lifespan=self._lifespan,
            keys=keys,
            operators=LocalOperators(self._token.token if self._token is not None else ""),
            audit=audit,
            recovery=self._supervisor.metrics,
            tasks=self._tasks,
            free=available_bytes,
            ledger=ledger,
        )
        self._traces: Traces | None = None
        if endpoint := settings.telemetry.otlp_endpoint:
            self._traces = open_traces(endpoint, self._model_name)
            app.metrics.on_story = self._traces.ended
        self._draining: asyncio.Task[None] | None = None
        self._server = HttpServer(app, settings, metrics=app.metrics.connections, tls=tls, grace_s=SHUTDOWN_GRACE_S)

    def run(self) -> int:
        self._audit.put("start", version=__version__, model=self._model_name, address=self._url())
        try:
            self._server.run(sockets=self._listeners)
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)  # what is left takes no time
            if self._token is not None:
                self._token.close()
            self._audit.strangers.tell()
            if self._ledger is not None:
                self._ledger.close()
            self._audit.put("stop", exit_code=self._exit_code)
            self._audit.close()
        return self._exit_code

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop)
        await self._supervisor.start()
        self._tasks.start("announce", self._announce)
        self._tasks.start("text", self._open_text)
        try:
            yield
        finally:
            await self._workers.stop()
            await self._supervisor.stop(at_once=self._is_cut_off)
            if self._traces is not None:
                await asyncio.to_thread(self._traces.close)

    def _stop(self) -> None:
        """The first signal lets what runs come to its end, within its time; the second one ends everything at once."""
        if self._draining is None:
            self._draining = self._tasks.start("drain", self._drain, essential=True)
        else:
            self._is_cut_off = True
            self._server.cut_off()

    def _give_up(self, why: str) -> None:
        """A process that does not do its work ends: who started it starts it again. The engine ends with its socket."""
        log.critical("%s: the server ends", why)
        self._exit_code = CANNOT_GO_ON
        self._server.force_exit = self._server.should_exit = True

    async def _drain(self) -> None:
        until_s = self._app.degradation.drain()
        supervisor = self._supervisor
        while (supervisor.n_live or self._app.metrics.n_open) and time.monotonic() < until_s:  # noqa: ASYNC110 - no events
            await asyncio.sleep(DRAIN_POLL_S)
        if supervisor.n_live:
            log.warning("the time for draining is over: %d requests are ended", supervisor.n_live)
            supervisor.end_all(SERVER_STOPPING, "the time for draining was over")
        self._server.should_exit = True

    async def _announce(self) -> None:
        """Say what the person at the terminal waits for, and then what is being served."""
        state, shown = self._supervisor.state, ""
        while not state.is_settled:
            await self._supervisor.until(partial(_is_news, shown))
            if not state.is_settled:
                shown = state.stage
                print(f"{shown} ({self._path.name}) ...", flush=True)  # noqa: T201
        if not self._settings.engine.enabled:
            await self._text_known.wait()
            print(front_banner(self._settings, self._url()), flush=True)  # noqa: T201
        elif state.phase is EnginePhase.READY and state.ready is not None:
            await self._text_known.wait()
            print(banner(self._settings, self._model_name, state.ready, self._url()), flush=True)  # noqa: T201
        elif state.phase is EnginePhase.FAILED:
            self._cannot_start(state.detail)

    async def _open_text(self) -> None:
        """Start the text workers once there is an engine, and give the application their vocabulary."""
        begins = EngineState().stage
        await self._supervisor.until(lambda state: state.stage != begins or state.is_settled or state.restarts > 0)
        self._workers.start()
        if not self._settings.engine.enabled:
            self._text_known.set()
            freeze_heap()
            return
        try:
            vocabulary = await self._workers.vocabulary()
            await self._app.set_text(TextModel(vocabulary, self._workers))
        except (TextUnusable, TemplateUnusable) as error:
            self._cannot_start(str(error))
        else:
            self._text_known.set()
            freeze_heap()

    def _cannot_start(self, why: str) -> None:
        """Once: what is wrong with a model's file is found by the engine and by a text worker."""
        if not self._exit_code:
            print(f"poise: {why}", file=sys.stderr)  # noqa: T201
            self._exit_code = CANNOT_START
        self._server.should_exit = True

    def _url(self) -> str:
        host, port = self._listeners[0].getsockname()[:2]
        scheme = "http" if self._tls is None else "https"
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _open_token(listener: socket.socket) -> TokenFile | None:
    """The token by which local commands are known. Without a place for it, /admin takes admin keys only."""
    address, port = listener.getsockname()[:2]
    try:
        return write_token(address, port)
    except OSError as error:
        print(  # noqa: T201 - the terminal is where the person is
            f"poise: warning: no token for local operators could be written: {error.filename}: {error.strerror}; "
            "`poise top` and the dashboard need an admin key (poise keys add NAME --admin)",
            file=sys.stderr,
        )
        return None


def _is_news(shown: str, state: EngineState) -> bool:
    return state.is_settled or state.stage != shown


def banner(settings: Settings, model_name: str, ready: Ready, url: str) -> str:
    """What was loaded, the limits of each class, and a line to try."""
    lines = [f"serving {model_name} ({ready.model_description}, {ready.model_bytes / 1e6:.0f} MB) on {url}"]
    lines += [f"  {'weights':<12} {ready.weights}: {ready.weights_reason}", ""]
    for pool in ready.pools:
        flash = "on" if pool.flash_attention else "off"
        lines.append(
            f"  {pool.name + ' pool':<12} {pool.n_slots} slots of {pool.slot_cells} tokens, "
            f"{pool.kv_bytes / 1e6:.0f} MB, flash attention {flash}"
        )
    for name, limits in (("interactive", settings.classes.interactive), ("background", settings.classes.background)):
        share = f", at least {limits.min_share:.0%} of compute" if limits.min_share else ""
        lines.append(
            f"  {name:<12} up to {limits.queue_max} waiting, {limits.max_output_tokens} output tokens, "
            f"{limits.itl_target_ms} ms between tokens{share}; prompts over {limits.heavy_tokens} tokens are heavy"
        )
    return "\n".join(
        [
            *lines,
            "",
            f"chat page:  {url}/",
            f"dashboard:  poise dashboard --url {url}",
            f"try:        curl {url}/v1/chat/completions -H 'Content-Type: application/json' \\",
            '              -d \'{"model": "default", "messages": [{"role": "user", "content": "Hello!"}]}\'',
        ]
    )


def front_banner(settings: Settings, url: str) -> str:
    """Who answers in the place of a model on this host, and what may go there."""
    lines = [f"serving other servers' models on {url}: nothing is computed on this host"]
    for name, backend in settings.backends.items():
        model = f", model {backend.model}" if backend.model else ""
        lines.append(f"  {name:<12} {backend.url}{model}: {backend.slots} slots, up to {backend.ceiling} requests")
    return "\n".join([*lines, "", f"chat page:  {url}/", f"dashboard:  poise dashboard --url {url}"])


def _warn(checked: Checked) -> None:
    for line in checked.warnings:
        print(f"poise: warning: {line}", file=sys.stderr)  # noqa: T201 - the terminal is where the person is


def _listen(settings: Settings, keys: KeyRing) -> list[socket.socket]:
    """Listening sockets, before anything slow is done; the first one's address is the server's. Raises _CannotListen with the
    address and what to do, or Exposed.

    Where it is `localhost`, both loopback addresses: some clients take the one for it, some the other."""
    host, port = settings.server.host, settings.server.port
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise _CannotListen(f"cannot listen on {host}: {error.strerror}; set server.host") from error
    check(settings, str(address[0]), n_keys=count_keys(settings.auth, keys))
    try:
        listeners = [_bound(family, address)]
    except OSError as error:
        what = "is in use; choose another with --port" if error.errno == errno.EADDRINUSE else f"cannot be used: {error.strerror}"
        raise _CannotListen(f"{host}:{port} {what}") from error
    if host in ("localhost", "127.0.0.1"):
        first, port = listeners[0].getsockname()[:2]
        other, family = ("::1", socket.AF_INET6) if first == "127.0.0.1" else ("127.0.0.1", socket.AF_INET)
        try:
            listeners.append(_bound(family, (other, port)))
        except OSError as error:
            level = logging.WARNING if error.errno == errno.EADDRINUSE else logging.INFO
            log.log(level, "clients that take %s for localhost do not reach port %d: %s", other, port, error.strerror)
    return listeners


def _bound(family: int, address: Any) -> socket.socket:
    """Raises OSError. All addresses of IPv6 are those of IPv4, too."""
    return socket.create_server(address, family=family, backlog=2048, dualstack_ipv6=address[0] == "::")


def freeze_heap() -> None:
    """What there is now, at the end of the start, is there for good: the collector of cycles has no need to look at it again. It
    would stop the loop for some 40 ms each time."""
    gc.collect()
    gc.freeze()
