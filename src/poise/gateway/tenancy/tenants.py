"""Who is asking: API keys to tenants and their rights, and who is an operator.

Three kinds of tenant: those that have keys, in the configuration or in the keys file; `key-<hash>`, one for each key, when there
are no keys at all; and `local`, everyone without a key. No key can be made for a name of the other two kinds, so none can be
forged. Keys are compared as hashes in constant time, and are neither stored nor logged.

An operator is who presents an admin key, or the token of this server (LocalOperators) on this machine. An address makes
nobody an operator: other users have it, too, and so has everybody behind a proxy on this machine.

Commands read the token from its file (`poise.operator_token`). A browser cannot: `poise dashboard` asks for a code with the token
and prints an address that ends in it, and the page gives the code back for the token. A code works once and for a minute, so that
what stays in the history of a browser, or is read over somebody's shoulder, opens nothing.

Admission and fair shares are counted by account. A tenant that the operator declared is its own account, and so are all callers
without a key. Where no keys are declared anybody can make as many tenants as they like, a key for each request; what is kept for
them stays apart, but not what they may take:

1. At most ALIVE_MAX undeclared keys are accounts of their own at a time. One stays so while it has a live request, and LATELY_S
   after it was last seen.
2. All others share the account SHARED: one place in every order, one part of everything that is divided.
3. No other account is ever pushed out: neither one that is alive, nor callers without a key, nor a declared one.

So a thousand keys that are new with every request are nine accounts, beside whom everybody else has a part of a tenth."""

import hmac
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256

from poise.config import Settings
from poise.gateway.request.labels import Label, label_of
from poise.gateway.request.refusals import ApiError
from poise.gateway.tenancy.caller import Caller, Credentials
from poise.gateway.tenancy.exposure import key_required
from poise.gateway.tenancy.keys import Key, KeyRing
from poise.scheduler.request import RequestClass

CODE_LIFE_S = 60.0
CODES_MAX = 8
"""Codes at once; the oldest gives way."""


class LocalOperators:
    """Checks the token of this server and gives out login codes. An empty token is held by nobody."""

    def __init__(self, token: str = "", clock: Callable[[], float] = time.monotonic) -> None:
        self._token = token
        self._clock = clock
        self._codes: dict[bytes, float] = {}
        """When each code ends, by its hash, the oldest first."""

    def holds_token(self, presented: str) -> bool:
        """Whether this is the token; compared in constant time."""
        same = hmac.compare_digest(digest(presented), digest(self._token))
        return bool(self._token) and same

    def new_code(self) -> str:
        code = secrets.token_urlsafe(32)
        while len(self._codes) >= CODES_MAX:
            del self._codes[next(iter(self._codes))]
        self._codes[digest(code)] = self._clock() + CODE_LIFE_S
        return code

    def redeem(self, code: str) -> str | None:
        """The token for a code that was given out, is young and was not used; it is used up by this."""
        ends_s = self._codes.pop(digest(code), None)
        return self._token if ends_s is not None and self._clock() < ends_s else None


def digest(text: str) -> bytes:
    return sha256(text.encode("utf-8", "surrogateescape")).digest()


ALIVE_MAX = 8
LATELY_S = 10.0
SHARED = "key-shared"
"""No tenant can have this name: those of undeclared keys end in hexadecimal digits."""


