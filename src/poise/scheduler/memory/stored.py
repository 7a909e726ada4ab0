"""What is known of an entry of the host store beside its bytes: enough for another engine to find it again."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StoredPrefix:
    """The entry `number`: the state of `n_cells` cells of a slot of `pool`, which takes `n_bytes` in the books of the store.

    blocks   keys of the whole blocks that these cells hold, for requests of `tenant` that begin alike"""

    number: int
    tenant: str
    pool: str
    n_cells: int
    n_bytes: int
    blocks: tuple[int, ...]
