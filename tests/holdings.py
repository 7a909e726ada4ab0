"""What poise holds of anybody, and where: every file that it may write, and every place in memory that has text or tokens in it.

docs/data.md shows this list, and tests compare it with the document, with every call in the source that writes a file, and with
the files that a server has really written. Whoever adds a place adds it here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class File:
    """A kind of file. `where` is a pattern for file names, below the folder that is named first; `writers` are the modules.

    `content`: whether text of prompts or answers can be in it.
    """

    where: str
    what: str
    content: str
    until: str
    readers: str
    writers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Memory:
    """A place in memory that holds text or tokens of requests. `owner` is the class, as module:class."""

    owner: str
    what: str
    until: str
    readers: str


@dataclass(frozen=True, slots=True)
class Growing:
    """A class of the gateway that outlives a request and has a container that grows. `bound`: how large it can become."""

    owner: str
    what: str
    bound: str


_OWNER = "the user that poise runs as (0600)"
_YOURS = "as you keep it"

FILES = (
    File(
        "config/keys.jsonl",
        "HMAC hashes of keys, their tenants, rights and comments",
        "no",
        "you delete it; revoked keys stay in it",
        _OWNER,
        ("gateway/tenancy/keys.py",),
    ),
    File("config/keys.pepper", "the secret of these hashes", "no", "you delete it", _OWNER, ("gateway/tenancy/keys.py",)),
    File(
        "state/run/operator-*.token",
        "the token by which commands of the same user are operators; in `$XDG_RUNTIME_DIR/poise` where there is one",
        "no",
        "its server ends",
        _OWNER,
        ("operator_token.py",),
    ),
    File(
        "state/audit/audit-*.jsonl",
        "the audit log, only with `audit.enabled`",
        "only of tenants with `content_log`",
        "`audit.keep_days`, and at most `audit.max_mb` of them; content also until it is erased",
        _OWNER,
        ("audit/writer.py", "audit/files.py"),
    ),
    File(
        "state/audit/reserve",
        "nothing: room on the disk for entries of what operators do",
        "no",
        "you delete it",
        _OWNER,
        ("audit/files.py",),
    ),
    File(
        "state/audit/head.json",
        "how far the audit log goes",
        "no",
        "you delete it",
        _OWNER,
        ("audit/writer.py", "audit/files.py"),
    ),
    File(
        "state/spend.sqlite*",
        "what was spent at other servers, by tenant: counts and amounts; `egress.ledger` moves it elsewhere",
        "no",
        "48 hours, 400 days and 24 months in which something was spent, the newest ones",
        _OWNER,
        ("gateway/models/money/books.py",),
    ),
    File(
        "state/engine-journal-*.jsonl",
        "the flight recorder of an engine that failed: tenants, counts and decisions",
        "no",
        "you delete it, or newer ones need its place: eight files, 128 MB",
        _OWNER,
        ("engine/dumps.py",),
    ),
    File(
        "cache/*.json",
        "what was measured or checked of this host and its model files",
        "no",
        "you delete it",
        "the user that poise runs as",
        ("llama/files/cachefile.py",),
    ),
    File(
        "cache/weights/*",
        "a model's weights in the format that this CPU computes fastest",
        "no",
        "you delete it; those of older versions go when new ones are made",
        "the user that poise runs as",
        ("llama/choosing/requantise.py", "llama/files/cachefile.py"),
    ),
    File(
        "state/capacity.json",
        "what `poise capacity` has measured of this host, by model and engine",
        "no",
        "you delete it",
        "the user that poise runs as",
        ("llama/fitting/capacity.py", "llama/files/cachefile.py"),
    ),
    File(
        "a file that you name",
        "results of `poise bench --json` and `poise sim`",
        "no",
        "you delete it",
        _YOURS,
        ("poise_lab/bench/command.py", "poise_lab/bench/compare_command.py", "poise_lab/sim/command.py"),
    ),
    File(
        "a file that you name, else poise.tuned.toml",
        "what `poise tune` has found, and every trial in a JSON file beside it",
        "no",
        "you delete it",
        _YOURS,
        ("poise_lab/tune/tunedfile.py", "llama/files/cachefile.py"),
    ),
    File(
        "a temporary folder",
        "settings without keys and messages of the servers that `poise tune` and `poise capacity` start",
        "no",
        "the command ends",
        "the user that poise runs as",
        ("poise_lab/tune/children.py",),
    ),
)

MEMORY = (
    Memory(
        "gateway.models.local.job:LocalJob",
        "the messages of a live request that is not yet with the engine",
        "it is",
        "its own client",
    ),
    Memory(
        "gateway.supervision.handover:Handover",
        "token ids of live requests, for an engine after a lost one",
        "they end",
        "nobody",
    ),
    Memory(
        "gateway.records.kept:Records",
        "answers, token by token, of live requests and of those that have ended",
        "`results.retention_s` after the end, at most `results.budget_mb`, or they are erased",
        "the same tenant, by the response's id; what an explanation tells of others is sums and one largest chunk, without names",
    ),
    Memory(
        "gateway.models.local.choice:Choice",
        "text that waits for the rest of a character or of a stop string",
        "it ends",
        "its own client",
    ),
    Memory("gateway.supervision.engine:RequestHandle", "tokens that were not yet taken", "it ends", "its own client"),
    Memory(
        "gateway.text.workers:TextWorkers",
        "texts of requests that are being tokenised or searched",
        "it is done, or their client leaves; at most `text.queue_mb`",
        "nobody",
    ),
    Memory(
        "worker.text.tokeniser:Tokeniser",
        "the text of one request at a time, and pieces of the chat template with white space from the edges of messages",
        "it is done; those pieces until the worker ends, at most 4 MiB",
        "nobody",
    ),
    Memory(
        "gateway.models.local.templates:Templates", "the operator's templates", "the server ends", "the tenants that may use them"
    ),
    Memory(
        "audit.log:AuditLog", "content on its way to the audit log, only of tenants with `content_log`", "it is written", "nobody"
    ),
    Memory("engine.core:Engine", "token ids of live requests", "they end", "nobody"),
    Memory(
        "llama.running.grammar:Grammars",
        "what answers of live requests must be",
        "it is made ready, or the request ends",
        "nobody",
    ),
    Memory(
        "llama.binding.context:PoolContext",
        "KV cells: of live requests, and warm ones of one tenant each",
        "they are taken, or erased",
        "the same tenant's requests",
    ),
    Memory(
        "llama.running.store:StateStore",
        "copies of KV cells: swapped requests and prefixes of one tenant each",
        "they end, make room, or are erased",
        "the same tenant's requests",
    ),
    Memory(
        "engine.arena:Arena",
        "the same copies, where they outlive the engine, with their tenants' names and keyed hashes of blocks",
        "as above, or the server ends",
        "the same tenant's requests",
    ),
)

_LIVE = "one for each live request"

GROWING = (
    Growing("gateway.records.kept:Records", "results that are kept", "`results.budget_mb`, about 3 kB and more each; live ones"),
    Growing(
        "gateway.supervision.handover:Handover",
        "what another engine would need",
        f"{_LIVE}, in number by the queues, in size by contexts",
    ),
    Growing("gateway.supervision.blame:Blame", "deaths held against requests", _LIVE),
    Growing("gateway.condition.lookout:Lookout", "readers that are behind, ends of engines", f"{_LIVE}; taken once a second"),
    Growing(
        "gateway.condition.findings:Findings",
        "findings, and what they are judged by",
        f"seven kinds; {_LIVE}; minutes of one figure a second",
    ),
    Growing("gateway.supervision.blame:Quarantine", "reports of requests that engines died of", "100, some 600 bytes each"),
    Growing("gateway.condition.history:History", "ten minutes of samples", "600, some 2 kB each"),
    Growing("gateway.condition.power.sources:Sources", "counters of sensors and control groups", "one for each that there is"),
    Growing("gateway.condition.power.sampling:Sampling", "the last reading of each kind", "one for each kind"),
    Growing("gateway.condition.power.watch:PowerWatch", "the same, as it was judged", "one for each kind"),
    Growing("gateway.condition.levels:Levels", "crashes", "those within `levels.crash_window_s`"),
    Growing(
        "gateway.supervision.supervisor:Supervisor",
        "what accounts owe, for an engine after a lost one; tokens of templates",
        "256 accounts, some 100 bytes each; the configuration's",
    ),
    Growing(
        "gateway.supervision.questions:Questions", "questions to the engine", "those of open requests; they end with the engine"
    ),
    Growing(
        "gateway.supervision.store:StoreKeeper",
        "tenants that are being erased by an engine; the memory of its host store",
        "those of questions to the engine; `store.budget_mb`",
    ),
    Growing("gateway.supervision.launch:Launcher", "descriptors kept for a start", "a few"),
    Growing("gateway.tasks.tasks:TaskAccount", "failures of a task", "a few times"),
    Growing("gateway.tasks.tasks:Pulse", "looks, and how long one that failed is left out", "one for each that the code starts"),
    Growing("gateway.tasks.tasks:Tasks", "long-lived tasks", "one for each that the code starts"),
    Growing("gateway.models.local.templates:Templates", "tokens of declared templates", "the configuration's"),
    Growing(
        "gateway.models.local.grammars:Grammars",
        "keyed digests of grammars, and why some were refused",
        "64 of each of 128 tenants, 100 bytes to a few kB each",
    ),
    Growing(
        "gateway.models.egress.connection:Connections", "connections to other servers", "`slots` of each backend, and one more"
    ),
    Growing("gateway.models.egress.door:Egress", "requests to other servers that have no answer yet", "`slots` of each backend"),
    Growing("gateway.models.remote.breaker:Breaker", "how requests to another server ended", "the last 20"),
    Growing(
        "gateway.models.routing.conversations:Conversations",
        "keyed digests of conversations that were labelled, and floors of tenants",
        "65,536 in all and 4,096 of each tenant, some 150 bytes each",
    ),
    Growing(
        "gateway.models.remote.queue:SlotQueue",
        "requests before another server, and what their accounts were served",
        "`queue_max` of each class and `slots`; accounts as in an engine's scheduler",
    ),
    Growing("gateway.models.remote.turns:Turns", "who waits for a turn at another server", "as many"),
    Growing("gateway.models.remote.model:RemoteModel", "names of models that another server has", "1,000 of 200 characters"),
    Growing("gateway.models.names:ModelNames", "names of models", "the configuration's"),
    Growing("gateway.text.reading.templates:_Marks", "control tokens that are marks of answers", "the vocabulary's"),
    Growing("gateway.tenancy.keys:KeyRing", "hashes of keys", "the keys file's"),
    Growing("gateway.tenancy.tenants:LocalOperators", "codes for the dashboard", "a few, each for a minute or so"),
    Growing("gateway.tenancy.tenants:Accounts", "undeclared keys that are alive", "8"),
    Growing("gateway.tenancy.strangers:Strangers", "addresses that were refused", "4,096"),
    Growing("gateway.http.connections.server:Acceptor", "connections that are being opened", "those that have a place"),
    Growing("gateway.http.connections.hub:Hub", "what the application keeps for its requests", "set once, at the start"),
    Growing("gateway.http.connections.peers:TrustedProxies", "networks of proxies", "the configuration's"),
    Growing("gateway.http.connections.places:Places", "connections", "their number in all"),
    Growing("gateway.http.connections.places:Shares", "what accounts and addresses hold", "those that hold something"),
    Growing("gateway.text.queue:TextQueue", "texts that wait for a worker", "`text.queue_mb`"),
    Growing("gateway.text.workers:TextWorkers", "text workers, and how the last ones ended", "`text.workers`; a few ends"),
    Growing(
        "metrics.lately:Lately",
        "what happened within a second, and times to first tokens of a minute",
        "65,536 gaps and 4,096 times to first tokens of each class, 110 bytes each",
    ),
    Growing(
        "gateway.models.money.ledger:Ledger",
        "what was spent in a window, by tenant and backend; reservations",
        "24 windows of a kind, twice that for a while; one for each request at a backend",
    ),
    Growing(
        "gateway.models.money.books:Books",
        "what is to be written",
        "one for each request at a backend that costs something; of others one for each tenant and backend",
    ),
    Growing("metrics.egress:EgressMetrics", "counts by backend", "the configuration's, by label and outcome"),
    Growing("metrics.tenants:TenantMetrics", "counts by tenant", "`metrics.tenants_max`, by class, outcome and error code"),
    Growing("metrics.engine:EngineCollector", "highest totals of engines", "one for each series"),
    Growing("metrics.sample:HistorySampler", "times of what limits, and counts of tokens", "one for each limit; five seconds"),
    Growing("audit.log:AuditLog", "entries on their way to the disk", "11,000, and 64 MiB of content, twice"),
)
