"""The page of `gdr explain`: scored rows to HTML. Knows how to show tokens; nothing of models or files.

Colour is never alone: an underline says the sign by its style and the size by its thickness. Every value on the page is
in a table too, from which the page's script takes what it shows beside a token.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from gdr_plugin.api.types import Score
from gdr_plugin.arithmetic.reduction import UNITS
from gdr_plugin.evaluation.measures.item_rules import Comparison, Rule, Values, compare
from gdr_plugin.explain.cells import Cell, sample_cells, written
from gdr_plugin.explain.curve import Curve, curve, frame
from gdr_plugin.explain.shown import Explained, Origin
from gdr_plugin.report.page import Raw, page, render, table

__all__ = ["explain_page", "visible"]

PACKAGE: Final = "gdr_plugin.explain"
"""Where the page's templates are."""
_STEPS: Final = (0.1, 0.25, 0.5, 0.75, 1.0)
"""Where the five shades begin, as shares of the scale's top."""
_TOPS: Final = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)
_MARKS: Final = {"\n": "↵", "\r": "␍", "\t": "⇥", "\u00a0": "⍽", "\u2028": "↵", "\u2029": "¶"}
_JOINERS: Final = "\u200c\u200d"  # they belong to the spelling of Persian and Hindi words and of emoji


@dataclass(frozen=True, slots=True)
class Panel:
    """One response under one guidance, ready to be shown."""

    key: str
    label: str
    view: str
    """`guided`, `unguided`, or `always` where guidance changes nothing."""
    score: Score
    response: str
    cells: list[Cell]

    @property
    def name(self) -> str:
        """What the panel is called: "Chosen, guided"."""
        how = "no guidance" if self.view == "always" else self.view
        return f"{self.label[:1].upper()}{self.label[1:]}, {how}"


def explain_page(rows: Sequence[Explained], origin: Origin) -> str:
    """Draw the page.

    Args:
        rows: What to show, with scores that carry tokens.
        origin: Where it comes from.

    Returns:
        A self-contained HTML document.
    """
    panels = [_panels(row, number) for number, row in enumerate(rows, start=1)]
    top = _top([cell.ratio for of_row in panels for panel in of_row for cell in panel.cells])
    unit = UNITS[origin.config.reward.reduction]
    body = render(
        "explain.html",
        package=PACKAGE,
        origin=origin,
        unit=unit,
        legend=_legend(top),
        toggle=any(panel.view == "unguided" for of_row in panels for panel in of_row),
        # Two responses stand side by side; one alone leaves the place to its unguided self.
        view="guided" if any(len(row.row.responses) > 1 for row in rows) else "both",
        rows=[_row(row, of_row, top, unit, origin.guidances) for row, of_row in zip(rows, panels, strict=True)],
    )
    title = f"Where the reward comes from: {origin.source}"
    return page(title, body, style=render("explain.css", package=PACKAGE), script=render("explain.js", package=PACKAGE))


def number(value: float, *, places: int = 4) -> str:
    """A signed number as people read it; never "-0.0000"."""
    text = f"{value:+.{places}f}"
    return text.replace("-", "\N{MINUS SIGN}") if float(text) else f"{0:.{places}f}"


def visible(text: str) -> str:
    """A piece of text on one line, white space and control characters as signs."""
    if not text:
        return "end of turn"
    edge = len(text) - len(text.lstrip(" ")), len(text.rstrip(" "))
    shown = [
        "␣" if char == " " and not edge[0] <= at < edge[1] else _MARKS.get(char) or _chip(char) or char
        for at, char in enumerate(text)
    ]
    return "".join(shown)


def _chip(char: str) -> str:
    """A name for a character that nobody could see, or that would turn its surroundings around."""
    kind = unicodedata.category(char)
    if kind == "Cc":
        return chr(0x2400 + ord(char)) if ord(char) < 0x20 else f"[U+{ord(char):04X}]"
    if kind in ("Cf", "Cs", "Co") and char not in _JOINERS and not "\U000e0020" <= char <= "\U000e007f":
        return f"[U+{ord(char):04X}]"
    return ""


