"""The adverts that hospitals have for their next session: at most one each, no two with the same key, none twice."""

from __future__ import annotations

from collections.abc import Iterable

from flwr.app import Message

from fedslm.errors import AdvertError, LedgerError, ProtocolError
from fedslm.flower.records import protocol_code
from fedslm.secagg.messages import Advert
from server.charter import Charter
from server.heads import Heads


class Adverts:
    """What a coordinator can begin a session with.

    Guarantees:
      No two of them carry the same key, which would end every session before it began.
      An advert is taken once: a serial is above all that this process has seen of the member, so that a recorded answer
      puts nobody in a hospital's place.
    """

    def __init__(self, charter: Charter, heads: Heads) -> None:
        """Starts without any.

        Args:
          charter: what they must be for.
          heads: told of the heads that they come with.
        """
        self._charter = charter
        self._heads = heads
        self._kept: dict[str, Advert] = {}
        self._highest: dict[str, int] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._kept

    def __getitem__(self, name: str) -> Advert:
        return self._kept[name]

    def check(self, node_id: int, name: str, reply: Message) -> str:
        """Takes what a hospital joins with, and returns nothing, or the code it is refused with."""
        try:
            advert, proofs = self._charter.read_join(name, reply)
            self.keep(advert)
            self._heads.learn(proofs)
            self._heads.answered(node_id, name)
        except LedgerError as error:
            self.drop([name])
            return protocol_code(error).name
        except ProtocolError as error:
            return protocol_code(error).name
        return ""

    def keep(self, advert: Advert) -> None:
        """Takes a verified advert, in the place of its member's last.

        Raises:
          AdvertError: its serial was seen before or is below one that was, or another hospital's advert has its key.
          LedgerError: it comes without the head of a ledger.
        """
        member, seen = advert.member, self._highest.get(advert.member, -1)
        if advert.serial <= seen:
            raise AdvertError(f"{member} sent its advert {advert.serial} after {seen}; only a newer one is taken.")
        self._highest[member] = advert.serial
        for other in self._kept.values():
            if other.member != member and other.sealing_key == advert.sealing_key:
                raise AdvertError(f"{member} sent an advert with the key of {other.member}; it must make its own.")
        self._heads.note(advert)
        self._kept[member] = advert

    def doubted(self) -> tuple[str, ...]:
        """Whose adverts have heads behind, or beside, what their hospitals signed before."""
        return tuple(name for name, advert in self._kept.items() if self._heads.is_doubted(advert))

    def drop(self, names: Iterable[str]) -> None:
        """Forgets the adverts of these hospitals: they were used, or are no use."""
        for name in names:
            self._kept.pop(name, None)
