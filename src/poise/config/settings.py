"""The whole list of settings: name, type, range, default and one line of description each.

Those of model, engine and scheduler are here, those of the gateway in `serving`. docs/configuration.md repeats the list for
operators and a test compares the two. What one value may be is said here and in `kinds`; what values may be together is in
`poise.config.consistency`."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from poise.config import hybrid, kinds, serving
from poise.config.kinds import AliasName, DataClass, KvType, NonBlankText, Profile, Section, TemplateName, TenantName, Toggle
from poise.config.serving import AuthSettings, TenantSettings


class ModelSettings(Section):
    path: str = ""
    """GGUF file. Empty: the default model, SmolLM2-135M-Instruct."""
    name: str = ""
    """Name the API gives the model. Empty: the file's name."""
    any_name: bool = False
    """Answer to every name that a request gives its model, also to those of other servers' models."""
    chat_template: str = ""
    """File with the chat template (Jinja) that conversations are written by. Empty: the model file's own."""
    response_template: str = ""
    """File with the response template (JSON, version 1) that answers are read by. Empty: chosen by the chat template."""
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
    enabled: bool = True
    """Compute on this host. Without it there is no model here, and `backends` answer: a front for other servers."""
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
    kv_memory_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """Share that the pools may take of the memory beside weights, host store and reserve, where `pools.*.slots` is auto."""


class PoolSettings(Section):
    slots: kinds.Slots
    """Sequences that the pool can hold at once; auto: as many as memory pays for, the short pool as many as classes may hold."""
    slot_tokens: Annotated[int, Field(ge=64, le=1 << 20)]
    """KV cells of each slot, prompt and output together. Cut to the model's trained context."""
    flash_attention: Toggle = "auto"
    """auto: measured once for each host and model."""


class PoolsSettings(Section):
    short: PoolSettings = PoolSettings(slots=12, slot_tokens=4096)
    long: PoolSettings = PoolSettings(slots="auto", slot_tokens=8192)


STORE_LEAST_MB = 512
"""What the host store has where memory pays for no more."""


class StoreSettings(Section):
    """The host store: memory for sequences that lost their slot, reusable prefixes and pinned templates."""

    budget_mb: kinds.StoreMb = "auto"
    """All of it; auto: twice what slots hold, if memory pays for it; 0: nothing, and what loses its slot is computed again."""
    tenant_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.5
    """Most of the budget that the reusable prefixes of one tenant may take."""
    prefix_reuse: bool = True
    """Keep what finished requests computed for later ones of the same tenant that begin alike."""
    prefix_min_tokens: Annotated[int, Field(ge=8, le=1 << 20)] = 16
    """A shorter common beginning is computed again."""
    write_through: bool = True
    """When there is nothing better to do, copy what is kept in free slots to the store, which outlives the engine."""


class ClassSettings(Section):
    queue_max: Annotated[int, Field(ge=1, le=1_000_000)]
    """Requests of the class that may wait; one more is answered with 429."""
    itl_target_ms: Annotated[int, Field(ge=5, le=60_000)]
    """Gap between two tokens that a step keeps to while this class decodes."""
    min_share: Annotated[float, Field(ge=0.0, le=0.9)] = 0.0
    """Share of compute that the class is guaranteed while others compete."""
    slots_max: Annotated[int, Field(ge=1, le=256)]
    """Slots of the short pool that the class may hold, and the same part of the long one."""
    heavy_tokens: Annotated[int, Field(ge=16, le=1 << 20)] = 1024
    """A prompt of which more must be computed is heavy and runs in the long pool."""
    heavy_max: Annotated[int, Field(ge=1, le=256)]
    """Heavy prompts of the class that are computed at once."""
    default_output_tokens: Annotated[int, Field(ge=0, le=1 << 20)] = 0
    """Output allowance of a request that names none; 0: what its slot has left beside the prompt."""
    max_output_tokens: Annotated[int, Field(ge=1, le=1 << 20)] = 4096
    """Largest output allowance of a request; a larger number is cut to it."""
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
    interactive: ClassSettings = ClassSettings(queue_max=64, itl_target_ms=100, slots_max=12, heavy_max=2, pacing_ms=100)
    background: ClassSettings = ClassSettings(queue_max=256, itl_target_ms=150, min_share=0.15, slots_max=6, heavy_max=1)


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
    """Share of its waited time that a prompt gains on shorter ones; a heavy one gains a tenth of that."""
    hole_steps: Annotated[int, Field(ge=1, le=10_000)] = 2
    """Steps that a hole between busy slots may persist before a sequence is moved into it."""
    turn_ms: Annotated[int, Field(ge=10, le=3_600_000)] = 2000
    """Compute that a background request is served before another one may take its slot."""
    preemptions_max: Annotated[int, Field(ge=0, le=1000)] = 8
    """Times a request may lose its slot; after that it is protected."""


