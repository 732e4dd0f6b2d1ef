"""A surrogate tree as HTML that a phone shows: nested lists of real text, so that a screen reader reads the tree itself.

Branches are folded with the browser's own `details`, closed where every leaf below gives the same answer. Colours are the page's variables
(blue `--a` and orange `--b`, which colour-blind people tell apart); an answer is always written, never shown by colour alone.
"""

from __future__ import annotations

from tauon.explain.features.columns import Matrix, check_rows
from tauon.explain.trees.surrogate import Surrogate
from tauon.report.text import count, escape

__all__ = ["describe_fidelity", "draw_tree"]

_STYLE = (
    "<style>.tree,.tree ul{list-style:none;margin:0;padding:0;font-size:14px;line-height:1.4}.tree ul{padding-left:10px;margin-left:5px;"
    "border-left:1px solid var(--line)}.tree li{padding:3px 0;overflow-wrap:anywhere}.tree summary{cursor:pointer}"
    ".tree .on>details>summary,.tree .on>.leaf{font-weight:650}.tree .leaf{display:block;padding-left:14px}"
    ".tree .n{color:var(--soft);font-size:12.5px;font-weight:400}.tree svg{vertical-align:middle;margin-right:6px}</style>"
)
_UNFOLDED = 3
"""Questions from the root that are unfolded at first."""
_BAR = 44


def describe_fidelity(surrogate: Surrogate) -> str:
    """Write the figures that stand beside the tree, as one plain paragraph."""
    found = surrogate.fidelity
    rows = f"{found.rows:,} held-out rows"
    if surrogate.kind == "values":
        explained = "no variance to explain" if found.r2 is None else f"R² {found.r2:.2f}{_interval(found.r2_interval)}"
        text = f"On {rows} the tree imitates the model's value with {explained}, and a mean difference of {found.mean_error:.3g}."
    else:
        low, high = found.agreement_interval or (0.0, 1.0)
        kappa = "not defined" if found.kappa is None else f"{found.kappa:.2f}{_interval(found.kappa_interval)}"
        r2 = "not defined" if found.r2 is None else f"{found.r2:.2f}{_interval(found.r2_interval)}"
        text = (
            f"On {rows} the tree gives the model's answer for {found.agreement or 0:.1%} ({low:.1%} to {high:.1%}); always giving the most "
            f"common answer would reach {found.majority or 0:.1%}. Cohen's kappa against the model: {kappa}. R² of the model's "
            f"probabilities: {r2}."
        )
    if found.true_accuracy is not None and found.model_true_accuracy is not None:
        text += _truth(surrogate, found.true_accuracy, found.model_true_accuracy)
    return text


def _truth(surrogate: Surrogate, tree: float, model: float) -> str:
    if surrogate.kind == "values":
        return f" Against the true values, R² is {tree:.2f} for the tree and {model:.2f} for the model."
    return f" Something else is how often the true label is given: {tree:.1%} by the tree, {model:.1%} by the model."


def _interval(ends: tuple[float, float] | None) -> str:
    return "" if ends is None else f" ({ends[0]:.2f} to {ends[1]:.2f})"


def draw_tree(surrogate: Surrogate, row_F: Matrix | None = None) -> str:
    """Return the tree as an HTML figure for a page that has Tauon's style sheet. With a row (F,), its path is marked and unfolded."""
    if surrogate.note:
        return f'<figure class="surrogate"><figcaption><b>No surrogate tree</b></figcaption><p>{escape(surrogate.note)}</p></figure>'
    on: set[int] = set()
    if row_F is not None:
        row_1F = check_rows(row_F, surrogate.features, "the row")
        on = {int(surrogate.tree.apply(row_1F, depth)[0]) for depth in range(surrogate.tree.depth + 1)}
    known = "" if row_F is None else ' The path of this case is bold and marked with "●".'
    long = "the answer is probable" if surrogate.kind == "classes" else "the value is large"
    note = f"{describe_fidelity(surrogate)} n counts training rows (0: sampled points alone); a bar is as long as {long}.{known}"
    caption = (
        f'<figcaption><b>The model as a tree of {surrogate.tree.depth} questions at most</b></figcaption><p class="note">{escape(note)}</p>'
    )
    body = _branch(surrogate, 0, on, "all cases")
    label = escape(f"Decision tree that imitates the model: {len(surrogate.tree.leaves)} paths, each written out below")
    return f'{_STYLE}<figure class="surrogate" aria-label="{label}">{caption}<ul class="tree">{body}</ul></figure>'


def _branch(surrogate: Surrogate, at: int, on: set[int], text: str, depth: int = 0) -> str:
    """One node and what is below it, as a list item. Below the first questions, branches are folded."""
    node = surrogate.tree.nodes[at]
    marked, mark = (' class="on"', "● ") if at in on else ("", "")
    counted = f'<span class="n">n = {count(node.training_rows)}</span>'
    answer = f"{_bar(surrogate, at)}{escape(surrogate.answer_of(node.value))}"
    if node.feature < 0:
        return f'<li{marked}><span class="leaf">{mark}{escape(text)} → {answer} {counted}</span></li>'
    same = surrogate.kind == "classes" and len(_answers_below(surrogate, at)) == 1
    unfolded = " open" if (not same and depth < _UNFOLDED) or at in on else ""
    ends = f" → {answer}" if same else ""
    below = "".join(
        _branch(surrogate, child, on, surrogate.tree.split_of(node, left).text(surrogate.features), depth + 1)
        for child, left in ((node.left, True), (node.right, False))
    )
    return f"<li{marked}><details{unfolded}><summary>{mark}{escape(text)}{ends} {counted}</summary><ul>{below}</ul></details></li>"


def _answers_below(surrogate: Surrogate, at: int) -> set[int]:
    node = surrogate.tree.nodes[at]
    if node.feature < 0:
        return {max(range(len(node.value)), key=node.value.__getitem__)}
    return _answers_below(surrogate, node.left) | _answers_below(surrogate, node.right)


def _bar(surrogate: Surrogate, at: int) -> str:
    """A bar as long as the answer is probable, blue for the first class and orange for others; of where a value is in its range."""
    value = surrogate.tree.nodes[at].value
    if surrogate.kind == "classes":
        share, tone = max(value), "--a" if value[0] == max(value) else "--b"
    else:
        values = [surrogate.tree.nodes[leaf].value[0] for leaf in surrogate.tree.leaves]
        share, tone = (value[0] - min(values)) / max(max(values) - min(values), 1e-300), "--a"
    width = round(min(max(share, 0.0), 1.0) * _BAR, 1)
    return (
        f'<svg width="{_BAR + 2}" height="10" aria-hidden="true"><rect x="1" y="1" width="{_BAR}" height="8" fill="none" '
        f'style="stroke:var({tone})"/><rect x="1" y="1" width="{width}" height="8" style="fill:var({tone})"/></svg>'
    )
