"""One session of secure aggregation over Flower messages: train and share, mask, confirm, unmask.

The protocol is in `fedslm.secagg`; here its messages find their way to the nodes and back, late and broken ones become
dropouts, and what happened becomes events. Of a vector nothing is ever logged but its size and its time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from flwr.app import Message, RecordDict

from fedslm.errors import LedgerError, ProtocolError
from fedslm.flower.records import (
    CONFIG,
    CONFIRM,
    MASK,
    SECAGG,
    TRAIN,
    UNMASK,
    ErrorCode,
    content_bytes,
    error_name,
    protocol_code,
    put_secagg,
    take_secagg,
)
from fedslm.reporting.events import Announcer
from fedslm.secagg.coordinator import Coordinator
from fedslm.secagg.encoding import Ring
from fedslm.secagg.messages import Advert, SharesReply
from fedslm.secagg.terms import Terms
from fedslm.secagg.wire import decode
from server.charter import Charter
from server.exchange import Answer, Exchange
from server.membership import MISSING
from server.receipts import ReceiptFile, check_receipt

FALSE_SHARES = "FALSE_SHARES"

Accept = Callable[[int, bytes], None]
Requests = Iterable[tuple[int, RecordDict]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """How long a session waits, in seconds: for the training, and for each step after it."""

    train_s: float
    step_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """One exchange of a session.

    Attributes:
      name: as it stands in events.
      announces: the kind of event for a good answer; none where it is "".
      is_large: the replies are vectors.
    """

    name: str
    message_type: str
    announces: str = ""
    is_large: bool = False


_TRAIN = _Step(name="train", message_type=TRAIN, announces="hospital_trained")
_MASK = _Step(name="mask", message_type=MASK, announces="hospital_masked", is_large=True)
_CONFIRM = _Step(name="confirm", message_type=CONFIRM)
_UNMASK = _Step(name="unmask", message_type=UNMASK)


class SecureSession:
    """Runs one session.

    Attributes:
      missing: hospital -> why and in which step it dropped out, "CODE in STEP".
      next_adverts: hospital -> its advert for the session after this one, verified.
    """

    def __init__(
        self,
        exchange: Exchange,
        coordinator: Coordinator,
        *,
        terms: Terms,
        node_of: Mapping[str, int],
        charter: Charter,
        deadlines: Deadlines,
        receipts: ReceiptFile,
        announcer: Announcer,
    ) -> None:
        """Couples what a session needs; nothing is sent before `gather`.

        Args:
          node_of: the node of every hospital in `terms`.
          receipts: where a hospital's receipt is kept before its shares are passed on.
        """
        self.missing: dict[str, str] = {}
        self.next_adverts: dict[str, Advert] = {}
        self._exchange = exchange
        self._coordinator = coordinator
        self._terms = terms
        self._nodes = {point: node_of[name] for point, name in enumerate(terms.names, start=1)}
        self._points = {node: point for point, node in self._nodes.items()}
        self._charter = charter
        self._config = charter.config()
        self._deadlines = deadlines
        self._receipts = receipts
        self._announcer = announcer
        self._sizes: dict[int, int] = {}

    def gather(self, training: RecordDict) -> None:
        """Goes through the first three steps: shares, masked vectors, and the survivors' agreement on who they are.

        Args:
          training: content of the training message, the same for everybody.
        Raises:
          ThresholdError: too few got through a step. RunError: a receipt cannot be written.
        """
        coordinator, bounds = self._coordinator, self._terms.bounds
        self._exchange_step(_TRAIN, ((point, training) for point in self._nodes), self._take_shares)
        requests = coordinator.mask_requests()
        self._exchange_step(
            _MASK, self._contents(requests), coordinator.masked, lambda: len(coordinator.survivors) >= bounds.quorum
        )
        request = coordinator.confirm_request()
        self._exchange_step(
            _CONFIRM,
            self._contents((point, request) for point in coordinator.survivors),
            coordinator.confirmed,
            lambda: len(coordinator.confirmers) >= bounds.threshold,
        )

    def reveal(self) -> Ring:
        """Takes the last step, after which the hospitals have nothing left to remove these masks with.

        Returns:
          The sum of the survivors' levels, uint32, shape [d].
        Raises:
          ThresholdError: too few revealed their shares. ShareError: no set of shares fits. No sum was read then.
        """
        coordinator = self._coordinator
        request = coordinator.unmask_request()
        self._exchange_step(
            _UNMASK,
            self._contents((point, request) for point in coordinator.confirmers),
            coordinator.revealed,
            lambda: coordinator.can_finish,
        )
        return coordinator.finish()

    def report_liars(self) -> None:
        """Tells of hospitals that revealed false shares, which others' shares brought to light."""
        for name in self._coordinator.liars():
            self._drop(name, FALSE_SHARES, _UNMASK)

    def _contents(self, requests: Iterable[tuple[int, bytes]]) -> Requests:
        for point, data in requests:
            yield point, RecordDict({CONFIG: self._config, SECAGG: put_secagg(data)})

    def _exchange_step(
        self, step: _Step, requests: Requests, accept: Accept, is_enough: Callable[[], bool] = lambda: False
    ) -> None:
        answers = self._exchange.run(
            self._messages(step, requests),
            timeout_s=self._deadlines.train_s if step is _TRAIN else self._deadlines.step_s,
            is_large=step.is_large,
            is_enough=is_enough,
        )
        for answer in answers:
            self._take(step, answer, accept)
            del answer  # a masked vector goes before the next one is fetched

    def _messages(self, step: _Step, requests: Requests) -> Iterator[Message]:
        for point, content in requests:
            self._sizes[point] = content_bytes(content)
            yield Message(content, self._nodes[point], step.message_type)

    def _take(self, step: _Step, answer: Answer, accept: Accept) -> None:
        """Hands a reply to the coordinator, or notes why its hospital drops out."""
        point = self._points[answer.node_id]
        name = self._terms.names[point - 1]
        if answer.reply is None or answer.reply.has_error():
            self._drop(name, MISSING if answer.reply is None else error_name(answer.reply), step)
            return
        if not answer.reply.has_content():
            self._drop(name, ErrorCode.MALFORMED.name, step)
            return
        bytes_up = content_bytes(answer.reply.content)
        try:
            accept(point, take_secagg(answer.reply))
        except (ProtocolError, LedgerError) as error:
            self._drop(name, protocol_code(error).name, step)
            return
        if step.announces:
            sizes = {"bytes_up": bytes_up, "bytes_down": self._sizes[point]}
            fields = {"round": self._terms.round, "hospital": name, "seconds": answer.seconds}
            self._announcer.emit(step.announces, **fields, **sizes)

    def _take_shares(self, point: int, data: bytes) -> None:
        """Takes a hospital into U2 that has booked the session. It has, whatever becomes of the rest of its answer."""
        advert = self._terms.adverts[point - 1]
        receipt = check_receipt(
            decode(SharesReply, data).receipt,
            advert=advert,
            run=self._charter.plan.sha256,
            session=self._terms.session,
            key=self._charter.keys[advert.member],
        )
        self._receipts.add(receipt)
        self.next_adverts[advert.member] = self._coordinator.shares(point, data)

    def _drop(self, name: str, code: str, step: _Step) -> None:
        self.missing[name] = f"{code} in {step.name}"
        self._announcer.emit("hospital_dropped", round=self._terms.round, hospital=name, code=code, step=step.name)
