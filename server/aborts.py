"""Signed promises to never unmask a session that failed, which a round without privacy needs before it is tried again.

Without noise two sums over different hospitals, from the same adapter, differ by somebody's update. So a hospital that
masked for an adapter takes part in another session on it only if enough others gave the earlier ones up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from flwr.app import ConfigRecord, Message, RecordDict

from fedslm.errors import ProtocolError
from fedslm.flower.records import ABORT, CONFIG, SECAGG, put_secagg, secagg_bytes
from fedslm.secagg.messages import AbortReply, AbortRequest
from fedslm.secagg.wire import decode, encode
from server.exchange import Exchange


class Aborts:
    """The promises for the sessions of one round. Hospitals check the signatures; here nobody has to."""

    def __init__(self, exchange: Exchange, *, config: ConfigRecord) -> None:
        """Starts without any.

        Args:
          config: the config record of the requests.
        """
        self._exchange = exchange
        self._config = config
        self._signatures: dict[tuple[int, str], bytes] = {}

    def collect(self, sessions: Iterable[int], node_of: Mapping[str, int], *, timeout_s: float) -> None:
        """Asks every hospital to give up every one of these sessions, unless it has.

        One that had no part in a session, or has unmasked it, answers with an error, which is no news to anybody.
        """
        for session in sessions:
            names = {node: name for name, node in node_of.items() if (session, name) not in self._signatures}
            request = put_secagg(encode(AbortRequest(session=session)))
            content = RecordDict({CONFIG: self._config, SECAGG: request})
            messages = [Message(content, node, ABORT) for node in names]
            for answer in self._exchange.run(messages, timeout_s=timeout_s):
                if answer.reply is not None:
                    self._keep(session, names[answer.node_id], answer.reply)

    def listed(self) -> tuple[tuple[int, str, bytes], ...]:
        """All of them: session, hospital, signature."""
        return tuple((session, name, signature) for (session, name), signature in sorted(self._signatures.items()))

    def forget(self) -> None:
        """The round is over; the next one starts from another adapter."""
        self._signatures.clear()

    def _keep(self, session: int, name: str, reply: Message) -> None:
        try:
            abort = decode(AbortReply, secagg_bytes(reply))
        except ProtocolError:
            return
        if (abort.session, abort.member) == (session, name):
            self._signatures[session, name] = abort.signature
