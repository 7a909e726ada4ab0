"""The whole list of settings: name, type, range, default and one line of description each.

docs/configuration.md repeats the list for operators and a test compares the two. What one value may be is said here; what
values may be together is in `poise.config.consistency`.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

NAME = re.compile(r"[a-z0-9_-]{1,64}")


def _name(what: str, name: str) -> str:
    if not NAME.fullmatch(name):
        raise ValueError(f'a {what} name must be 1 to 64 of a-z, 0-9, "_" and "-"')
    return name


def _declared_tenant(name: str) -> str:
    # "local" and "key-..." are the tenants of callers without a declared key; a declared one must never be taken for them.
    if not NAME.fullmatch(name) or name.startswith("key-") or name == "local":
        raise ValueError(
            'a tenant name must be 1 to 64 of a-z, 0-9, "_" and "-", not "local" and not begin with "key-"'
        )
    return name


def _api_key(key: str) -> str:
    # A key travels in an HTTP header, where anything else would be cut or altered on the way.
    if not key or not all("!" <= character <= "~" for character in key):
        raise ValueError("must be printable ASCII without spaces, at least one character")
    return key


def _optional_api_key(key: str) -> str:
    return _api_key(key) if key else key


def _optional_url(url: str) -> str:
    if url and not re.fullmatch(r"https?://[^\s/]+(/\S*)?", url):
        raise ValueError('must be a URL that begins with "http://" or "https://", or empty')
    return url


def _host(name: str) -> str:
    if not name or "/" in name or any(character.isspace() for character in name):
        raise ValueError("must be names or addresses, without scheme, port and path")
    return name


def _origin(origin: str) -> str:
    parts = urlsplit(origin)
    if parts.scheme not in ("http", "https") or not parts.netloc or origin != f"{parts.scheme}://{parts.netloc}":
        raise ValueError("must be origins, each as in https://chat.example: scheme, host and perhaps a port")
    return origin


def _class_name(name: str) -> str:
    if name not in ("interactive", "background"):
        raise ValueError('must be among "interactive" and "background"')
    return name


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be empty")
    return text


DeclaredTenantName = Annotated[str, AfterValidator(_declared_tenant)]
TenantName = Annotated[str, AfterValidator(partial(_name, "tenant"))]
TemplateName = Annotated[str, AfterValidator(partial(_name, "template"))]
OptionalUrl = Annotated[str, AfterValidator(_optional_url)]
NonBlankText = Annotated[str, AfterValidator(_not_blank)]
HostName = Annotated[str, AfterValidator(_host)]
WebOrigin = Annotated[str, AfterValidator(_origin)]
ClassName = Annotated[str, AfterValidator(_class_name)]
ApiKey = Annotated[str, AfterValidator(_api_key)]
OptionalApiKey = Annotated[str, AfterValidator(_optional_api_key)]
Toggle = Literal["auto", "on", "off"]
KvType = Literal["f16", "q8_0", "q4_0"]
Profile = Literal["workstation", "team", "edge"]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)


class ServerSettings(Section):
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port to listen on; 0 takes a free one and prints it."""
    hosts: list[HostName] = []
    """Further names that clients call it by; others are refused. Local names and `server.host` always work."""
    origins: list[WebOrigin] = []
    """Web pages elsewhere that may use it (CORS), as in https://chat.example; empty: its own page only."""
    tls_cert: str = ""
    """File with the certificate chain (PEM); with it the server speaks HTTPS only."""
    tls_key: str = ""
    """File with the private key of the certificate (PEM, without a passphrase)."""
    allow_open: bool = False
    """Listen beyond this machine although no key is required: whoever reaches the address may use the server."""
    allow_plain: bool = False
    """Listen beyond this machine without TLS: something else protects the way, such as a proxy that speaks TLS."""
    max_body_bytes: Annotated[int, Field(ge=1024, le=1 << 30)] = 4 << 20
    """Largest request body; a larger one is answered with 413."""
    body_timeout_s: Annotated[float, Field(gt=0, le=3600)] = 20.0
    """Time a client has to send its headers and its body; a slower one is answered with 408."""
    max_connections: Annotated[int, Field(ge=1, le=100_000)] = 1024
    """Open requests at once; more are answered with 503."""
    max_choices: Annotated[int, Field(ge=1, le=128)] = 8
    """Largest `n` of a request."""
    drain_s: Annotated[float, Field(ge=0, le=3600)] = 30.0
    """Time that running requests have to end when the server is asked to stop."""
    require_measured: bool = False
    """Refuse to start with a limit that was set above what `poise capacity` has measured here; otherwise that is a warning."""


