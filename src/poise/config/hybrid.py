"""The settings of work that may leave this host: other servers, what may go there, what it may cost."""

from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field

from poise.config import kinds
from poise.config.kinds import DataClass, Money, Section, is_loopback

NANO = 1_000_000_000
"""Parts of a unit of the operator's currency in which money is reckoned."""
Capability = Literal["tools", "structured", "reasoning", "logprobs", "choices", "completions", "sampling"]


class EgressSettings(Section):
    """When requests may be answered by other servers. What may go where is said by `backends` and by each tenant."""

    enabled: bool = False
    """Let requests leave this host, where labels and policies of tenants allow it; POISE_NO_CLOUD=1 forbids it anyway."""
    wait_s: Annotated[float, Field(ge=0.0, le=86_400)] = 0.0
    """A request may leave when its estimated wait for a slot here is longer; 0: none leaves for that."""
    heavy_wait_s: Annotated[float, Field(ge=0.0, le=86_400)] = 0.0
    """The same for heavy prompts and background work, of the wait and the prompt's compute together; 0: none leaves for that."""
    when_too_long: bool = True
    """A request may leave when its prompt fits into no slot here."""
    when_incapable: bool = True
    """A request may leave when it asks for something that the model here cannot do."""
    when_down: bool = True
    """A request may leave while there is no engine here."""
    hit_label: DataClass = "restricted"
    """The label of a request in whose text a rule finds something."""
    rules: list[kinds.RuleName] = ["card", "iban", "key", "email", "phone", "private_host"]
    """What is looked for in all text of a request that could leave."""
    words: list[kinds.NonBlankText] = []
    """Further words, whole and in any case, that give a request the label of a hit."""
    ledger: str = ""
    """File of what was spent. Empty: spend.sqlite in your state directory."""


class BackendSettings(Section):
    url: kinds.ServerUrl
    """Its API: what comes before /chat/completions, as in https://api.example.com/v1; http:// only if nothing leaves the host."""
    format: Literal["openai", "anthropic"] = "openai"
    """What it speaks."""
    model: str = ""
    """The model that is asked for there. Empty: the one that the request names, if the server has it, or else its first."""
    key_file: str = ""
    """File with its API key, for this user only (mode 0600); `credential:NAME`: a credential of systemd. Empty: it needs none."""
    ca_file: str = ""
    """Certificates (PEM) that its own must come from. Empty: those that this host trusts."""
    leaves_host: Literal["auto", True, False] = "auto"
    """Whether what is sent there leaves this host. auto: unless its address is a loopback one; a tunnel's is one, too."""
    ceiling: DataClass = "public"
    """Highest label of requests that may go there."""
    capabilities: list[Capability] = ["tools", "structured", "logprobs", "choices", "completions"]
    """What it can do beyond chat."""
    context_tokens: Annotated[int, Field(ge=0, le=1 << 30)] = 0
    """Prompt and output together; 0: what the server says, or no limit."""
    output_tokens: Annotated[int, Field(ge=1, le=1 << 20)] = 4096
    """Most output of a request; also the allowance of one that names none, where one is needed."""
    slots: Annotated[int, Field(ge=1, le=1024)] = 8
    """Requests that are there at once; further ones wait here, as before a pool."""
    queue_max: Annotated[int, Field(ge=0, le=1_000_000)] = 64
    """Requests of a class that may wait here; one more is answered with 429."""
    tier: Annotated[int, Field(ge=0, le=100)] = 0
    """Of several, those of the lowest tier are asked first, and among these the cheapest."""
    connect_s: Annotated[float, Field(gt=0.0, le=600)] = 5.0
    """Longest time that connecting may take."""
    first_s: Annotated[float, Field(gt=0.0, le=86_400)] = 120.0
    """Longest time until the first byte of an answer."""
    gap_s: Annotated[float, Field(gt=0.0, le=86_400)] = 30.0
    """Longest silence within an answer."""
    price_input: Money = "0"
    """Price of a million tokens of prompt, in the operator's currency; at most 3 decimals."""
    price_cached: Money = ""
    """The same for tokens of the prompt that the server had in its cache. Empty: as price_input."""
    price_output: Money = "0"
    """Price of a million tokens of output."""
    price_version: str = ""
    """Which list the prices are of, for the records."""
    budget_hour: Money = ""
    """Most that may be spent there within an hour (UTC), by all tenants. Empty: no limit."""
    budget_day: Money = ""
    """The same within a day."""
    budget_month: Money = ""
    """The same within a month."""


def leaves_host(url: str, says: Literal["auto", True, False]) -> bool:
    """Whether what is sent to a backend leaves this host."""
    try:
        return not is_loopback(urlsplit(url).hostname or "") if says == "auto" else says
    except ValueError:  # it is no URL, and goes nowhere
        return True


def nano_of(amount: str) -> int:
    """Of an amount as settings have it; "": 0."""
    units, _, decimals = amount.partition(".")
    return int(units or 0) * NANO + int(decimals.ljust(9, "0"))


def amount_of(nano: int) -> str:
    """As people write it: without zeros at its end, but with at least two decimals."""
    units, rest = divmod(abs(nano), NANO)
    decimals = f"{rest:09d}".rstrip("0").ljust(2, "0")
    return f"{'-' if nano < 0 else ''}{units}.{decimals}"
