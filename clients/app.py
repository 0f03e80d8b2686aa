"""The ClientApp that every hospital runs, in every runtime. Torch is imported only when there is something to train."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from clients.guard import Handler, approve, close_egress, mask, redact
from clients.promise import verify_epsilon
from clients.session import Part, take_part
from clients.site import find_site, is_simulated, read_site
from fedslm.errors import ConfigError
from fedslm.flower.records import (
    ABORT,
    CONFIRM,
    MASK,
    TRAIN,
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
    app = ClientApp(mods=[redact, close_egress, refuse_known_noise, approve, recompute_epsilon, mask])

    @functools.cache
    def bench() -> Workbench:
        from clients.train import Workbench

        return workbench or Workbench()

    @app.query("join")
    def join(message: Message, context: Context) -> Message:
        """Says who this is and which plan it approved; under a masked plan with a key for one session."""
        site, plan = read_site(find_site(dict(context.node_config))), read_plan(message)
        advert = b""
        if plan.masked:
            with take_part(message, context) as part:
                advert = part.advert()
        return join_reply(message, hospital=site.hospital, plan=plan, advert=advert)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        """Trains one round and answers with the update, which the mod `mask` keeps inside under a masked plan."""
        settle()
        from clients.train import train_round

        site = read_site(find_site(dict(context.node_config)))
        return update_reply(message, train_round(read_train_request(message), site, bench()))

    for message_type, answer in EXCHANGES.items():
        app.query(message_type.removeprefix("query."))(_exchange(answer))
    return app


def refuse_known_noise(message: Message, context: Context, call_next: Handler) -> Message:
    """Mod: a site file that was copied from a simulation would draw noise that anybody can compute.

    Raises:
      ConfigError: the site has a `simulation_seed` and this node is in no simulation.
    """
    config = dict(context.node_config)
    site = read_site(find_site(config))
    if site.simulation_seed is not None and not is_simulated(config):
        raise ConfigError(
            f"site.yaml of {site.hospital} has simulation_seed={site.simulation_seed}, so its noise would hide nothing; "
            "remove the line."
        )
    return call_next(message, context)


def recompute_epsilon(message: Message, context: Context, call_next: Handler) -> Message:
    """Mod: nobody trains on the coordinator's word for what it costs.

    Raises:
      PrivacyError: see `verify_epsilon`.
    """
    if message.metadata.message_type.startswith(TRAIN):
        site = read_site(find_site(dict(context.node_config)))
        verify_epsilon(read_plan(message), site.hospital)
    return call_next(message, context)


def _exchange(answer: Callable[[Part, bytes], bytes]) -> Handler:
    def handle(message: Message, context: Context) -> Message:
        with take_part(message, context) as part:
            return secagg_reply(message, answer(part, secagg_bytes(message)))

    return handle


app = build_client_app()