class ModelSettings(Section):
    path: str = ""
    """GGUF file. Empty: the default model, SmolLM2-135M-Instruct."""
    name: str = ""
    """Name the API gives the model. Empty: the file's name."""
    weights: Literal["auto", "as-is"] = "auto"
    """auto: on a CPU, the weights in the format that it computes fastest, if a check finds them as good as the file's."""
    weights_perplexity_max: Annotated[float, Field(ge=1.0, le=10.0)] = 1.03
    """Most that other weights may have of the file's perplexity."""
    weights_kl_max: Annotated[float, Field(ge=0.0, le=10.0)] = 0.02
    """Most that the predictions of other weights may diverge from the file's: mean KL divergence, in nats."""
    weights_alone_min: Annotated[float, Field(ge=0.0, le=10.0)] = 0.85
    """Least speed of a lone request, as a multiple of its speed with the file: what is best for many can be slower for one."""
    weights_check_s: Annotated[float, Field(ge=1.0, le=3600.0)] = 180.0
    """Longest time that the check may take, at the first start with a model; where it needs more, the file is served as it is."""


class EngineSettings(Section):
    threads: Annotated[int, Field(ge=0, le=1024)] = 0
    """Compute threads; 0 is one for each core this process may use."""
    adapt_threads: bool = True
    """Compute with fewer threads while other programs keep the cores busy, and with all again when they do not."""
    gpu_layers: Annotated[int, Field(ge=0, le=1000)] = 0
    """Layers kept on a GPU, when the engine was built for one."""
    kv_type: KvType = "f16"
    """Type of the KV cells; the quantised types need flash attention."""
    batch_tokens: Annotated[int, Field(ge=32, le=8192)] = 512
    """Most tokens in one forward pass."""
    journal_entries: Annotated[int, Field(ge=64, le=100_000)] = 4096
    """Entries that the flight recorder keeps, about three for each step. Only a journal with its beginning can be replayed."""
    restart_delay_max_s: Annotated[float, Field(ge=0.1, le=3600)] = 30.0
    """Longest pause before a crashed engine is started again. The first is none, then it doubles from 0.5 s."""
    recoveries_max: Annotated[int, Field(ge=0, le=1000)] = 5
    """Engines that a request may lose and go on with another; 0: every loss ends it."""
    watchdog_s: Annotated[float, Field(ge=0.5, le=3600)] = 30.0
    """An engine that is busy with one step, or leaves its messages alone, for longer is taken to hang and replaced."""
    memory_reserve_mb: Annotated[int, Field(ge=0, le=1 << 20)] = 512
    """Memory that must stay free after loading; a model that would leave less is refused."""


class PoolSettings(Section):
    slots: Annotated[int, Field(ge=1, le=256)]
    """Sequences that the pool can hold at once."""
    slot_tokens: Annotated[int, Field(ge=64, le=1 << 20)]
    """KV cells of each slot, prompt and output together. Cut to the model's trained context."""
    flash_attention: Toggle = "auto"
    """auto: measured once for each host and model."""


class PoolsSettings(Section):
    short: PoolSettings = PoolSettings(slots=12, slot_tokens=4096)
    long: PoolSettings = PoolSettings(slots=2, slot_tokens=8192)


