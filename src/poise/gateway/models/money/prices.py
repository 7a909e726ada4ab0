"""What tokens cost, in nano-units of the operator's currency: integers, so that sums are exact.

A price is that of a million tokens with at most three decimals, and so a whole number of nano-units a token."""

from typing import NamedTuple

from poise.config.hybrid import BackendSettings, nano_of

NANO_MAX = (1 << 62) - 1
"""An amount is cut to it: two of them fit into what a file of SQLite holds."""
_MILLION = 1_000_000


class Tokens(NamedTuple):
    """What an answer took, as its server told. `cached` are of the prompt."""

    prompt: int
    cached: int
    output: int


class Prices(NamedTuple):
    """Of a token. `version`: which list they are of."""

    prompt: int
    cached: int
    output: int
    version: str = ""

    @classmethod
    def of(cls, settings: BackendSettings) -> "Prices":
        prompt, output = nano_of(settings.price_input) // _MILLION, nano_of(settings.price_output) // _MILLION
        cached = nano_of(settings.price_cached) // _MILLION if settings.price_cached else prompt
        return cls(prompt, cached, output, settings.price_version)

    def cost(self, used: Tokens) -> int:
        n_cached = min(max(0, used.cached), max(0, used.prompt))
        n_nano = (max(0, used.prompt) - n_cached) * self.prompt + n_cached * self.cached + max(0, used.output) * self.output
        return min(n_nano, NANO_MAX)

    def most(self, n_prompt: int, n_output: int) -> int:
        """What a request can cost at most, by bounds of its tokens."""
        return min(n_prompt * max(self.prompt, self.cached) + n_output * self.output, NANO_MAX)
