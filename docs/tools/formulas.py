"""Formulas to MathML when the site is built: no script and no font from elsewhere.

Display formulas stand in fences of the language `math`, inline ones between $` and `$, as GitHub
reads them too.
"""

from __future__ import annotations

import re
from functools import cache

from math_core import LatexToMathML

__all__ = ["render_math"]

FENCE = re.compile(r"^```math\n(.*?)\n```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"\$`([^`\n]+)`\$")


@cache
def _converter() -> LatexToMathML:
    return LatexToMathML()


def _mathml(latex: str, *, display: bool) -> str:
    # One line: a blank or indented line would end the block of HTML in Markdown.
    found = _converter().convert_with_local_state(latex, displaystyle=display)
    return re.sub(r"\s*\n\s*", "", found)


def render_math(text: str) -> str:
    """A page of Markdown with its formulas as MathML; wide ones scroll inside their block.

    Raises:
        Exception: of `math_core`, for LaTeX that cannot be read.
    """

    def block(match: re.Match[str]) -> str:
        formula = _mathml(match[1], display=True)
        return f'<div class="math" tabindex="0">{formula}</div>'

    text = FENCE.sub(block, text)
    return INLINE.sub(lambda match: _mathml(match[1], display=False), text)
