"""Plots of `docs/results.md`, drawn from its figures alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def draw_secagg(sessions: Sequence[Mapping[str, Any]], out: Path) -> None:
    """CPU seconds and bytes of a session by the number of hospitals, both on logarithmic axes, as an SVG."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "fedslm"  # the same figures give the same file
    from matplotlib import pyplot

    clients = [session["clients"] for session in sessions]
    figure, (seconds, sizes) = pyplot.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for key, label, style in (("client_s", "a hospital", "o-"), ("server_s", "the coordinator", "s--")):
        seconds.plot(clients, [session[key] for session in sessions], style, label=label)
    for key, label, style in (("bytes_per_client", "sent", "o-"), ("bytes_to_client", "received", "s--")):
        sizes.plot(clients, [session[key] / 1e6 for session in sessions], style, label=f"{label} by a hospital")
    for axes, unit in ((seconds, "CPU seconds"), (sizes, "MB")):
        axes.set(xscale="log", yscale="log", xlabel="hospitals", ylabel=f"{unit} a session, 1 M parameters")
        axes.set_xticks(clients, [str(count) for count in clients])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.savefig(out, metadata={"Date": None})
    pyplot.close(figure)
