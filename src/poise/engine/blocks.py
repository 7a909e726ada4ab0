"""Keys of token blocks: how two prompts are known to begin alike without showing their tokens to the scheduler.

A key is a keyed BLAKE2b hash of the key before it and the block's tokens, so it stands for everything from the start. The chain
begins with the tenant's name: equal texts of two tenants have nothing in common. The secret is drawn anew for each engine, so
that a journal, which holds keys, says nothing about what was asked."""

from collections.abc import Sequence
from hashlib import blake2b
from struct import Struct

from poise.scheduler.request import BLOCK_TOKENS

_BLOCK = Struct(f"<{BLOCK_TOKENS}i")
KEY_BYTES = 8


class BlockChain:
    """The keys of one sequence's whole blocks, extended as its tokens grow."""

    def __init__(self, secret: bytes, tenant: str) -> None:
        """`secret` is at most 64 bytes."""
        self._secret = secret
        self._last = self._digest(tenant.encode())
        self.n_blocks = 0

    def extend(self, tokens: Sequence[int]) -> list[int]:
        """Keys of the whole blocks of `tokens` that have none yet. `tokens` are all of the sequence's, from its start."""
        keys = []
        for end in range((self.n_blocks + 1) * BLOCK_TOKENS, len(tokens) + 1, BLOCK_TOKENS):
            self._last = self._digest(self._last + _BLOCK.pack(*tokens[end - BLOCK_TOKENS : end]))
            keys.append(int.from_bytes(self._last, "little"))
        self.n_blocks += len(keys)
        return keys

    def _digest(self, data: bytes) -> bytes:
        return blake2b(data, digest_size=KEY_BYTES, key=self._secret).digest()
