"""The ClientApp that every hospital runs, in every runtime. Torch is imported only when there is something to train."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clients.guard import approve, close_egress, redact
from clients.site import find_site, read_site
from fedslm.flower.records import join_reply, read_plan, read_train_request, update_reply
from fedslm.process import settle

if TYPE_CHECKING:
    from clients.train import Workbench


def build_client_app(workbench: Workbench | None = None) -> ClientApp:
    """Makes the app: two messages, `query.join` and `train`, behind the guard's mods.

    Args:
      workbench: what the process keeps between messages; by default made at the first training message. A simulation
        hands in one, so that all its hospitals share one frozen base model.
    """
    app = ClientApp(mods=[redact, close_egress, approve])

    @functools.cache
    def bench() -> Workbench:
        from clients.train import Workbench

        return workbench or Workbench()

    @app.query("join")
    def join(message: Message, context: Context) -> Message:
        """Says who this is and which plan it approved."""
        site = read_site(find_site(dict(context.node_config)))
        return join_reply(message, hospital=site.hospital, plan=read_plan(message))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        """Trains one round and answers with the update."""
        settle()
        from clients.train import train_round

        site = read_site(find_site(dict(context.node_config)))
        return update_reply(message, train_round(read_train_request(message), site, bench()))

    return app


app = build_client_app()
