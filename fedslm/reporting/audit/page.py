"""The report as one page: self-contained, without a script, and with nothing to fetch from anywhere.

The templates escape whatever they are given; nothing that a ledger or a plan says can become a part of the page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from fedslm.reporting.audit.charts import Bar, plans_chart, spending_chart
from fedslm.reporting.audit.words import (
    count_words,
    day_words,
    delta_words,
    epsilon_words,
    hash_words,
    left_words,
    one_in_words,
    share_words,
    time_words,
)

TEMPLATES = Path(__file__).resolve().parent / "templates"

FILTERS = {
    "epsilon": epsilon_words,
    "left": left_words,
    "share": share_words,
    "delta": delta_words,
    "one_in": one_in_words,
    "day": day_words,
    "time": time_words,
    "short": hash_words,
    "counted": count_words,
}


def render_page(facts: Mapping[str, Any]) -> str:
    """Writes the page.

    Args:
      facts: see `report_facts`.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(FILTERS)
    style = Markup((TEMPLATES / "report.css").read_text())  # ours, and not escaped within <style>
    charts = [_charts(ledger, number) for number, ledger in enumerate(facts["ledgers"])]
    return environment.get_template("report.html.j2").render(facts=facts, charts=charts, style=style)


def _charts(ledger: Mapping[str, Any], number: int) -> dict[str, Markup]:
    if not (ledger["plans"] or ledger["forfeits"]):
        return {}
    budget, name = ledger["budget_epsilon"], ledger["hospital"]
    plans = f"{name}: epsilon that each plan takes out of the budget; the table below has the figures"
    spending = f"{name}: epsilon charged and spent over time, and the budget"
    return {
        "plans": plans_chart(_bars(ledger), budget=budget, title=plans, salt=f"plans-{number}"),
        "spending": spending_chart(
            ledger["timeline"], until=ledger["last"], budget=budget, title=spending, salt=f"spending-{number}"
        ),
    }


def _bars(ledger: Mapping[str, Any]) -> Sequence[Bar]:
    """One bar for each plan and each loss, in the order in which they were written down."""
    bars = [(plan["reserved_at"], _bar(hash_words(plan["plan"])[:8], plan)) for plan in ledger["plans"]]
    for lost in ledger["forfeits"]:
        bars.append((lost["time"], _bar("lost rows", lost | {"spent_epsilon": lost["epsilon"], "aside_epsilon": 0.0})))
    return [bar for _, bar in sorted(bars, key=lambda pair: pair[0])]


def _bar(label: str, entry: Mapping[str, Any]) -> Bar:
    if entry["epsilon"] is None:
        return Bar(label=label, spent=0.0, aside=0.0, is_bounded=False)
    return Bar(label=label, spent=entry["spent_epsilon"], aside=entry["aside_epsilon"])
