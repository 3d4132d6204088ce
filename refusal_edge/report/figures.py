"""The pictures, readable in black and white: lines differ by dashes, areas by hatching, points by markers."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from refusal_edge.calibrate import metrics, odds
from refusal_edge.calibrate.certificate import passes
from refusal_edge.calibrate.tradeoffs import sweep
from refusal_edge.report.facts import ranked_rows

if TYPE_CHECKING:
    from refusal_edge.report.facts import Facts

DPI: Final = 144
MAX_COLUMNS: Final = 3
NOTE_INCHES: Final = 0.4
BLACK, DARK, LIGHT = "black", "0.35", "0.75"
_STYLE: Final = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": DARK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.facecolor": "white",
}
_TICKS: Final = (1e-6, 1e-4, 1e-2, 0.5, 0.99, 0.9999, 0.999999)


def draw_all(facts: Facts) -> dict[str, Figure]:
    """Name -> figure, in the order of the page."""
    drawings: dict[str, Callable[[Facts], Figure]] = {
        "sweep": draw_sweep,
        "roc": draw_roc,
        "histograms": draw_histograms,
        "reliability": draw_reliability,
        "confusion": draw_confusion,
    }
    with mpl.rc_context(_STYLE):
        return {name: draw(facts) for name, draw in drawings.items()}


def draw_roc(facts: Facts) -> Figure:
    """One panel a category; the cross is the policy's own threshold with its Clopper-Pearson intervals."""
    figure, panels = _panels(facts, height=2.75)
    for c, (axes, category) in enumerate(zip(panels, facts.categories)):
        rows, own = ranked_rows(facts.table, c)
        refuse = facts.table.refuse[rows]
        axes.plot([0, 1], [0, 1], color=LIGHT, linewidth=0.8)
        if refuse.any() and not refuse.all():
            _, tp, fp = sweep(facts.log_odds[rows, c], refuse)
            line = "-" if own else (0, (4, 2))
            axes.step(fp / (~refuse).sum(), tp / refuse.sum(), where="post", color=BLACK, linewidth=1.4, linestyle=line)
            passed = passes(facts.table, facts.policy, facts.replay, [category.name])[rows]
            _cross(axes, metrics.rate(passed[~refuse]), metrics.rate(passed[refuse]))
        n_benign = int((~refuse).sum())
        source = f"{n_benign} benign rows" if own else "no benign rows"
        if n_benign and not own and refuse.any():
            source += f" of its own:\ndrawn against all {n_benign}"
        area = (
            ""
            if np.isnan(category.auroc)
            else f"AUROC {category.auroc:.3f}\n[{category.auroc_low:.3f}, {category.auroc_high:.3f}]"
        )
        axes.text(
            0.98,
            0.04,
            f"{area}\n{int(refuse.sum())} to refuse\n{source}",
            ha="right",
            fontsize=7.5,
            transform=axes.transAxes,
        )
        axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="false refusals", ylabel="refusals caught")
        axes.set_title(_title(category.name))
        axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        axes.set_box_aspect(1)
    _label_outer(panels)
    _note_unnamed(figure, facts)
    return figure