class StoreSettings(Section):
    """The host store: memory for sequences that lost their slot, reusable prefixes and pinned templates."""

    budget_mb: Annotated[int, Field(ge=0, le=1 << 20)] = 512
    """All of it; 0 stores nothing, and a sequence that loses its slot is computed again."""
    tenant_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """Most of the budget that the reusable prefixes of one tenant may take."""
    prefix_reuse: bool = True
    """Keep what finished requests computed for later ones of the same tenant that begin alike."""
    prefix_min_tokens: Annotated[int, Field(ge=8, le=1 << 20)] = 16
    """A shorter common beginning is computed again."""


class ClassSettings(Section):
    queue_max: Annotated[int, Field(ge=1, le=1_000_000)]
    """Requests of the class that may wait; one more is answered with 429."""
    itl_target_ms: Annotated[int, Field(ge=5, le=60_000)]
    """Gap between two tokens that a step keeps to while this class decodes."""
    min_share: Annotated[float, Field(ge=0.0, le=0.9)] = 0.0
    """Share of compute that the class is guaranteed while others compete."""
    slots_max: Annotated[int, Field(ge=1, le=256)]
    """Slots of the short pool that the class may hold."""
    heavy_tokens: Annotated[int, Field(ge=16, le=1 << 20)] = 1024
    """A longer prompt is a heavy job and runs in the long pool."""
    heavy_max: Annotated[int, Field(ge=1, le=256)]
    """Heavy jobs of the class that run at once."""
    default_output_tokens: Annotated[int, Field(ge=1, le=1 << 20)] = 512
    """Output allowance of a request that names none."""
    max_output_tokens: Annotated[int, Field(ge=1, le=1 << 20)] = 4096
    """Largest output allowance a request may ask for."""
    max_prompt_tokens: Annotated[int, Field(ge=0, le=1 << 20)] = 0
    """Longest prompt; 0: what a slot holds."""
    max_context_tokens: Annotated[int, Field(ge=0, le=1 << 20)] = 0
    """Prompt and output together; 0: what a slot holds."""
    queue_timeout_s: Annotated[float, Field(ge=0.0, le=86_400)] = 0.0
    """Longest wait for a slot; 0 waits for ever."""
    long_system_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """A system prompt over this share of the context earns a warning."""
    downgrade_output_tokens: Annotated[int, Field(ge=0, le=1 << 20)] = 0
    """Output after which a request goes on as background work; 0: never."""
    downgrade_served_ms: Annotated[int, Field(ge=0, le=86_400_000)] = 0
    """Compute served after which a request goes on as background work; 0: never."""
    pacing_ms: Annotated[int, Field(ge=0, le=2000)] = 0
    """Longest time that a token of a stream may be held to even its pace; 0 sends each at once."""


class ClassesSettings(Section):
    interactive: ClassSettings = ClassSettings(
        queue_max=64, itl_target_ms=100, slots_max=12, heavy_max=2, pacing_ms=100
    )
    background: ClassSettings = ClassSettings(
        queue_max=256, itl_target_ms=150, min_share=0.15, slots_max=6, heavy_max=1
    )


class ReaderSettings(Section):
    """What becomes of a stream whose client does not take what it is sent."""

    unsent_bytes_max: Annotated[int, Field(ge=1024, le=16 << 20)] = 16384
    """Bytes that a client may be behind; with more, its request is paused, and goes on when half of them are taken."""
    stall_swap_s: Annotated[float, Field(gt=0.0, le=3600)] = 5.0
    """Time behind after which the request gives up its slot until its client has caught up."""
    stall_end_s: Annotated[float, Field(gt=0.0, le=86_400)] = 60.0
    """Time behind after which the connection is closed and the request ended; what there is of its result is kept."""


class StreamsSettings(Section):
    send_buffer_bytes: Annotated[int, Field(ge=0, le=16 << 20)] = 16384
    """Send buffer of each connection in the kernel, which doubles it; 0 leaves it to the kernel."""
    interactive: ReaderSettings = ReaderSettings()
    background: ReaderSettings = ReaderSettings()


