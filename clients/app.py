"""The ClientApp that every hospital runs, in every runtime. Torch is imported only when there is something to train."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clients.guard import Handler, approve, close_egress, mask, redact, spend
from clients.patients import enrol
from clients.session import Part, take_part
from clients.site import own_site
from fedslm.flower.records import (
    ABORT,
    CONFIRM,
    MASK,
    UNMASK,
    join_reply,
    read_plan,
    read_train_request,
    secagg_bytes,
    secagg_reply,
    update_reply,
)
from fedslm.process import settle

if TYPE_CHECKING:
    from clients.train import Workbench

# The exchanges after the training, which need no model: what a hospital does with the bytes of each.
EXCHANGES: dict[str, Callable[[Part, bytes], bytes]] = {
    MASK: Part.mask,
    CONFIRM: Part.confirm,
    UNMASK: Part.unmask,
    ABORT: Part.abort,
}


def build_client_app(workbench: Workbench | None = None) -> ClientApp:
    """Makes the app behind the guard's mods: `query.join`, `train`, and the exchanges of secure aggregation.

    Args:
      workbench: what the process keeps between messages; by default made at the first training message. A simulation
        hands in one, so that all its hospitals share one frozen base model.
    """
    app = ClientApp(mods=[redact, close_egress, approve, spend, mask])

    @functools.cache
    def bench() -> Workbench:
        from clients.train import Workbench

        return workbench or Workbench()

    @app.query("join")
    def join(message: Message, context: Context) -> Message:
        """Says who this is and which plan it approved; under a masked plan with a key for one session."""
        site, plan = own_site(dict(context.node_config)), read_plan(message)
        answer = b""
        if plan.masked:
            with take_part(message, context) as part:
                answer = part.join(secagg_bytes(message))
        return join_reply(message, hospital=site.hospital, plan=plan, advert=answer)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        """Scores and trains one round; what comes of it the mod `mask` keeps inside under a masked plan."""
        settle()
        from clients.scores import score_round
        from clients.train import train_round

        site, scored = own_site(dict(context.node_config)), read_plan(message).privacy.scores is not None
        enrol(site, bench().records(site), scored=scored)
        request = read_train_request(message)
        scores = score_round(request, site, bench()) if scored else None
        return update_reply(message, train_round(request, site, bench()), scores=scores)

    for message_type, answer in EXCHANGES.items():
        app.query(message_type.removeprefix("query."))(_exchange(answer))
    return app


def _exchange(answer: Callable[[Part, bytes], bytes]) -> Handler:
    def handle(message: Message, context: Context) -> Message:
        with take_part(message, context) as part:
            return secagg_reply(message, answer(part, secagg_bytes(message)))

    return handle


app = build_client_app()
