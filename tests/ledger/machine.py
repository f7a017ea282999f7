"""A hypothesis state machine: whatever is asked of the ledger in whatever order, database and model stay equal."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable
from decimal import Decimal
from typing import Any, ClassVar, TypeVar

import asyncpg
from hypothesis import HealthCheck, Phase, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from tests.ledger import snapshot
from tests.ledger.model import MICRO, Books
from tests.ledger.operations import (
    AddCredits,
    DebitCredits,
    Ending,
    ExpireHolds,
    ExtendHolds,
    HoldCredits,
    Operation,
    SetAccount,
    SettleCredits,
)
from tests.schema.ledger import Ledger

T = TypeVar("T")

STEPS = 30

# Few and small, so that amounts meet: a hold of all there is, a charge of exactly the hold, a cap just reached.
AMOUNTS = st.one_of(
    st.integers(0, 12).map(Decimal),
    st.sampled_from([MICRO, 1 - MICRO, Decimal("2.5"), 3 + MICRO, Decimal(100)]),
    st.integers(0, 12 * 10**6).map(lambda micros: micros * MICRO),
)
NO_AMOUNTS = st.sampled_from(["NaN", "-1", "0.0000001", "Infinity"])
USERS = st.sampled_from(["ann", "bob", "eve"])
ANYBODY = st.one_of(USERS, st.just("nobody"))
KINDS = st.sampled_from(["purchase", "bonus", "refund", "adjustment"])
KEYS = st.one_of(st.none(), st.sampled_from(["k1", "k2"]))
PAYMENTS = st.one_of(st.none(), st.sampled_from(["pi_1", "pi_2"]))
CHARGES = st.one_of(AMOUNTS.map(lambda amount: f"{amount:f}"), st.none(), NO_AMOUNTS)
# What an operator changes, and a month that passes.
CHANGES = [
    ("status", "active"), ("status", "suspended"), ("status", "closed"),
    ("monthly_cap", None), ("monthly_cap", Decimal(6)), ("last_reset", True),
]  # fmt: skip


class Session:
    """One connection, for code that is not asynchronous."""

    def __init__(self, url: str) -> None:
        self._loop = asyncio.new_event_loop()
        options = {"search_path": "uc", "lock_timeout": "5s", "statement_timeout": "20s"}
        self.connection = self.run(asyncpg.connect(url, server_settings=options))
        self.ledger = Ledger(self.connection)

    def run(self, work: Awaitable[T]) -> T:
        return self._loop.run_until_complete(_awaited(work))

    def close(self) -> None:
        self.connection.terminate()
        self._loop.close()


class LedgerMachine(RuleBasedStateMachine):
    """Each rule is one operation; the same one on the model must answer the same."""

    session: ClassVar[Session]
    holds = Bundle("holds")

    def __init__(self) -> None:
        super().__init__()
        self.books = Books()
        self._ids = 0
        self.session.run(snapshot.wipe(self.session.connection))

    def do(self, operation: Operation) -> None:
        answer = self.session.run(operation.ask(self.session.ledger))
        expected = operation.expect(self.books)
        assert answer == expected, f"{type(operation).__name__}: {answer}\ninstead of {expected}\nto {operation}"

    def owner(self, hold: uuid.UUID, otherwise: str) -> str:
        known = self.books.holds.get(hold)
        return known.user if known else otherwise

    @initialize(target=holds, amounts=st.tuples(AMOUNTS, AMOUNTS, AMOUNTS))
    def open_accounts(self, amounts: tuple[Decimal, ...]) -> Any:
        """Each account begins with more than it holds for two calls, one of which has lapsed already."""
        begun = []
        for user, amount in zip(("ann", "bob", "eve"), amounts, strict=True):
            self.do(AddCredits(user, amount + 5, "bonus"))
            begun += [self.hold(user, Decimal(2), 1, lapses) for lapses in (False, True)]
        return multiple(*begun)

    @rule(target=holds, user=ANYBODY, amount=AMOUNTS, share=st.sampled_from([0, "0.5", 1]), lapses=st.booleans())
    def hold(self, user: str, amount: Decimal, share: Any, lapses: bool) -> uuid.UUID:
        """A call begins, with a least amount from nothing to all of it."""
        self._ids += 1
        hold = uuid.UUID(int=self._ids)
        self.do(HoldCredits(hold, user, amount, (amount * Decimal(share)).quantize(MICRO), lapses))
        return hold

    @rule(target=holds, user=USERS, amount=NO_AMOUNTS)
    def lose_a_hold(self, user: str, amount: str) -> uuid.UUID:
        """A hold that is refused for its amounts, or never arrives; its settlement will."""
        self._ids += 1
        hold = uuid.UUID(int=self._ids)
        self.do(HoldCredits(hold, user, Decimal(amount), Decimal(0)))
        self.do(HoldCredits(hold, user, Decimal(1), Decimal(2)))
        return hold

    @rule(hold=holds, user=USERS, amount=AMOUNTS)
    def hold_again(self, hold: uuid.UUID, user: str, amount: Decimal) -> None:
        """The same id again: with the same amounts, with others, for whom it may not be; or first after its end."""
        if known := self.books.holds.get(hold):
            self.do(HoldCredits(hold, known.user, *(known.asked or (amount, amount))))
            self.do(HoldCredits(hold, user, amount, amount))

    @rule(hold=holds, user=USERS, charge=CHARGES, usage=st.booleans())
    def end(self, hold: uuid.UUID, user: str, charge: str | None, usage: bool) -> None:
        """A settlement or a release, of an open hold, an ended one, or one that never was."""
        self.do(SettleCredits((Ending(hold, self.owner(hold, user), charge, usage),)))

    @rule(hold=holds, more=st.sampled_from([0, MICRO, 1]), next_month=st.booleans())
    def settle_what_was_held(self, hold: uuid.UUID, more: Decimal, next_month: bool) -> None:
        """A charge of the hold or a little more, perhaps in the month after another charge; the hooks fire twice."""
        if known := self.books.holds.get(hold):
            charge = known.amount + more if known.charged is None else known.charged
            if next_month:
                self.do(DebitCredits(known.user, MICRO))
                self.do(SetAccount(known.user, "last_reset", True))
            for _ in range(2):
                self.do(SettleCredits((Ending(hold, known.user, f"{charge:f}"),)))

    @rule(hold=holds, amount=AMOUNTS)
    def overdraw(self, hold: uuid.UUID, amount: Decimal) -> None:
        """A provider ignores its limit: the charge is more than there is, and the next hold comes to a debtor."""
        if known := self.books.holds.get(hold):
            charge = known.amount + self.books.accounts[known.user].available + amount
            self.do(SettleCredits((Ending(hold, known.user, f"{charge:f}"),)))
            self.hold(known.user, amount, 0, lapses=False)

    @rule(hold=holds, user=ANYBODY, charge=CHARGES)
    def end_for_another(self, hold: uuid.UUID, user: str, charge: str | None) -> None:
        """Whoever is named, a hold that is known is its own account's."""
        if known := self.books.holds.get(hold):
            another = user if user != known.user else "eve" if user != "eve" else "ann"
            self.do(SettleCredits((Ending(hold, another, charge),)))

    @rule(holds=st.lists(holds, min_size=2, max_size=6), charges=st.lists(CHARGES, min_size=6, max_size=6), user=USERS)
    def end_together(self, holds: list[uuid.UUID], charges: list[str | None], user: str) -> None:
        """A batch over several accounts, in which a hold may come twice."""
        endings = [Ending(hold, self.owner(hold, user), charge) for hold, charge in zip(holds, charges, strict=False)]
        self.do(SettleCredits(tuple(endings)))

    @rule(holds=st.lists(holds, min_size=1, max_size=4, unique=True), lapses=st.booleans(), sweep=st.booleans())
    def extend(self, holds: list[uuid.UUID], lapses: bool, sweep: bool) -> None:
        """Leases are renewed, lapsed ones too, or run out; then the sweeper comes, or it does not."""
        self.do(ExtendHolds(tuple(holds), lapses))
        if sweep:
            self.do(ExpireHolds())

    @rule(hold=consumes(holds))
    def settle_late(self, hold: uuid.UUID) -> None:
        """A worker is gone for longer than the lease, then its outbox is flushed."""
        if known := self.books.holds.get(hold):
            self.do(ExtendHolds((hold,), lapses=True))
            self.do(ExpireHolds())
            self.do(SettleCredits((Ending(hold, known.user, f"{known.amount + 1:f}"),)))

    @rule(hold=consumes(holds))
    def settle_after_release(self, hold: uuid.UUID) -> None:
        """A call is given up, and was answered all the same."""
        if known := self.books.holds.get(hold):
            for charge in (None, f"{known.amount:f}"):
                self.do(SettleCredits((Ending(hold, known.user, charge),)))

    @rule(user=st.one_of(USERS, st.just("new")), amount=AMOUNTS, sign=st.sampled_from([1, 1, -1]), kind=KINDS,
          payment=PAYMENTS, key=KEYS)  # fmt: skip
    def add(self, user: str, amount: Decimal, sign: int, kind: str, payment: str | None, key: str | None) -> None:
        self.do(AddCredits(user, sign * amount, kind, payment, key))

    @rule(user=USERS, amount=AMOUNTS, kind=KINDS, payment=PAYMENTS, key=KEYS)
    def add_twice(self, user: str, amount: Decimal, kind: str, payment: str | None, key: str | None) -> None:
        """A payment is reported twice."""
        for _ in range(2 if payment or key else 1):
            self.do(AddCredits(user, amount, kind, payment, key))

    @rule(user=ANYBODY, amount=AMOUNTS, key=KEYS)
    def debit(self, user: str, amount: Decimal, key: str | None) -> None:
        self.do(DebitCredits(user, amount, key))

    @rule(user=USERS, amount=AMOUNTS, room=AMOUNTS)
    def near_the_cap(self, user: str, amount: Decimal, room: Decimal) -> None:
        """The cap leaves so much beside what was spent and what is held."""
        account = self.books.accounts[user]
        self.do(SetAccount(user, "monthly_cap", account.spent_this_month + account.held + room))
        self.hold(user, amount, "0.5", lapses=False)

    @rule(user=USERS, change=st.sampled_from(CHANGES))
    def change_account(self, user: str, change: tuple[str, Any]) -> None:
        self.do(SetAccount(user, *change))

    @invariant()
    def is_equal(self) -> None:
        """Every figure of every account is the model's, the audit finds nothing, no row was ever negative."""
        found, expected = self.session.run(snapshot.taken(self.session.connection)), snapshot.expected(self.books)
        assert found == expected, f"{found.faults}, {found}\ninstead of {expected}"


def run(url: str, *, examples: int, seed: int, shrink: bool = True) -> None:
    """Play so many games on this database, which is emptied before each.

    Without `shrink` the first failure found is the one raised, whatever its length.
    """
    phases = [Phase.generate, Phase.shrink] if shrink else [Phase.generate]
    machine: Any = type("Machine", (LedgerMachine,), {"session": Session(url)})
    try:
        run_state_machine_as_test(
            seeded(seed)(machine),
            settings=settings(
                max_examples=examples, stateful_step_count=STEPS, deadline=None, database=None, phases=phases,
                suppress_health_check=list(HealthCheck),
            ),
        )  # fmt: skip
    finally:
        machine.session.close()


async def _awaited(work: Awaitable[T]) -> T:
    return await work
