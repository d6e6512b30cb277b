"""What a broker must provide: the contract between the engine and a driver.

A driver holds the connection, sends, receives and settles; nothing else. The engine retries, orders,
dead-letters, batches, waits out outages and closes what it opened. A driver is proven by
`things_kit.testing.conformance` and found by its URL scheme, through the entry point group
`things_kit.brokers`:

    [project.entry-points."things_kit.brokers"]
    stone = "stone_broker.things:StoneDriver"      # serves stone://...

Rules that hold for every method:

* All methods are called on one event loop. Work that blocks belongs in a thread of the driver's own.
* `ConnectionLost` means "the broker is away, or forgot who we are; trying again later may help". The engine then
  waits and tries again: publishing until `publish_timeout`, consuming for ever. Errors of the public kind
  (`PublishError`, `ConfigError`, `UnsupportedError`, ...) are final and reach the user. The client's own
  exception is the `__cause__`.
* Names of topics and groups were checked to be text, not empty; a driver refuses with `ConfigError` what its broker
  cannot have beyond that, and never misreads a name.
* A call may be cancelled while it waits. What it had taken from the broker by then must reach nobody twice in
  this process and be lost by nobody: it is in the inbox, the next call puts it there, or the broker hands it out.
* A driver keeps no messages. What arrives goes to `Subscription.inbox` at once: there it is ordered, leased, counted
  and given back.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Protocol, Self, TypeAlias, runtime_checkable

import msgspec

from things_kit.engine.state import READY, State
from things_kit.engine.url import BrokerURL
from things_kit.messaging.message import Message
from things_kit.messaging.policy import Ordering, Start

if TYPE_CHECKING:
    from things_kit.engine.inbox import ConsumerInbox


class ConnectionLost(Exception):
    """The broker is away, for now. Carries a sentence without secrets; the client's exception is its cause."""


class UnknownTopic(Exception):
    """The topic does not exist at the broker (any more). The engine declares it, unless told not to, and sends again."""


