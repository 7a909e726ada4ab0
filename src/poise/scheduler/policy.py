"""The scheduler's parameters. Configuration builds these; the scheduler takes nothing else."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from poise.scheduler.request import RequestClass


@dataclass(frozen=True, slots=True)
class PoolPolicy:
    """A KV pool: one llama_context whose slots are separate streams of `slot_cells` cells each.

    `cell_bytes` is what one cell takes in the host store."""

    n_slots: int
    slot_cells: int
    cell_bytes: int = 0


@dataclass(frozen=True, slots=True)
class ClassPolicy:
    """How one class of requests is treated.

    queue_max        requests that may wait
    itl_target_us    inter-token latency that a step must keep while this class decodes
    min_share        share of compute guaranteed while other classes compete, 0 to 1 (interactive work needs none: it is first)
    slots_max        slots of the short pool that the class may hold, and the same part of the long one
    heavy_tokens     prompts of which more must be computed are heavy and run in the long pool
    heavy_max        prompts of the class that may be heavy and have a slot at once
    downgrade_output_tokens  output after which a request of the class goes on as background work (0: never)
    downgrade_served_us      measured compute after which it does (0: never)"""

    queue_max: int
    itl_target_us: int
    min_share: float
    slots_max: int
    heavy_tokens: int
    heavy_max: int
    downgrade_output_tokens: int = 0
    downgrade_served_us: int = 0


@dataclass(frozen=True, slots=True)
class TenantPolicy:
    """A tenant's weight and limits; 0 means no limit besides the class's.

    weight             its share of compute beside another tenant of the same class is in proportion
    running_max        its requests that may run at once
    queue_max          its requests that may wait
    tokens_per_minute  prompt and output tokens; a new request is refused while the account is overdrawn"""

    weight: float = 1.0
    running_max: int = 0
    queue_max: int = 0
    tokens_per_minute: int = 0


@dataclass(frozen=True, slots=True)
class StorePolicy:
    """The host store: memory for swapped sequences, reusable prefixes and pinned templates.

    budget_bytes       all of it (0: nothing is stored; sequences are dropped and computed again instead of swapped)
    tenant_share       most of the budget that one tenant's reusable prefixes may take
    prefix_reuse       whether finished sequences' cells are kept for requests that begin alike
    prefix_min_cells   a shorter common prefix is computed again
    tenant_shares      tenants whose `tenant_share` is another one
    write_through      whether cells that stay in a free slot are copied to the store, which outlives the engine"""

    budget_bytes: int = 512 << 20
    tenant_share: float = 0.5
    prefix_reuse: bool = True
    prefix_min_cells: int = 16
    tenant_shares: Mapping[str, float] = field(default_factory=dict)
    write_through: bool = False


@dataclass(frozen=True, slots=True)
class LengthPolicy:
    """How lengths of answers are learnt; see `lengths`.

    first_tokens  what is thought of them before there was any
    quantile      this share of an account's answers is no longer than what is thought likely
    step          how far one answer moves that
    accounts_max  accounts that are known at a time"""

    first_tokens: int = 512
    quantile: float = 0.9
    step: float = 0.2
    accounts_max: int = 512


@dataclass(frozen=True, slots=True)
class DraftPolicy:
    """Drafts for lone streams (rule R10).

    max_streams  sequences that run, of all classes and pools, up to which they draft; 0: none ever does
    max_tokens   most tokens that are drafted in one step"""

    max_streams: int = 0
    max_tokens: int = 8


@dataclass(frozen=True, slots=True)
class CostPrior:
    """First guess of a pool's cost model, until steps have been measured (microseconds)."""

    fixed_us: float = 2000.0
    decode_us: float = 5000.0
    prompt_us: float = 4000.0
    attended_us: float = 1.0


@dataclass(frozen=True, slots=True)
class SchedulerPolicy:
    """All of the scheduler's parameters.

    quantum_tokens   least chunk of a prompt that is planned whatever the budget says
    chunk_tokens     per pool: the chunk at which prompt tokens get cheap; a heavy prompt saves up budget for one
    step_max_us      a step's time budget while no sequence decodes
    fill_share       share of a step's budget that background may fill up while interactive sequences decode
    batch_tokens     most tokens in one batch
    grain_us         tenants whose served cost differs by less rank alike
    ageing           share of waited time that is taken off a prompt's predicted cost when prompts are ordered
    hole_steps       steps a hole in a pool's slots may persist before it is closed by a move
    turn_us          time that a background sequence keeps its slot while others of its class wait for one (rule R7)
    preemptions_max  times a sequence may lose its slot; after that it is protected"""

    pools: Mapping[str, PoolPolicy]
    classes: Mapping[RequestClass, ClassPolicy]
    quantum_tokens: int = 16
    step_max_us: int = 250_000
    fill_share: float = 0.6
    chunk_tokens: Mapping[str, int] = field(default_factory=dict)
    batch_tokens: int = 512
    grain_us: int = 500_000
    ageing: float = 0.1
    hole_steps: int = 2
    turn_us: int = 2_000_000
    preemptions_max: int = 8
    store: StorePolicy = field(default_factory=StorePolicy)
    lengths: LengthPolicy = field(default_factory=LengthPolicy)
    drafts: DraftPolicy = field(default_factory=DraftPolicy)
    tenants: Mapping[str, TenantPolicy] = field(default_factory=dict)
    tenant_default: TenantPolicy = field(default_factory=TenantPolicy)
    priors: Mapping[str, CostPrior] = field(default_factory=dict)

    def tenant(self, name: str) -> TenantPolicy:
        return self.tenants.get(name, self.tenant_default)


SHORT_POOL = "short"
LONG_POOL = "long"
