"""Attacks on the operators' doors: who asks without a right to, who asks for too much, and what a proxy's headers claim."""

from __future__ import annotations

import json

from tests.attacks.kinds.kind import kind
from tests.attacks.peer import Peer, Site, ask

ADMIN = ("/admin/journal", "/admin/requests?ended=100", "/admin/quarantine")


@kind("P19", every_s=0.1, crew=4)
async def strangers(site: Site) -> str:
    """Wrong keys, and ids that are as long as they may be."""
    key = f"guess-{site.rng.getrandbits(64):016x}"
    return await ask(site, site.get(site.rng.choice(ADMIN), key=key, X_Request_Id="x" * 64))


@kind("P19", every_s=0.5, crew=2)
async def forged_headers(site: Site) -> str:
    """Headers that say that a stranger is somebody else."""
    more = site.rng.choice(
        [
            {"X_Forwarded_For": "127.0.0.1", "Host": "localhost"},
            {"Forwarded": "for=127.0.0.1", "Host": "127.0.0.1"},
            {"X_Real_IP": "127.0.0.1", "Via": "1.1 proxy"},
            {"Origin": "https://evil.example", "Sec_Fetch_Site": "cross-site"},
            {"Host": "evil.example"},
        ]
    )
    method, path = site.rng.choice([("GET", "/admin/requests"), ("DELETE", "/admin/tenants/local/data?live=1")])
    return await ask(site, site.head(method, path, length=None, **more))


@kind("P20", every_s=0.2, crew=4)
async def lookers(site: Site) -> str:
    """Whatever can be looked at without a key, over and over."""
    paths = ("/status", "/status/history", "/metrics", "/openapi.json", "/health", "/v1/models", "/v1/templates")
    return await ask(site, site.get(site.rng.choice(paths)), site.hold_s)


@kind("P20", every_s=3.0, crew=4)
async def journal_readers(site: Site) -> str:
    """An operator's program that reads the journal again and again, and one that stops reading it."""
    request = site.get("/admin/journal", key=site.admin_key)
    if site.rng.random() < 0.7:
        return await ask(site, request, site.hold_s)
    with await Peer.connect(site, rcvbuf=2048) as peer:
        await peer.send(request)
        await peer.receive(site.hold_s)
        peer.reset()
    return "gone"


@kind("P22", every_s=10.0)
async def erasures(site: Site) -> str:
    """An operator erases a tenant that is busy."""
    with await Peer.connect(site) as peer:
        await peer.send(site.head("DELETE", f"/admin/tenants/{_tenant(site)}/data?live=1", key=site.admin_key))
        answer = await peer.answer(site.hold_s)
        return str(answer.status) if answer is not None else "no answer"


@kind("P20", every_s=2.0)
async def explanations(site: Site) -> str:
    """Explanations of whatever ended last: the dearest answers to make."""
    with await Peer.connect(site) as peer:
        await peer.send(site.get("/admin/requests?ended=50", key=site.admin_key))
        answer = await peer.answer(site.hold_s)
        if answer is None or answer.status != 200:
            return "no answer" if answer is None else str(answer.status)
        rows = json.loads(answer.body)["ended"]
        if not rows:
            return "none"
        return await peer.ask(
            site.get(f"/admin/requests/{site.rng.choice(rows)['id']}/explanation", key=site.admin_key), site.hold_s
        )


@kind("P5", every_s=0.5, crew=2)
async def odd_paths(site: Site) -> str:
    """Files that nobody offers."""
    paths = ("/page/../../etc/passwd", "/page/%2e%2e%2f", "//", "/v1/requests/" + "a" * 200, "/%00", "/page/")
    return await ask(site, site.get(site.rng.choice(paths)))


def _tenant(site: Site) -> str:
    """A tenant that misbehaves; keys of declared tenants are called after them."""
    return site.rng.choice(site.keys).removesuffix("-secret-key") or "local"
