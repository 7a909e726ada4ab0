"""The kinds of attack, each bounded in count, size and time. The tests make a few strikes of each, a siege all at once."""

from tests.attacks.kinds import bodies, connections, doors, requests
from tests.attacks.kinds.kind import KINDS, Kind

__all__ = ["KINDS", "Kind", "bodies", "connections", "doors", "requests"]