RESERVE: Final = 2048
"""Bytes beyond what a user may send that are kept for the headers which a dead letter adds."""


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What a broker has natively. The engine emulates what is missing, or refuses at start what cannot be had.

    Attributes:
        delay: A `Release` with a delay comes again only after it. Otherwise the engine holds the message meanwhile.
        delay_from: The shortest delay that it keeps, in seconds; the engine holds a message for less.
        lanes: The broker keeps the order asked for by `Subscription.ordering` across all receivers of a group: it
            hands out messages of one lane in order and to one receiver at a time, and a released message holds back
            the later ones of its lane until it is settled, unless released aside. A lane in back-off then waits in
            the broker, not in this process's memory. Needs `delay`.
        lease: Seconds after which an unsettled delivery is handed to somebody else, unless extended; None where a
            delivery is bound to the connection.
        retained: Messages stay after they were acknowledged, so that a new group can begin at the earliest.
        attempts: `Message.attempt` of a delivery survives a restart: the broker counts, or stores `Release.attempt`.
        targeted: The driver itself keeps a message with the header `replay-group` from all other groups, and from
            their lag. Otherwise their engines skip it.
        suspects: `Message.attempt` counts what killed processes were handed too, and a mark can be kept for the next
            delivery (a receiver that is `Marking`, or a driver that `SendsLater`): a message that kills whoever handles
            it can be told.
        counts_releases: What was released counts as one more delivery, whatever `Release.attempt` says: another process
            takes it for another attempt.
        fixed_credit: What `credit` says costs a new subscription at the broker, so it is said seldom.
        partitions: Messages have a partition, and order is kept within one.
        lasting_inbox: The inbox for replies has a group whose place the broker keeps over a lost connection. Otherwise
            it is read without one, where a group is slow to join, or would outlive its process.
        passing_inbox: The broker removes that inbox with the connection that reads it, so that nobody looks for those of
            dead processes.
        lag: The broker can say how many messages a group has not acknowledged.
        scheduled_in_lag: What is scheduled is in that number from its publish on, as the broker has one number for it and for
            what waits to be tried again. Otherwise it is there when it is due.
        schedule_ids: A driver that is `Scheduling` knows a scheduled message by its `schedule_id`: the same again replaces
            it, and it can be cancelled (`Cancelling`).
        schedules: It can also list what is to come (`ListingSchedules`).
        carried: Seconds ahead up to which the engine schedules messages by topics of its own (see `carrying`), though the
            broker, or this version of it, keeps nothing until later; 0: not at all. Where `schedule_ids` is set the driver
            schedules by itself, and only what waits in those topics from before is carried on.
        max_batch: The most messages one `send` takes. Where that is more than 10,000, they come only while they are small: a
            `send` has one `publish_timeout`, however many it is of.
        max_message_bytes: The largest value, key and headers together that a user may send; None where the broker sets no
            bound. The broker must take `RESERVE` bytes more, for the headers of a dead letter.
    """

    delay: bool = False
    delay_from: float = 0.0
    lanes: bool = False
    lease: float | None = None
    retained: bool = False
    attempts: bool = False
    targeted: bool = False
    suspects: bool = False
    counts_releases: bool = False
    fixed_credit: bool = False
    partitions: bool = False
    lasting_inbox: bool = True
    passing_inbox: bool = False
    lag: bool = True
    scheduled_in_lag: bool = False
    schedule_ids: bool = False
    schedules: bool = False
    carried: float = 0.0
    max_batch: int = 10_000
    max_message_bytes: int | None = None

    @property
    def dead_letter_bytes(self) -> int | None:
        """The largest dead letter; None where the broker sets no bound."""
        return None if self.max_message_bytes is None else self.max_message_bytes + RESERVE

    @property
    def emulated(self) -> tuple[str, ...]:
        """The names of the features that the engine provides because the broker lacks them."""
        return tuple(name for name in ("delay", "lanes", "attempts", "targeted") if not getattr(self, name))


class Delivery(msgspec.Struct, eq=False, gc=False):  # see ConsumerInbox.dispose
    """A message on loan from the broker, until it is settled: the one record that the engine keeps of it.

    `token` is whatever the driver needs to settle it, and all that it may ask of a delivery once it was handed out: the
    engine may have replaced the message by then, by a smaller one, unless it releases it with a higher attempt or with a
    delay. A token must not refer back to its delivery.
    `suspect` is the attempt with which a mark was stored for it (`Marking`, `Later.suspect`); 0 where there is none.
    `due` is when it may be handled, in seconds since 1970, where the broker could not keep it for so long: the engine has it
    wait on. None: now.
    `state` and `inbox` are the engine's; drivers leave them alone.
    """

    message: Message
    token: Any = None
    suspect: int = 0
    due: float | None = None
    state: State = READY
    inbox: "ConsumerInbox" = None  # type: ignore[assignment] # set on arrival


Which: TypeAlias = Callable[[Delivery], bool]
"""Says which deliveries are meant, by their tokens."""


class Inbox(Protocol):
    """Where a receiver puts what arrives. All methods are called on the loop."""

    def put(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """These have arrived, in this order.

        Returns what is not taken, to be given back uncounted: all of it, once the receiver was told to `quiesce`.
        """

    async def let_go(self, which: Which) -> None:
        """For brokers that take back a part of what a receiver has, such as a partition in a rebalance.

        Awaited before the driver lets go: drops what was not begun of these, gives begun handlers their time, and has
        settled them when it returns.
        """

    def forget(self, which: Which) -> None:
        """The same where that part is lost already: drops them, and settles nothing."""

    def ailing(self, reason: str | None) -> None:
        """For drivers that know when a receiver gets nothing though it should: the reason, for the consumer's health.

        None when it is over. That others have all the work is no reason.
        """

    def fail(self, error: Exception) -> None:
        """Nothing more arrives: for receivers that have no call in which to say so. ConnectionLost, or what is final."""


class Subscription(msgspec.Struct, frozen=True, kw_only=True):
    """What one receiver is to bring.

    Attributes:
        topic: From where.
        group: As whom. The receivers of one group share the messages.
        ephemeral: The group is this receiver's own, begins now, and is to vanish with it, also if its process dies.
        past: An ephemeral group begins at the earliest message instead. Asked for only where `Capabilities.retained` is
            set.
        start: Where the group begins if this subscription creates it, on a broker that retains.
        ordering: "key": messages with the same key form a lane, those without a key none. "partition": a partition,
            or the whole topic where there are none, is one lane. "none": there are no lanes.
        max_in_flight: The most messages the engine will hold at once: an upper bound for prefetching.
        create: Whether a missing topic or group may be created; if not, and one is missing, `ConfigError`. An ephemeral
            group of a topic that is there begins all the same.
        inbox: Where it is to put what arrives.
    """

    topic: str
    group: str
    ephemeral: bool = False
    past: bool = False
    start: Start = "earliest"
    ordering: Ordering = "key"
    max_in_flight: int = 1000
    create: bool = True
    inbox: Inbox = None  # type: ignore[assignment] # each receiver has its own


class Release(msgspec.Struct, eq=False):
    """Gives a delivery back to its group.

    Attributes:
        delivery: What goes back.
        delay: Seconds until it may come again. More than 0 only where `Capabilities.delay` is set.
        attempt: The `Message.attempt` with which it is to come again, for brokers that can store it.
        aside: It gives up its place: later messages of its lane need not wait for it.
    """

    delivery: Delivery
    delay: float = 0.0
    attempt: int = 1
    aside: bool = False


class Later(msgspec.Struct, eq=False):
    """A copy of a message for one group, to arrive no sooner than it is due.

    Attributes:
        message: What is to arrive; its topic is the one that it came from.
        group: The only group that is to get it.
        due: When, in UTC.
        attempt: With which `Message.attempt`.
        suspect: With which `Delivery.suspect`; 0 for none.
    """

    message: Message
    group: str
    due: datetime
    attempt: int = 1
    suspect: int = 0


class Receiver(Protocol):
    """One subscription. It is a `Fetching` or a `Pushed` one; what both have is here. Nothing is called after `close`."""

    async def quiesce(self) -> None:
        """Have nothing more put into the inbox once this returns; it ends in a second or two, whatever the broker does.

        What was asked for is withdrawn, or comes meanwhile and is refused by the inbox: then it goes back uncounted.
        The engine releases all the rest after this, in the order of arrival, and then closes.
        """

    async def settle(self, acknowledged: Sequence[Delivery], released: Sequence[Release]) -> None:
        """Tell the broker what became of deliveries, in one round trip where it can.

        Called with each delivery at most once, in any order, also while a `fetch` waits. When it returns, what was
        acknowledged never comes again, and what was released is available to the group (where `Capabilities.lanes`
        is set: every `fetch` that begins afterwards respects the back-off of the lanes released here). A delivery
        whose lease was lost meanwhile is passed over in silence: somebody else has it.

        Raises:
            ConnectionLost: As for `fetch`; what was not settled comes again.
        """

    async def extend(self, deliveries: Sequence[Delivery]) -> None:
        """Renew the leases of these, and be sure that it lasts another `Capabilities.lease` seconds.

        Called about three times a lease while anything is held; only where `lease` is set.
        """

    async def overdue(self) -> int | None:
        """How many messages this receiver should be getting now; None where the broker cannot say.

        Those of its own partitions, or of the group's that nobody holds. Asked when nothing has come for a while, and
        nothing is held: where it stays above 0, the engine closes this receiver and subscribes anew.

        Raises:
            ConnectionLost: As for `settle`.
        """

    async def close(self) -> None:
        """Let go of the subscription, and of an ephemeral group. What was not settled goes back to the group.

        It ends within a few seconds, whatever the broker does: what cannot be said to it, it finds out by itself.
        """


@runtime_checkable
class Fetching(Receiver, Protocol):
    """A receiver that asks the broker for messages. The engine never calls `fetch` twice at a time."""

    async def fetch(self, limit: int, wait: float) -> None:
        """Ask for up to `limit` messages, and put into the inbox what comes, in order.

        Returns as soon as there is at least one, or none came within `wait` seconds. With `wait=0` it puts what is
        there now. Waiting costs nothing: no polling in a busy loop. Never more than `limit` are taken from the broker.

        Raises:
            ConnectionLost: The engine forgets all deliveries of this receiver, closes it and subscribes anew.
        """


@runtime_checkable
class Pushed(Receiver, Protocol):
    """A receiver to which the broker pushes messages, as many as it was given credit for; it puts them into the inbox.

    What ends it is told to `Inbox.fail`.
    """

    def credit(self, window: int) -> None:
        """From now on the broker may have so many messages with this receiver that are not settled, and no more.

        Before the first call nothing is asked for. Called often where `Capabilities.fixed_credit` is not set.
        """


@runtime_checkable
class Marking(Protocol):
    """What a receiver has whose broker can keep a mark beside a message that is handed out."""

    async def mark(self, delivery: Delivery, suspect: int) -> None:
        """From its next delivery on it has this as its `Delivery.suspect`; 0 takes the mark away.

        Raises:
            ConnectionLost: As for `settle`.
        """


@runtime_checkable
class SendsLater(Protocol):
    """What a driver has whose broker keeps no delay beside a message, but can keep a copy until it is due."""

    async def send_later(self, copies: Sequence[Later]) -> Sequence[Exception | None]:
        """Publish copies, each for one group alone; returns when all are confirmed or refused, as `send` does.

        The engine acknowledges the originals afterwards. Raises ConnectionLost.
        """


class Scheduled(msgspec.Struct, eq=False):
    """A message for all groups of its topic, to be published when it is due.

    Attributes:
        message: As `Driver.send` gets it, with its id and the time at which its user published it.
        due: When, in UTC. The past is now.
        schedule_id: Its name among what its topic has scheduled, or None; only where `Capabilities.schedule_ids` is set.
    """

    message: Message
    due: datetime
    schedule_id: str | None = None


@runtime_checkable
class Scheduling(Protocol):
    """What a driver has whose broker keeps a message until it is due, whatever happens to the process that published it."""

    async def schedule(self, entries: Sequence[Scheduled]) -> Sequence[Exception | None]:
        """Keep these until they are due; returns when all are confirmed or refused, with results as of `Driver.send`.

        When it is due, and never before, a message takes its place in its topic, and with it in its key's order and in the
        lag of the groups that there are then (see `Capabilities.scheduled_in_lag`). Of two with one time the first to be scheduled comes first. One with the
        `schedule_id` of another that still waits in the same topic takes its place; the later of two in one call stays.
        `UnsupportedError` is the result of a time that is too far ahead for the broker.

        Raises:
            ConnectionLost: Nothing is known of any; the engine schedules all again, so one without a `schedule_id` may
                come twice.
        """


@runtime_checkable
class Cancelling(Protocol):
    """What a driver that is `Scheduling` has where `Capabilities.schedule_ids` is set."""

    async def cancel(self, topic: str, schedule_id: str) -> bool:
        """Have a scheduled message never come: True if that is sure, False if it is due already, or unknown.

        Raises ConnectionLost.
        """


@runtime_checkable
class ListingSchedules(Protocol):
    """What a driver that is `Scheduling` has where `Capabilities.schedules` is set."""

    async def upcoming(self, topic: str, limit: int) -> Sequence[Scheduled]:
        """What waits for its time in a topic, soonest first, `limit` of it at the most; nothing where there is no topic.

        Raises ConnectionLost.
        """


class Driver(Protocol):
    """One broker's connection. The engine opens it once and closes it once.

    `capabilities` may depend on the options of the URL; it does not change after `open`.
    """

    capabilities: Capabilities

    @classmethod
    def from_url(cls, url: BrokerURL) -> Self:
        """A driver, not yet connected, for a URL of its scheme.

        Options are taken by `url.options(MyOptions)`, which refuses unknown ones.

        Raises:
            ConfigError: The URL or an option is not understood.
        """

    async def open(self) -> None:
        """Connect. Raises ConnectionLost if the broker is not there yet: the engine tries again, within bounds."""

    async def close(self) -> None:
        """Disconnect and leave nothing behind: no task, thread, socket or file. Receivers are closed before."""

    async def ping(self) -> None:
        """Ask the broker whether it is well. Raises ConnectionLost, with the reason, if it is not."""

    async def declare(self, topic: str, groups: Sequence[str]) -> None:
        """Create the topic, and these groups from its earliest message, where they are missing.

        Raises:
            ConfigError: The broker cannot have a topic or group of that name.
        """

    async def remove(self, topic: str, group: str | None = None) -> None:
        """Delete the topic with its messages and groups; or this group alone, with all that it has not acknowledged.

        What is missing is fine. Whoever receives from what was deleted gets `ConnectionLost`, and subscribes anew.
        """

    async def send(self, messages: Sequence[Message]) -> Sequence[Exception | None]:
        """Publish up to `Capabilities.max_batch` messages of any topics; returns when all are confirmed or refused.

        Every message has an id and a timestamp in UTC and was checked to be what its types say. It is no larger than
        `Capabilities.max_message_bytes`; a dead letter may have `RESERVE` more, and as much as it takes where the
        message itself, some other program's, was larger. Messages of one key keep their order in the topic.

        Returns:
            One result a message: None when the broker has it for good, else why not: `MessageTooLarge`,
            `PublishError`, `UnknownTopic`, upon which the engine declares the topic and sends again, or `NobodyListens`
            (see `things_kit.engine.listeners`) where the broker says of each message that no group has it.

        Raises:
            ConnectionLost: Nothing is known of any; the engine sends all again, so a message may be there twice.
        """

    async def subscribe(self, subscription: Subscription) -> "Receiver":
        """Begin to receive; returns once messages published from now on would arrive.

        Raises:
            ConnectionLost: The broker is away; the engine tries again.
            ConfigError: The topic or group is missing and `create` is off, or its name cannot be.
        """

    async def lag(self, topic: str, group: str) -> int | None:
        """How many messages this group has not acknowledged, handed out or not; None if the broker cannot say.

        A group that does not exist (yet) lags by what it would get, were it created at the earliest.
        """


@runtime_checkable
class Listened(Protocol):
    """A driver whose broker drops what is published to a topic without groups, and says nothing; but can be asked."""

    async def has_listeners(self, topic: str) -> bool | None:
        """Whether anybody is subscribed to the topic; None if we are not allowed to ask.

        Asked before the first message to a topic, and once a minute. A topic that does not exist has none.

        Raises:
            ConnectionLost: The broker is away; the engine tries again.
        """


@runtime_checkable
class Listing(Protocol):
    """A driver whose broker can tell what there is. Both raise ConnectionLost, and ConfigError without the right to ask."""

    async def topics(self) -> Sequence[str]:
        """The names of all topics that this user may see; they may include what the driver or engine keeps for itself."""

    async def groups(self, topics: Sequence[str]) -> Mapping[str, Sequence[str]]:
        """The groups of each of these topics, by their names; a topic that is missing has none."""