class ResultsSettings(Section):
    """Responses that are kept in memory so that a client can come back for them."""

    retention_s: Annotated[float, Field(ge=0.0, le=86_400)] = 600.0
    """Time that one is kept after its end; 0 keeps none."""
    budget_mb: Annotated[int, Field(ge=0, le=1 << 20)] = 64
    """Memory for all of them; who ended longest ago goes first. 0 keeps none."""
    tenant_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """Most of the budget that the responses of one tenant may take."""


class SchedulerSettings(Section):
    quantum_tokens: Annotated[int, Field(ge=1, le=512)] = 16
    """Least chunk of a prompt in a step, whatever the time budget says."""
    step_max_ms: Annotated[int, Field(ge=5, le=60_000)] = 250
    """Time budget of a step while no request decodes: the longest that a new arrival waits for its turn."""
    fill_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.6
    """Share of a step's time budget that background work may fill up while interactive requests decode."""
    fairness_grain_ms: Annotated[int, Field(ge=1, le=60_000)] = 500
    """Tenants whose served compute differs by less rank alike, so that a prompt that was begun is finished first."""
    ageing: Annotated[float, Field(ge=0.0, le=10.0)] = 0.1
    """Share of its waited time that a prompt gains on shorter ones."""
    hole_steps: Annotated[int, Field(ge=1, le=10_000)] = 2
    """Steps that a hole between busy slots may persist before a sequence is moved into it."""
    turn_ms: Annotated[int, Field(ge=10, le=3_600_000)] = 2000
    """Compute that a background request is served before another one may take its slot."""
    preemptions_max: Annotated[int, Field(ge=0, le=1000)] = 8
    """Times a request may lose its slot; after that it is protected."""


class LevelsSettings(Section):
    """When the server is busy, constrained or degraded, and what it then holds back."""

    busy_queue_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """Share of a class's `queue_max` from which on the server is busy; background work may fill no more of its own queue then."""
    busy_wait_s: Annotated[float, Field(gt=0.0, le=86_400)] = 10.0
    """Estimated wait of interactive requests from which on the server is busy."""
    constrained_queue_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.9
    """Share of a class's `queue_max` from which on the server is constrained."""
    memory_low_mb: Annotated[int, Field(ge=0, le=1 << 20)] = 256
    """The server is constrained when less memory than this is free; 0: it does not look."""
    rss_max_mb: Annotated[int, Field(ge=0, le=1 << 24)] = 0
    """The server is constrained when the engine's resident memory is above this; 0: no limit."""
    calm_s: Annotated[float, Field(ge=1.0, le=3600)] = 10.0
    """Time for which a condition must be over by a margin until its level is left."""
    queue_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """Share of each class's `queue_max` that may be used while the server is constrained."""
    slots_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """Share of each class's `slots_max` that may be used while the server is constrained."""
    crashes_max: Annotated[int, Field(ge=1, le=10_000)] = 3
    """Crashes within `crash_window_s` after which the engine gets the conservative fallback configuration."""
    crash_window_s: Annotated[float, Field(ge=1.0, le=86_400)] = 300.0
    """How far back crashes are counted."""
    recover_s: Annotated[float, Field(ge=1.0, le=604_800)] = 900.0
    """Time without a crash after which the normal configuration is tried again, at a moment without live requests."""


class SamplingSettings(Section):
    """Defaults for what a request leaves out."""

    temperature: Annotated[float, Field(ge=0.0, le=2.0)] = 1.0
    """How far sampling strays from the likeliest token; 0 always takes that one."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Only the likeliest tokens that reach this probability together are considered; 1 considers all."""
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] = 40
    """0 considers every token, at about fifty times the sampling cost when top_p is set."""
    min_p: Annotated[float, Field(ge=0.0, le=1.0)] = 0.05
    """Tokens less likely than this share of the likeliest one are left out."""


