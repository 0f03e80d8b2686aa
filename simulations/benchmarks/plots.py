"""Plots of `docs/results.md`, drawn from its figures alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def draw_secagg(sessions: Sequence[Mapping[str, Any]], out: Path) -> None:
    """CPU seconds and bytes of a session by the number of hospitals, both on logarithmic axes, as an SVG."""
    pyplot = _pyplot()
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


MODELS = {"pooled": ("pooled", "^:"), "federated": ("federated", "o-"), "single_best": ("best hospital alone", "s--")}


def draw_utility(found: Mapping[str, Mapping[str, Mapping[str, Any]]], out: Path) -> None:
    """Accuracy by epsilon, one panel a consortium: the mean over the seeds as a line, each seed as a dot, as an SVG.

    Args:
      found: consortium -> epsilon -> seed -> summary.
    """
    pyplot = _pyplot()
    figure, panels = pyplot.subplots(
        1, len(found), figsize=(4.5 * len(found), 3.6), layout="constrained", squeeze=False
    )
    for axes, (data, by_epsilon) in zip(panels[0], found.items(), strict=True):
        epsilons = [epsilon for epsilon in ("1", "3", "8", "none") if epsilon in by_epsilon]
        for key, (label, style) in MODELS.items():
            runs = [[100 * run["comparison"][key] for run in by_epsilon[epsilon].values()] for epsilon in epsilons]
            (line,) = axes.plot(epsilons, [sum(one) / len(one) for one in runs], style, label=label)
            for epsilon, one in zip(epsilons, runs, strict=True):
                axes.plot([epsilon] * len(one), one, ".", color=line.get_color(), alpha=0.4)
        majority = [run["comparison"]["majority"] for runs in by_epsilon.values() for run in runs.values()]
        axes.axhline(100 * sum(majority) / len(majority), color="grey", linewidth=1, label="commonest answer")
        axes.set(title=data, xlabel="epsilon", ylabel="accuracy on the pooled test set (%)")
        axes.grid(alpha=0.3)
    panels[0][0].legend(frameon=False)
    figure.savefig(out, metadata={"Date": None})
    pyplot.close(figure)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "fedslm"  # the same figures give the same file
    from matplotlib import pyplot

    return pyplot
