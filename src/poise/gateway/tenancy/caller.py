"""Who asks, as a value: what a request shows of its sender, and who that turned out to be."""

from dataclasses import dataclass

from poise.gateway.request.labels import Label


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a request shows of who sends it, read once at the edge. Nothing of it is checked."""

    authorization: str = ""
    """The header of that name, and `X-Api-Key`; empty where there is none."""
    api_key: str = ""
    is_direct: bool = False
    """It comes straight from a program on this machine, as far as anybody says."""
    request_id: str = "-"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who was identified. `key_id` tells keys of one tenant apart in the audit log; it is empty for callers without a key."""

    tenant: str
    key_id: str = ""
    classes: tuple[str, ...] = ()
    """What this key may ask for; empty: whatever the tenant may."""
    account: str = ""
    """Under what name admission and fair shares are counted: the tenant, unless a key alone made it (`tenancy.accounts`)."""
    is_declared: bool = False
    """The operator made it: by a key or by a section of its own."""
    label: Label = Label.PUBLIC
    """The least that requests with this key have."""
    request_id: str = "-"
    """Of the request that it was identified by."""

    def __post_init__(self) -> None:
        if not self.account:
            object.__setattr__(self, "account", self.tenant)