def _pieces(text: str) -> list[tuple[str, str, str]]:
    """Text in pieces `(kind, shown, text)` for the templates: `sign`, `chip`, or `plain` for runs of other text."""
    pieces: list[tuple[str, str, str]] = []
    plain = ""
    for char in text:
        mark, name = _MARKS.get(char), _chip(char)
        if mark is None and not name:
            plain += char
            continue
        if plain:
            pieces.append(("plain", "", plain))
            plain = ""
        if mark is not None:
            kept = "\n" if char in "\n\u2028\u2029" else "" if char == "\r" else char
            pieces.append(("sign", mark, kept))
        else:
            pieces.append(("chip", name.strip("[]"), ""))
    return [*pieces, ("plain", "", plain)] if plain else pieces


def _panels(row: Explained, number: int) -> list[Panel]:
    views = [("always" if row.unguided is None else "guided", row.guided)]
    if row.unguided is not None:
        views.append(("unguided", row.unguided))
    return [
        Panel(
            key=f"r{number}-{view}-{at}",
            label=label,
            view=view,
            score=score,
            response=written(sample.turn),
            cells=sample_cells(score, sample) if score.reward is not None else [],
        )
        for view, scores in views
        for at, ((label, sample), score) in enumerate(zip(row.row.responses, scores, strict=True))
    ]


def _row(
    row: Explained, panels: Sequence[Panel], top: float, unit: str, guidances: Mapping[str, str]
) -> dict[str, object]:
    """What the template shows of one row."""
    box = frame([panel.cells for panel in panels])
    first = row.guided[0]
    coarse = [panel for panel in panels if panel.cells and not _located(panel.score)]
    mixed = any(cell.strong_tokens != cell.weak_tokens for panel in panels for cell in panel.cells)
    return {
        "id": row.row.id,
        "facts": {
            "domain": first.domain,
            "router": first.router,
            "guidance": first.guidance,
            "exemplars": ", ".join(first.exemplars),
        },
        "shown": _pieces(guidances.get(first.domain, "")),
        "turns": [(turn.role, _pieces(written(turn))) for turn in row.row.prompt],
        "truncated": any(panel.score.truncated for panel in panels),
        "coarse": bool(coarse),
        "mixed": mixed and not coarse,
        "totals": _totals(row, panels, unit),
        "verdicts": _verdicts(panels, row.row.rule),
        "columns": "two" if len(row.row.responses) > 1 else "one" if row.unguided is None else "views",
        "panels": [_panel(panel, box, top) for panel in panels],
    }


def _located(score: Score) -> bool:
    return score.strong_token_offsets is not None and score.weak_token_offsets is not None


def _panel(panel: Panel, box: Curve, top: float) -> dict[str, object]:
    reward = panel.score.reward
    return {
        "key": panel.key,
        "name": panel.name,
        "view": panel.view,
        "reason": panel.score.reason,
        "reward": None if reward is None else _data(reward),
        "plain": _plain(panel.response),
        "tokens": _tokens(panel.cells, top),
        "curve": curve(panel.cells, box, panel.name),
        "lines": _values(panel),
    }


def _plain(text: str) -> str:
    """The response for a screen reader: without characters that turn text around."""
    return "".join(_chip(char) or char if char not in "\n\t\r" else char for char in text)


def _tokens(found: Sequence[Cell], top: float) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """Each token's class and its text in pieces; no pieces for the end of turn."""
    return [(f"t {_shade(cell.ratio, top)}".strip(), _pieces(cell.text)) for cell in found]


def _shade(ratio: float, top: float) -> str:
    """The class of a token's colour and underline: `p1` to `p5`, `n1` to `n5`, or none near zero."""
    level = sum(abs(ratio) >= step * top for step in _STEPS)
    return f"{'p' if ratio > 0 else 'n'}{level}" if level else ""


def _top(ratios: Sequence[float]) -> float:
    """Where the colour scale ends: a round number that all but the most extreme tokens stay under."""
    sizes = sorted(map(abs, ratios))
    high = sizes[int(0.98 * (len(sizes) - 1))] if sizes else 0.0
    return next((top for top in _TOPS if top >= high), _TOPS[-1])


