"""Equations as MathML, which browsers draw themselves: no script, no font, no network."""

from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml


def _visit(display: bool) -> Any:
    def visit(translator: Any, node: Any) -> None:
        source = tex2mathml(node.astext(), as_block=display)
        translator.body.append(f'<div class="math">{source}</div>' if display else source)
        raise nodes.SkipNode

    return visit


def add_mathml(app: Any) -> None:
    """Let `html_math_renderer = "mathml"` draw inline equations and displayed ones."""
    app.add_html_math_renderer(
        "mathml", inline_renderers=(_visit(False), None), block_renderers=(_visit(True), None)
    )