class Accounts:
    """Who has an account of its own. `is_live` says whether requests of an account have not ended."""

    def __init__(
        self, is_live: Callable[[str], bool] = lambda account: False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._is_live = is_live
        self._clock = clock
        self._seen_s: dict[str, float] = {}
        """When each of them was last seen, in the order in which they got their accounts."""

    def of_undeclared(self, tenant: str) -> str:
        """The account of a tenant that its key alone made, which asks for something now."""
        now_s = self._clock()
        if tenant not in self._seen_s:
            for other in [t for t, seen_s in self._seen_s.items() if now_s - seen_s >= LATELY_S]:
                if not self._is_live(other):
                    del self._seen_s[other]
            if len(self._seen_s) >= ALIVE_MAX:
                return SHARED
        self._seen_s[tenant] = now_s
        return tenant


LOCAL = "local"
OPERATOR = "operator"
"""As whom the audit log knows who has the token."""
NO_KEY = "An API key is needed: send 'Authorization: Bearer KEY'."
ADMIN_HINT = (
    "This is for operators. Send an admin key as 'Authorization: Bearer KEY' (auth.admin_key, or one made by "
    "`poise keys add NAME --admin`). On the server's machine its user needs none: `poise top`, `poise explain` and "
    "`poise dashboard` find the server's token."
)
_TIERS = {RequestClass.INTERACTIVE: "default", RequestClass.BACKGROUND: "flex"}


class Tenants:
    """Identifies callers, and says what they may."""

    def __init__(
        self,
        settings: Settings,
        keys: KeyRing | None = None,
        operators: LocalOperators | None = None,
        is_live: Callable[[str], bool] = lambda account: False,
    ) -> None:
        """`keys` are those of the keys file, where there is one; `operators` those on this machine, where there is a token.
        `is_live` says whether requests of an account have not ended."""
        auth = settings.auth
        self._settings = settings
        self._declared = [(digest(key), name) for name, key in auth.keys.items()]
        self._admin = digest(auth.admin_key) if auth.admin_key else None
        self._keys = keys
        self._operators = operators or LocalOperators()
        self._accounts = Accounts(is_live)

    @property
    def requires_key(self) -> bool:
        """Revoked keys count: revoking the last one must not open the server."""
        return key_required(self._settings.auth, len(self._declared) + sum(not key.admin for key in self._of_file()))

    def identify(self, credentials: Credentials) -> Caller:
        """Whose request it is. Raises ApiError (401)."""
        return replace(self._caller(self._presented_key(credentials)), request_id=credentials.request_id)

    def account_of(self, credentials: Credentials) -> str:
        """The account that a request counts for before anything is done for it; empty for a caller who is not known."""
        with suppress(ApiError):
            return self._caller(self._presented_key(credentials)).account
        return ""

    def check_class(self, caller: Caller, request_class: RequestClass, *, for_summary: bool = False) -> None:
        """Raises ApiError (403) unless the caller may use this class; `for_summary`: to have a summary made in it."""
        of_tenant = self._settings.tenant(caller.tenant).classes or list(RequestClass)
        allowed = [name for name in of_tenant if not caller.classes or name in caller.classes]
        if request_class in allowed:
            return
        if for_summary:
            message = (
                f"The older turns would be summarized in class '{request_class.value}', which your key may not use. Shorten the "
                "conversation or use 'context_policy': 'trim'."
            )
            raise ApiError(403, "class_not_allowed", message, param="context_policy")
        tiers = " or ".join(f"'{_TIERS[RequestClass(name)]}' (class '{name}')" for name in allowed)
        hint = f"Send 'service_tier': {tiers}." if allowed else "Ask the operator for a key that may use a class."
        message = f"Your key may not use class '{request_class.value}'. {hint}"
        raise ApiError(403, "class_not_allowed", message, param="service_tier")

    def is_admin(self, credentials: Credentials) -> bool:
        """Whether the caller may see the server's inside."""
        with suppress(ApiError):
            return bool(self.check_admin(credentials))
        return False

    def check_admin(self, credentials: Credentials) -> Caller:
        """Which operator it is. Raises ApiError unless the caller may see the server's inside."""
        presented = self._presented_key(credentials)
        caller = self._operator(presented) if presented is not None else None
        if caller is None:
            raise _unauthorized("invalid_admin_key", ADMIN_HINT)
        if caller.tenant == OPERATOR and not credentials.is_direct:
            message = (
                "The token of this server's operators works on its own machine only, and not through a proxy. Use an admin key: "
                "set auth.admin_key, or run `poise keys add NAME --admin`."
            )
            raise ApiError(403, "admin_is_local", message)
        return replace(caller, request_id=credentials.request_id)

    def is_insider(self, credentials: Credentials) -> bool:
        """On this machine, or an operator: may be shown where files lie."""
        return credentials.is_direct or self.is_admin(credentials)

    def check_status(self, credentials: Credentials) -> None:
        """Raises ApiError (401) unless the caller may see how the server stands."""
        wanted = self._settings.auth.status
        if wanted == "auto":
            wanted = "key" if self.requires_key else "open"
        if wanted == "open" or self.is_insider(credentials):
            return
        key = self._presented_key(credentials)
        if wanted == "admin":
            raise _unauthorized("invalid_admin_key", ADMIN_HINT)
        if key is None:
            raise _unauthorized("missing_api_key", NO_KEY)
        self._caller(key)

    def _operator(self, key: str) -> Caller | None:
        """Whose admin key, or token, this is. All are compared: the time must not tell which one matched."""
        found = self._keys.find(key) if self._keys is not None else None
        is_configured = self._admin is not None and hmac.compare_digest(self._admin, digest(key))
        if self._operators.holds_token(key):
            return Caller(OPERATOR, "token")
        if found is not None and found.admin:
            return Caller(found.tenant, found.id)
        return Caller("admin", "auth.admin_key") if is_configured else None

    def _caller(self, key: str | None) -> Caller:
        if key is None:
            if self.requires_key:
                raise _unauthorized("missing_api_key", NO_KEY)
            return Caller(LOCAL, is_declared=True)
        hashed = digest(key)
        # All are compared: the time must not tell which one matched.
        if matching := [name for declared, name in self._declared if hmac.compare_digest(declared, hashed)]:
            return Caller(matching[-1], f"auth.keys.{matching[-1]}", is_declared=True)
        found = self._keys.find(key) if self._keys is not None else None
        if found is not None and not found.admin:
            label = label_of(found.data_class) if found.data_class else Label.PUBLIC
            return Caller(found.tenant, found.id, tuple(found.classes), is_declared=True, label=label)
        if self._operator(key) is not None:
            message = "This is an admin key. It opens /admin, and no tenant's work can be done with it."
            raise _unauthorized("invalid_api_key", message)
        # A file without a valid key still says that there are keys here: revoking the last one must not open the server.
        if self._declared or self.requires_key or self._of_file():
            message = "The API key is not known here. Check it, or ask the operator for one."
            raise _unauthorized("invalid_api_key", message)
        name = f"key-{hashed.hex()[:12]}"
        if name in self._settings.tenants:
            return Caller(name, name, is_declared=True)
        return Caller(name, name, account=self._accounts.of_undeclared(name))

    def _presented_key(self, credentials: Credentials) -> str | None:
        scheme, _, key = credentials.authorization.partition(" ")
        if scheme.lower() == "bearer":
            return key.strip() or None
        if scheme.lower() == "basic" and (credentials.api_key or not self.requires_key):
            scheme = ""  # they are for a proxy, which has passed them on
        if not scheme:
            return credentials.api_key or None
        message = "The Authorization header must have the form 'Bearer KEY'"
        if scheme.lower() == "basic":
            message += ", and has Basic credentials. If those are for a proxy, send the key as 'x-api-key: KEY'"
        raise _unauthorized("invalid_authorization", message + ".")

    def _of_file(self) -> list[Key]:
        return self._keys.keys if self._keys is not None else []


def _unauthorized(code: str, message: str) -> ApiError:
    return ApiError(401, code, message, headers={"WWW-Authenticate": "Bearer"})
