"""The settings of the gateway: connections, streams, what is kept, who may do what."""

from typing import Annotated, Literal

from pydantic import Field

from poise.config import kinds
from poise.config.kinds import Section


class ServerSettings(Section):
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port to listen on; 0 takes a free one and prints it."""
    hosts: list[kinds.HostName] = []
    """Further names that clients call it by; others are refused. Local names and `server.host` always work."""
    origins: list[kinds.WebOrigin] = []
    """Web pages elsewhere that may use it (CORS), as in https://chat.example; those of this machine and of apps always may."""
    root_path: kinds.RootPath = ""
    """Path under which a proxy shows the server, as in /poise; it may pass the path on or cut it off."""
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
    body_bytes_total: Annotated[int, Field(ge=4096, le=1 << 36)] = 256 << 20
    """Bytes of bodies that all requests in flight may have together; whoever has most of them is answered with 429 first."""
    idle_timeout_s: Annotated[float, Field(gt=0, le=86_400)] = 90.0
    """Time that a connection is kept between two requests; longer than the pools of clients and proxies keep theirs."""
    send_timeout_s: Annotated[float, Field(gt=0, le=3600)] = 30.0
    """Time after which a client that does not take its answer loses its connection; streams have `streams` instead."""
    request_line_max: Annotated[int, Field(ge=256, le=1 << 20)] = 8192
    """Bytes of a request's first line; a longer one is answered with 414."""
    header_bytes_max: Annotated[int, Field(ge=1024, le=1 << 20)] = 32_768
    """Bytes of a request's headers, its first line included; more are answered with 431."""
    header_fields_max: Annotated[int, Field(ge=8, le=10_000)] = 100
    """Headers of a request; more are answered with 431."""
    trusted_proxies: list[kinds.NetworkName] = []
    """Proxies, as addresses or networks, whose X-Forwarded-For tells who the client is; nobody else's is believed."""
    max_connections: Annotated[int, Field(ge=1, le=100_000)] = 1024
    """Open requests at once; more are answered with 503."""
    connections_total: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Connections at once, idle ones as well; 0: four times `server.max_connections`. Never more than open files allow."""
    max_choices: Annotated[int, Field(ge=1, le=128)] = 8
    """Largest `n` of a request."""
    strict: bool = False
    """Refuse fields of requests that have no effect; otherwise they are taken, and X-Poise-Ignored names them to the caller."""
    drain_s: Annotated[float, Field(ge=0, le=3600)] = 30.0
    """Time that running requests have to end when the server is asked to stop."""
    core_dumps: bool = False
    """Let the system write core dumps of poise's processes as its limits say; they have prompts, answers and keys in them."""
    require_measured: bool = False
    """Refuse to start with a limit that was set above what `poise capacity` has measured here; otherwise that is a warning."""


class ReaderSettings(Section):
    """What becomes of a stream whose client does not take what it is sent."""

    unsent_bytes_max: Annotated[int, Field(ge=1024, le=16 << 20)] = 16384
    """Bytes that a client may be behind; with more, its request is paused, and goes on when half of them are taken."""
    stall_swap_s: Annotated[float, Field(gt=0.0, le=3600)] = 5.0
    """Time behind after which the request gives up its slot until its client has caught up."""
    stall_end_s: Annotated[float, Field(gt=0.0, le=86_400)] = 60.0
    """Time behind in all, less what was worked off, after which the connection is closed and the request ended."""


class StreamsSettings(Section):
    send_buffer_bytes: Annotated[int, Field(ge=0, le=16 << 20)] = 16384
    """Send buffer of each connection in the kernel, which doubles it; 0 leaves it to the kernel."""
    comment_s: Annotated[float, Field(ge=0, le=3600)] = 10.0
    """Silence after which a stream is sent a comment, so that nobody on its way takes it for dead; 0: none is sent."""
    interactive: ReaderSettings = ReaderSettings()
    background: ReaderSettings = ReaderSettings()


class TextSettings(Section):
    """The processes that make tokens of texts, and what waits for them."""

    workers: Annotated[int, Field(ge=1, le=64)] = 2
    """Text workers; of several, one is kept for texts of less than 16 kB."""
    timeout_s: Annotated[float, Field(gt=0.0, le=3600)] = 10.0
    """CPU time that one text may take; then, or after twelve times as long, its worker is killed and the request refused."""
    grammar_timeout_s: Annotated[float, Field(gt=0.0, le=60)] = 2.0
    """The same for reading a grammar or a schema that an answer must follow."""
    grammar_kb_max: Annotated[int, Field(ge=1, le=4096)] = 256
    """Largest grammar or schema that an answer can be held to; a larger one is refused."""
    wait_s: Annotated[float, Field(gt=0.0, le=3600)] = 30.0
    """Time that a text may wait for a worker; then its request is answered with 503."""
    memory_mb: Annotated[int, Field(ge=64, le=1 << 20)] = 1024
    """Memory that a worker may use beyond what the vocabulary takes; a quarter of it is for a deep stack."""
    queue_mb: Annotated[int, Field(ge=1, le=1 << 16)] = 64
    """Text that may wait for a worker, of all together; one caller may have half of what nobody else has."""
    trim_chars_max: Annotated[int, Field(ge=1024, le=1 << 30)] = 1 << 20
    """Longest conversation that is looked at under a context policy other than "reject"; a longer one is refused."""