class MetricsSettings(Section):
    tenants_max: Annotated[int, Field(ge=0, le=1000)] = 20
    """Tenants that /metrics tells apart, those that were active last; the rest are counted together."""


class TelemetrySettings(Section):
    otlp_endpoint: OptionalUrl = ""
    """OpenTelemetry collector that is sent a trace of every request, without its text; empty: none."""


class AuthSettings(Section):
    required: bool = False
    """Answer requests without a known key with 401."""
    keys_file: str = ""
    """File of `poise keys`, with hashes of keys. Empty: keys.jsonl in your configuration directory, if it is there."""
    admin_key: OptionalApiKey = ""
    """Key for /admin; without one, /admin answers callers on this machine only."""
    keys: dict[DeclaredTenantName, ApiKey] = {}
    """The API key of the tenant NAME."""


class AuditSettings(Section):
    enabled: bool = False
    """Write the audit log: who asked for what, when, and what came of it, as a chain that shows changes."""
    path: str = ""
    """Folder of its files. Empty: audit in your state directory."""
    rotate_mb: Annotated[int, Field(ge=1, le=1 << 20)] = 64
    """A new file is begun when one is larger, and every day (UTC)."""
    keep_days: Annotated[int, Field(ge=1, le=36_500)] = 90
    """Files of earlier days are deleted."""


class TenantSettings(Section):
    weight: Annotated[float, Field(ge=0.01, le=100.0)] = 1.0
    """Share of compute, in proportion to the weights of the other tenants that compete in a class."""
    running_max: Annotated[int, Field(ge=0, le=10_000)] = 0
    """Requests that may run at once; 0: as many as the class."""
    queue_max: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Requests that may wait; 0: as many as the class."""
    tokens_per_minute: Annotated[int, Field(ge=0, le=1_000_000_000)] = 0
    """Prompt and output tokens; a new request is refused while the account is overdrawn; 0: no limit."""
    classes: list[ClassName] = []
    """Classes that may be asked for; another one is answered with 403; empty: all."""
    cache_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Most of `store.budget_mb` that the tenant's reusable prefixes may take; 0: as `store.tenant_share`."""
    content_log: bool = False
    """Write prompts and answers into the audit log, marked as content."""


class TemplateSettings(Section):
    text: NonBlankText
    """The beginning of a prompt that is computed once and kept."""
    tenants: list[TenantName] = []
    """Who may use it; empty: everybody."""


class Settings(Section):
    profile: Profile = "workstation"
    """The values that everything else starts from."""
    server: ServerSettings = ServerSettings()
    model: ModelSettings = ModelSettings()
    engine: EngineSettings = EngineSettings()
    pools: PoolsSettings = PoolsSettings()
    store: StoreSettings = StoreSettings()
    classes: ClassesSettings = ClassesSettings()
    streams: StreamsSettings = StreamsSettings()
    results: ResultsSettings = ResultsSettings()
    scheduler: SchedulerSettings = SchedulerSettings()
    levels: LevelsSettings = LevelsSettings()
    sampling: SamplingSettings = SamplingSettings()
    metrics: MetricsSettings = MetricsSettings()
    telemetry: TelemetrySettings = TelemetrySettings()
    auth: AuthSettings = AuthSettings()
    audit: AuditSettings = AuditSettings()
    tenant_defaults: TenantSettings = TenantSettings()
    tenants: dict[TenantName, TenantSettings] = {}
    templates: dict[TemplateName, TemplateSettings] = {}

    def tenant(self, name: str) -> TenantSettings:
        """A tenant's own section, or what holds for all that have none."""
        return self.tenants.get(name, self.tenant_defaults)


def engine_settings(settings: Settings) -> str:
    """The settings as the engine gets them, in JSON: without keys and texts, which are none of its business."""
    return settings.model_copy(update={"auth": AuthSettings(), "templates": {}}).model_dump_json()
