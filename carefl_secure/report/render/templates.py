"""What renders the templates of this package."""

from __future__ import annotations

import jinja2

from carefl_secure.rounding import delta_words, percent_up, round_up


def environment(*, html: bool) -> jinja2.Environment:
    """Return what renders the templates of this package; unknown names are errors."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("carefl_secure.report"),
        autoescape=html,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"delta": delta_words, "percent": percent_up, "up": round_up}
    return made