def _legend(top: float) -> list[tuple[str, str]]:
    """Shade and what it stands for, from the most negative to the most positive."""
    edges = [step * top for step in _STEPS]
    levels = range(len(edges), 0, -1)
    lower = [(f"n{level}", f"\N{MINUS SIGN}{edges[level - 1]:g}") for level in levels]
    return [*lower, ("", "0"), *((f"p{level}", f"+{edges[level - 1]:g}") for level in reversed(levels))]


def _data(value: float, *, places: int = 4) -> Raw:
    """A number with the exact one behind it, digit by digit what `gdr score` writes."""
    return render("number.html", package=PACKAGE, exact=repr(value), text=number(value, places=places))


def _totals(row: Explained, panels: Sequence[Panel], unit: str) -> Raw:
    lines = []
    for panel in panels:
        score = panel.score
        values = [
            None if value is None else _data(value)
            for value in (score.reward, score.strong_logprob, score.weak_logprob)
        ]
        tokens = f"{score.strong_tokens:,}"
        if score.weak_tokens != score.strong_tokens:
            tokens += f" / {score.weak_tokens:,}"
        lines.append([panel.name, *values, tokens])
    headers = ["Response", f"Reward ({unit})", "Strong log-prob", "Weak log-prob", "Tokens"]
    return table(headers, lines, caption="Totals")


_SIDES: Final[Mapping[Rule, tuple[str, str]]] = {
    "best": ("highest chosen", "highest rejected"),
    "all": ("lowest chosen", "highest rejected"),
    "matrix": ("mean chosen", "mean rejected"),
}
"""What the margin of several responses is the difference of, by the rule that makes a row right."""


def _verdicts(panels: Sequence[Panel], rule: Rule) -> list[str]:
    """Whether the row is ranked as its label says, under each guidance: by the same rule as in `gdr evaluate`."""
    said = []
    for view, name in (("always", "Without guidance"), ("guided", "Guided"), ("unguided", "Unguided")):
        mine = [panel for panel in panels if panel.view == view]
        chosen = [panel.score.reward for panel in mine if panel.label.startswith("chosen")]
        rejected = [panel.score.reward for panel in mine if panel.label.startswith("rejected")]
        if not chosen or not rejected:
            continue
        values = [reward for reward in chosen if reward is not None], [own for own in rejected if own is not None]
        if (len(values[0]), len(values[1])) != (len(chosen), len(rejected)):
            said.append(f"{name}: not every response was scored.")
            continue
        found = compare(values, rule)
        what = _SIDES[rule][0] if len(chosen) > 1 else "chosen"
        other = _SIDES[rule][1] if len(rejected) > 1 else "rejected"
        said.append(f"{name}: {what} \N{MINUS SIGN} {other} = {number(found.margin)}, {_ranked(found, rule, values)}.")
    return said


def _ranked(found: Comparison, rule: Rule, values: Values) -> str:
    if rule == "matrix":
        every = len(values[0]) * len(values[1])
        return f"{round(found.worth * every)} of {every} comparisons won as labelled"
    return "a tie" if found.tie else "ranked as labelled" if found.worth == 1 else "ranked against the label"


def _values(panel: Panel) -> Raw | None:
    """Every token's values; the script reads them from here."""
    if not panel.cells:
        return None
    counted = any((cell.strong_tokens, cell.weak_tokens) != (1, 1) for cell in panel.cells)
    lines = [
        [
            at,
            visible(cell.text),
            *(number(value) for value in (cell.ratio, cell.total, cell.strong, cell.weak)),
            *([f"{cell.strong_tokens} / {cell.weak_tokens}"] if counted else []),
        ]
        for at, cell in enumerate(panel.cells, start=1)
    ]
    headers = ["#", "Piece" if counted else "Token", "Ratio", "Running sum", "Strong", "Weak"]
    if counted:
        headers.append("Tokens, strong / weak")
    return table(headers, lines, caption=f"{panel.name}: log-probs in nats")