class SpeculationSettings(Section):
    """Drafts: guesses of an answer's next tokens, computed along with the one that is due. They change no answer."""

    max_streams: Annotated[int, Field(ge=0, le=64)] = 1
    """Requests that run at once up to which they draft; with more, passes are full enough. 0: none ever does."""
    max_tokens: Annotated[int, Field(ge=1, le=16)] = 8
    """Most tokens that are guessed in one step."""


class LevelsSettings(Section):
    """When the server is busy, constrained or degraded, and what it then holds back."""

    busy_queue_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """How full a class's queue is (see the runbook) when the server is busy; background work may fill no more of its own then."""
    busy_wait_s: Annotated[float, Field(gt=0.0, le=86_400)] = 10.0
    """Estimated wait of interactive requests from which on the server is busy."""
    constrained_queue_share: Annotated[float, Field(gt=0.0, le=1.0)] = 0.9
    """How full a class's queue is (see the runbook) when the server is constrained."""
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
    """0 considers every token, at about ten times the sampling cost when top_p is set."""
    min_p: Annotated[float, Field(ge=0.0, le=1.0)] = 0.05
    """Tokens less likely than this share of the likeliest one are left out."""
    candidates_max: Annotated[int, Field(ge=64, le=1_000_000)] = 1024
    """Most tokens that are considered where `top_p` is below 1, whatever `top_k` says: the likeliest ones."""


class Settings(Section):
    profile: Profile = "workstation"
    """The values that everything else starts from."""
    server: serving.ServerSettings = serving.ServerSettings()
    model: ModelSettings = ModelSettings()
    engine: EngineSettings = EngineSettings()
    pools: PoolsSettings = PoolsSettings()
    store: StoreSettings = StoreSettings()
    classes: ClassesSettings = ClassesSettings()
    streams: serving.StreamsSettings = serving.StreamsSettings()
    text: serving.TextSettings = serving.TextSettings()
    results: serving.ResultsSettings = serving.ResultsSettings()
    scheduler: SchedulerSettings = SchedulerSettings()
    speculation: SpeculationSettings = SpeculationSettings()
    levels: LevelsSettings = LevelsSettings()
    power: serving.PowerSettings = serving.PowerSettings()
    sampling: SamplingSettings = SamplingSettings()
    metrics: serving.MetricsSettings = serving.MetricsSettings()
    telemetry: serving.TelemetrySettings = serving.TelemetrySettings()
    auth: AuthSettings = AuthSettings()
    audit: serving.AuditSettings = serving.AuditSettings()
    egress: hybrid.EgressSettings = hybrid.EgressSettings()
    tenant_defaults: TenantSettings = TenantSettings()
    aliases: dict[AliasName, NonBlankText] = {}
    """The model that answers where a request names NAME, which may have `*` in it: "default", or a model's own name."""
    tenants: dict[TenantName, TenantSettings] = {}
    backends: dict[kinds.BackendName, hybrid.BackendSettings] = {}
    data_classes: dict[AliasName, DataClass] = {}
    """Label of requests that name the model NAME, which may have `*` in it."""
    templates: dict[TemplateName, serving.TemplateSettings] = {}

    def tenant(self, name: str) -> TenantSettings:
        """A tenant's own section, or what holds for all that have none."""
        return self.tenants.get(name, self.tenant_defaults)

    def n_slots(self, pool: str) -> int:
        """The slots of a pool. Where memory decides, the least: what its classes may hold, or may compute, at once."""
        slots: int | str = getattr(self.pools, pool).slots
        if isinstance(slots, int):
            return slots
        classes = (self.classes.interactive, self.classes.background)
        return max(limits.heavy_max if pool == "long" else limits.slots_max for limits in classes)

    @property
    def store_mb(self) -> int:
        """The host store's budget. Where memory decides, the least."""
        return self.store.budget_mb if isinstance(self.store.budget_mb, int) else STORE_LEAST_MB

    def with_layout(self, layout: Mapping[str, int]) -> "Settings":
        """The same with these numbers of `pools.NAME.slots` and `store.budget_mb`."""
        slots = {key.split(".")[1]: n for key, n in layout.items() if key.startswith("pools.")}
        pools = {name: getattr(self.pools, name).model_copy(update={"slots": n}) for name, n in slots.items()}
        store = {"budget_mb": layout["store.budget_mb"]} if "store.budget_mb" in layout else {}
        changed = {"pools": self.pools.model_copy(update=pools), "store": self.store.model_copy(update=store)}
        return self.model_copy(update=changed)


def engine_settings(settings: Settings) -> str:
    """The settings as the engine gets them, in JSON: without keys and texts, which are none of its business."""
    return settings.model_copy(update={"auth": AuthSettings(), "templates": {}, "backends": {}}).model_dump_json()