def draw_sweep(facts: Facts) -> Figure:
    """Rates and F1 as one threshold for all categories, or a shift of them all, goes from all refused to none."""
    base = _base(facts)
    cuts, tp, fp = sweep((facts.log_odds - base)[:, _active(facts)].max(axis=1), facts.table.refuse)
    n_refuse, n = int(facts.table.refuse.sum()), len(facts.table)
    figure = Figure(figsize=(7.2, 3.4), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    lines = (
        ("refused, of all rows", tp + fp, n, DARK, "-", 1.0),
        ("caught, of rows to refuse", tp, n_refuse, DARK, "-.", 1.2),
        ("false refusals, of benign rows", fp, n - n_refuse, BLACK, (0, (4, 2)), 1.4),
        ("F1", 2 * tp, tp + fp + n_refuse, BLACK, "-", 2.0),
    )
    for label, part, whole, color, style, width in lines:
        if not np.any(whole):  # no such rows: no rate, and no line at 0
            axes.plot([], [], " ", label=f"{label}: no such rows")
            continue
        values = part / np.maximum(whole, 1)
        axes.step(cuts, values, where="pre", label=label, color=color, linestyle=style, linewidth=width)
    axes.axhline(
        facts.always_refuse_f1,
        color=BLACK,
        linestyle=":",
        label=f"F1 of always refusing ({facts.always_refuse_f1:.3f})",
    )
    chosen = _common_threshold(facts)
    if base.any():
        axes.axvline(0, color=BLACK, linewidth=0.8)
        axes.set_xlabel("all thresholds moved by (log-odds); 0 is the policy")
    else:
        if chosen is not None:
            axes.axvline(chosen, color=BLACK, linewidth=0.8)
            axes.annotate(
                "policy", (chosen, 1.0), xytext=(3, 2), textcoords="offset points", fontsize=8, annotation_clip=False
            )
        axes.set_xlabel("one threshold for every category (log-odds scale)")
        _probability_ticks(axes, cuts)
    axes.set(ylim=(-0.02, 1.02), ylabel="share, F1")
    axes.grid(axis="y", color="0.9", linewidth=0.6)
    figure.legend(loc="outside right center")
    return figure


def draw_histograms(facts: Facts) -> Figure:
    """Log-odds of each category on the rows of its ROC, with the threshold in force."""
    figure, panels = _panels(facts, height=2.5)
    edges = np.histogram_bin_edges(np.clip(facts.log_odds[np.isfinite(facts.log_odds)], -25, 25), bins=24)
    for c, (axes, category) in enumerate(zip(panels, facts.categories)):
        ranked, own_benign = ranked_rows(facts.table, c)
        values = np.clip(facts.log_odds[:, c], edges[0], edges[-1])
        benign, refuse = ranked & ~facts.table.refuse, ranked & facts.table.refuse
        for rows, label, look in (
            (benign, "benign", {"facecolor": LIGHT, "edgecolor": LIGHT, "histtype": "stepfilled"}),
            (refuse, "to refuse", {"facecolor": "none", "edgecolor": BLACK, "hatch": "/////", "histtype": "step"}),
        ):
            weights = np.full(int(rows.sum()), 1 / max(int(rows.sum()), 1))
            axes.hist(values[rows], bins=edges, weights=weights, label=label, linewidth=1.2, **look)
        if isinstance(category.threshold, float):
            axes.axvline(
                float(np.clip(odds.logit(category.threshold), edges[0], edges[-1])), color=BLACK, linestyle="--"
            )
        shown = category.threshold if isinstance(category.threshold, str) else f"{category.threshold:.4g}"
        axes.set(xlabel="log-odds", ylabel="share of these rows", xlim=(edges[0], edges[-1]))
        others = "other " * (not own_benign and bool(benign.any()))
        counts = f"{int(refuse.sum())} to refuse, {int(benign.sum())} {others}benign"
        axes.set_title(f"{_title(category.name)}\nthreshold {shown}\n{counts}")
        axes.yaxis.set_major_formatter(mpl.ticker.PercentFormatter(1, decimals=0))
    _label_outer(panels)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    _note_unnamed(figure, facts)
    return figure


def draw_reliability(facts: Facts) -> Figure:
    """Equal-mass bins of the probability of refusing against the share of rows that should be refused."""
    mean, share, sizes = metrics.reliability(facts.p_refuse, facts.table.refuse)
    figure = Figure(figsize=(4.2, 3.8), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=LIGHT, linewidth=0.8, label="perfect")
    intervals = [metrics.rate(np.arange(n) < round(s * n)) for s, n in zip(share, sizes)]
    errors = np.abs(np.array([[r.low, r.high] for r in intervals]).T - share)
    axes.errorbar(
        mean, share, yerr=errors, color=BLACK, fmt="o-", markersize=4, linewidth=1, capsize=2, label="these rows"
    )
    axes.set(
        xlim=(-0.02, 1.02),
        ylim=(-0.02, 1.02),
        xlabel="probability of a refusal token (among control tokens)",
        ylabel="share that should be refused",
        title=f"{len(sizes)} equal-mass bins, ECE {metrics.ece(facts.p_refuse, facts.table.refuse):.3f}",
    )
    axes.set_box_aspect(1)
    axes.legend(loc="lower right")
    return figure


def draw_confusion(facts: Facts) -> Figure:
    """Label against decision, counts."""
    slugs = [c.name for c in facts.categories]
    respond, other = len(slugs), len(slugs) + 1
    wanted = np.where(facts.table.refuse, facts.table.category, respond)
    wanted = np.where(wanted == -1, other, wanted)
    decided = np.where(facts.replay.no_decision, other, facts.replay.category)
    decided = np.where(decided == -1, respond, decided)
    labels = [*slugs, "respond", *["refuse, no category"] * bool(facts.unnamed)]
    columns = [*slugs, "respond", *["no decision"] * bool(facts.replay.no_decision.any())]
    counts = np.zeros((len(labels), len(columns)), int)
    np.add.at(counts, (wanted, decided), 1)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(1.6 + 0.72 * len(columns), 1.3 + 0.45 * len(labels)), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Greys", vmin=0, vmax=1, aspect="auto")
    for (i, j), count in np.ndenumerate(counts):
        if count:
            axes.text(j, i, str(count), ha="center", va="center", color="white" if shares[i, j] > 0.5 else BLACK)
    axes.set_xticks(range(len(columns)), map(_title, columns), rotation=35, ha="right")
    axes.set_yticks(range(len(labels)), [f"{_title(label)} ({n})" for label, n in zip(labels, counts.sum(axis=1))])
    axes.set(xlabel="decided", ylabel="should be")
    axes.spines[:].set_visible(False)
    return figure


def _panels(facts: Facts, height: float) -> tuple[Figure, list[Any]]:
    """One a category, on common axes."""
    n = len(facts.categories)
    columns = min(n, MAX_COLUMNS)
    rows = -(-n // columns)
    height += 0.16 * max(_title(c.name).count("\n") for c in facts.categories)
    figure = Figure(figsize=(max(2.4 * columns, 3.0), height * rows), dpi=DPI, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    for spare in grid[n:]:
        spare.remove()
    return figure, list(grid[:n])


def _label_outer(panels: list[Any]) -> None:
    for i, axes in enumerate(panels):
        axes.tick_params(labelbottom=True)  # the row below may not reach this far
        if i % MAX_COLUMNS:
            axes.set_ylabel("")


def _title(name: str) -> str:
    """A slug in lines of at most 20 characters, broken at its underscores where it has any."""
    return textwrap.fill(name.replace("_", "_ "), 20).replace("_ ", "_")


def _note_unnamed(figure: Figure, facts: Facts) -> None:
    if facts.unnamed:
        figure.set_figheight(figure.get_figheight() + NOTE_INCHES)
        figure.suptitle(f"not shown: {facts.unnamed} rows to refuse that name no category", fontsize=7.5, color=DARK)


def _cross(axes: Any, x: metrics.Rate, y: metrics.Rate) -> None:
    axes.errorbar(
        x.value,
        y.value,
        xerr=[[x.value - x.low], [x.high - x.value]],
        yerr=[[y.value - y.low], [y.high - y.value]],
        fmt="o",
        color=BLACK,
        markerfacecolor="white",
        markersize=5,
        linewidth=0.9,
        capsize=2,
        zorder=3,
        clip_on=False,
    )


def _active(facts: Facts) -> npt.NDArray[np.bool_]:
    return np.array([c.threshold != "off" for c in facts.categories]) | all(
        c.threshold == "off" for c in facts.categories
    )


def _base(facts: Facts) -> npt.NDArray[np.float64]:
    """Log-odds of the thresholds where they are numbers that differ, else zeros: then one threshold is swept."""
    values = [c.threshold for c in facts.categories if c.threshold != "off"]
    if not all(isinstance(v, float) for v in values) or len(set(values)) < 2:
        return np.zeros(len(facts.categories))
    thresholds = [v if isinstance(v := c.threshold, float) else 0.5 for c in facts.categories]
    return np.clip(odds.logit(thresholds), -40.0, 40.0)


def _common_threshold(facts: Facts) -> float | None:
    values = {c.threshold for c in facts.categories if c.threshold != "off"}
    value = values.pop() if len(values) == 1 else None
    return float(odds.logit(value)) if isinstance(value, float) and 0 < value < 1 else None


def _probability_ticks(axes: Any, cuts: npt.NDArray[np.float64]) -> None:
    ticks = [p for p in _TICKS if cuts.min() <= odds.logit(p) <= cuts.max()]
    axes.set_xticks([float(odds.logit(p)) for p in ticks], [f"{p:g}" for p in ticks])