class ResultsSettings(Section):
    """Responses that are kept in memory so that a client can come back for them."""

    retention_s: Annotated[float, Field(ge=0.0, le=86_400)] = 600.0
    """Time that one is kept after its end; 0 keeps none."""
    budget_mb: Annotated[int, Field(ge=0, le=1 << 20)] = 64
    """Memory for all of them; who ended longest ago goes first. 0 keeps none."""
    tenant_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """Most of the budget that the responses of one tenant may take."""


class MetricsSettings(Section):
    tenants_max: Annotated[int, Field(ge=0, le=1000)] = 20
    """Tenants that /metrics tells apart, those that were active last; the rest are counted together."""


class TelemetrySettings(Section):
    otlp_endpoint: kinds.OptionalUrl = ""
    """OpenTelemetry collector that is sent a trace of every request, without its text; empty: none."""


class AuthSettings(Section):
    required: Literal["auto", True, False] = "auto"
    """Answer requests without a known key with 401. auto: as soon as a tenant has a key, here or in the keys file."""
    status: Literal["auto", "open", "key", "admin"] = "auto"
    """Who beyond this machine may read /status and /metrics: all, who has a key, or admins. auto: key where one is required."""
    keys_file: str = ""
    """File of `poise keys`, with hashes of keys. Empty: keys.jsonl in your configuration directory, if it is there."""
    admin_key: kinds.OptionalApiKey = ""
    """Key for /admin, from anywhere; on this machine the commands of the server's user need none."""
    keys: dict[kinds.DeclaredTenantName, kinds.ApiKey] = {}
    """The API key of the tenant NAME."""


class PowerSettings(Section):
    """Power, heat and CPU quota as budgets. What the host does not tell is not governed."""

    enabled: bool = False
    """Read the host's sensors once a second, and hold back for batteries, heat, quotas and the budget below."""
    max_watts: Annotated[float, Field(ge=0.0, le=10_000)] = 0.0
    """Most power of the processor's packages, by pauses between steps; 0: no budget."""
    watts_per_thread: Annotated[float, Field(ge=0.0, le=1000)] = 0.0
    """Power of a busy compute thread, an estimate for hosts whose power cannot be read; 0: none is made."""
    max_celsius: Annotated[float, Field(ge=0.0, le=120)] = 0.0
    """Temperature from which on compute is held back; 0: 5 below the system's first trip point."""
    battery_duty: Annotated[float, Field(ge=0.1, le=1.0)] = 1.0
    """Share of the time in which steps are computed while on battery, and in saving hours."""
    battery_threads: Annotated[int, Field(ge=0, le=1024)] = 0
    """Most compute threads then; 0: as on mains."""
    battery_streams: Annotated[int, Field(ge=0, le=1024)] = 0
    """Most requests that are computed at once then; 0: as on mains."""
    battery_background: Literal["run", "pause", "park"] = "pause"
    """Background work then: it runs, stands still in its slots, or is put away so that they are free."""
    reserve_percent: Annotated[int, Field(ge=0, le=90)] = 0
    """Charge at or below which only interactive work is taken, and none below half of it; 0: no reserve."""
    hours: list[kinds.Hours] = []
    """Times of the day (local) in which the server saves as on battery, as in 22:00-06:30."""
    idle_release_s: Annotated[float, Field(ge=0.0, le=604_800)] = 0.0
    """Time without requests after which the model's pages are given back to the system, to be read again; 0: never."""


class AuditSettings(Section):
    enabled: bool = False
    """Write the audit log: who asked for what, when, and what came of it, as a chain that shows changes."""
    path: str = ""
    """Folder of its files. Empty: audit in your state directory."""
    rotate_mb: Annotated[int, Field(ge=1, le=1 << 20)] = 64
    """A new file is begun when one is larger, and every day (UTC)."""
    keep_days: Annotated[int, Field(ge=1, le=36_500)] = 90
    """Files of earlier days are deleted."""
    max_mb: Annotated[int, Field(ge=2, le=1 << 20)] = 1024
    """Most of all files together; the oldest go first, also before their days are over, which is told as a finding."""


class TenantSettings(Section):
    weight: Annotated[float, Field(ge=0.01, le=100.0)] = 1.0
    """Share of compute, in proportion to the weights of the other tenants that compete in a class."""
    running_max: Annotated[int, Field(ge=0, le=10_000)] = 0
    """Requests that may run at once; 0: as many as the class."""
    queue_max: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    """Requests that may wait; 0: as many as the class."""
    tokens_per_minute: Annotated[int, Field(ge=0, le=1_000_000_000)] = 0
    """Prompt and output tokens; a new request is refused while the account is overdrawn; 0: no limit."""
    classes: list[kinds.ClassName] = []
    """Classes that may be asked for; another one is answered with 403; empty: all."""
    cache_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Most of `store.budget_mb` that the tenant's reusable prefixes may take; 0: as `store.tenant_share`."""
    content_log: bool = False
    """Write prompts and answers into the audit log, marked as content."""
    egress: Literal["never", "labelled", "allowed"] = "never"
    """Whether requests may leave this host: never; those that name their label; or all whose label allows it."""
    data_class: kinds.DataClass = "confidential"
    """The lowest label that requests have."""
    backends: list[kinds.TenantName] = []
    """Sections of `backends` that may be used; empty: all."""
    budget_hour: kinds.Money = ""
    """Most that may be spent for this tenant within an hour (UTC), on all backends. Empty: no limit."""
    budget_day: kinds.Money = ""
    """The same within a day."""
    budget_month: kinds.Money = ""
    """The same within a month."""


class TemplateSettings(Section):
    text: kinds.NonBlankText
    """The beginning of a prompt that is computed once and kept."""
    tenants: list[kinds.TenantName] = []
    """Who may use it; empty: everybody."""
