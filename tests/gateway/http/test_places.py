"""Who holds how much: the books balance after whatever happens, nobody gets everything, and there is always a way in."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from poise.gateway.http.connections.places import ADDRESS_FULL, FULL, STRANGERS, Place, Places, Shares, is_always_answered

HOLDERS = ("", "a", "b", "c")


def nothing() -> None:
    pass


@given(
    st.integers(1, 50),
    st.lists(st.tuples(st.sampled_from(("take", "give", "move")), st.sampled_from(HOLDERS), st.integers(0, 20)), max_size=60),
)
def test_shares_balance(total: int, steps: list[tuple[str, str, int]]) -> None:
    """What is used is the sum of what is held and never more than there is; who holds nothing is forgotten."""
    shares, held = Shares(total), dict.fromkeys(HOLDERS, 0)
    for what, holder, wanted in steps:
        if what == "take":
            held[holder] += wanted if shares.take(holder, wanted) else 0
        elif what == "give":
            amount = min(wanted, held[holder])
            shares.give(holder, amount)
            held[holder] -= amount
        else:
            amount = min(wanted, held[holder])
            if shares.move(holder, "c", amount):
                held[holder] -= amount
                held["c"] += amount
        assert {name: shares.held(name) for name in HOLDERS} == held
        assert shares.used == sum(held.values()) <= total
        assert shares.holders == sum(n > 0 for n in held.values())


@given(st.lists(st.integers(1, 8), min_size=1, max_size=30))
def test_the_next_one_always_finds_some(amounts: list[int]) -> None:
    """Whatever one holder takes, another one may still take something."""
    shares = Shares(64)
    for amount in amounts:
        shares.take("greedy", amount)
        assert shares.may_take("next", 1)


class Books:
    """Places with connections that do as they are told."""

    def __init__(self, connections: int) -> None:
        self.places = Places(connections, 1000)
        self.open: list[Place] = []

    def enter(self, address: str = "") -> Place:
        place = self.places.enter(address, nothing)
        place.dismiss = lambda: self.open.remove(place)
        self.open.append(place)
        return place


STEPS = st.tuples(
    st.sampled_from(("enter", "leave", "claim", "rest", "forward", "spare")),
    st.sampled_from(("", "192.0.2.1", "192.0.2.2")),
    st.sampled_from(("a", "b", "c")),
    st.integers(0, 60),
)


@given(st.integers(1, 20), st.lists(STEPS, max_size=120))
def test_places_balance(connections: int, steps: list[tuple[str, str, str, int]]) -> None:
    """Never more connections than there are places and a reserve; when all have left, nothing is held."""
    books = Books(connections)
    places = books.places
    for what, address, account, i in steps:
        place = books.open[i % len(books.open)] if books.open else None
        if what == "enter":
            books.enter(address)
        elif what == "spare":
            n_open = len(books.open)
            assert places.spare_one() == (len(books.open) < n_open)
        elif place is not None and what == "leave":
            places.leave(place)
            books.open.remove(place)
        elif place is not None and what == "claim":
            places.claim(place, account)
        elif place is not None and what == "rest":
            places.rest(place)
        elif place is not None:
            places.serve_address(place, address)
        assert places.n_open == len(books.open) <= connections + places.reserve
        assert all(places.is_open(place) for place in books.open)
        assert sum(place.counted for place in books.open) <= connections
        assert sum(places.held_by(name) for name in "abc") == sum(
            place.counted and place.account is not None for place in books.open
        )
    for place in books.open:
        places.leave(place)
        places.leave(place)
    assert places.n_open == 0
    assert not any(places.held_by(name) for name in "abc")
    assert not places.held_at("192.0.2.1")


def test_whoever_does_nothing_makes_room_the_oldest_first() -> None:
    books = Books(8)
    places = [books.enter() for _ in range(8)]
    assert books.places.claim(places[0], "a")
    books.places.rest(places[1])
    newcomer = books.enter()
    assert not newcomer.refused
    assert places[2] not in books.open
    assert places[0] in books.open


def test_idle_connections_of_who_has_most_are_next() -> None:
    """Silent ones go first, then the oldest idle one of the largest account."""
    books = Books(6)
    held = [books.enter() for _ in range(6)]
    for place, account in zip(held[:5], "abbba", strict=True):
        assert books.places.claim(place, account)
        books.places.rest(place)
    order = []
    for _ in range(3):
        before = list(books.open)
        assert books.places.spare_one()
        order.append(next(place for place in before if place not in books.open))
    assert order == [held[5], held[1], held[0]]


def test_a_full_server_has_a_reserve_that_is_never_full() -> None:
    """All places are at work: newcomers are let in to be told so, and the oldest of them makes room for the next."""
    books = Books(8)
    accounts = iter("abcdefgh")
    for place in [books.enter() for _ in range(8)]:
        assert books.places.claim(place, next(accounts))
    late = [books.enter() for _ in range(50)]
    assert {place.refused for place in late} == {FULL}
    assert books.open[8:] == late[-books.places.reserve :]


def test_an_address_has_a_share_and_others_have_the_rest() -> None:
    """Half of what is free for a lone one, and one connection in any case; this machine has no bound."""
    books = Books(20)
    refused = [books.enter("192.0.2.1").refused for _ in range(15)]
    assert refused.count("") == 10
    assert refused[-1] == ADDRESS_FULL
    assert not books.enter("192.0.2.2").refused
    assert not any(books.enter("").refused for _ in range(30))
    assert not books.enter("192.0.2.3").refused


def test_an_account_has_a_share() -> None:
    """Eight ninths for a lone one, and the next one finds places."""
    books = Books(18)
    given_away = [books.places.claim(books.enter(), "a") for _ in range(18)]
    assert given_away.count(True) == 16
    assert books.places.claim(books.enter(), "b")


def test_bytes_of_bodies_are_divided() -> None:
    """Strangers together have less than one who is known, and leave them room."""
    places = Places(8, 900)
    assert places.take_body(STRANGERS, 450)
    assert not places.take_body(STRANGERS, 1)
    assert places.take_body("a", 400)
    assert not places.take_body("a", 1)
    assert places.move_body("a", "b", 40)
    assert places.bodies.held("b") == 40


def test_what_operators_look_at() -> None:
    assert all(map(is_always_answered, ("/health", "/health/live", "/metrics", "/status", "/admin/requests")))
    assert not any(map(is_always_answered, ("/", "/v1/models", "/page/style.css", "/healthy", "/metrics/x")))
