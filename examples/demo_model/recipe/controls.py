"""The six control tokens, spelled and ordered as in the released five-category model."""

from __future__ import annotations

RESPOND = "respond"
CATEGORIES = ("humanizing", "incomplete", "indeterminate", "safety", "unsupported")
ROLES = (*CATEGORIES, RESPOND)

# The leading space is part of the text.
TOKEN_TEXT = {
    "humanizing": " [Humanizing requests]",
    "incomplete": " [Incomplete requests]",
    "indeterminate": " [Indeterminate requests]",
    "safety": " [Requests with safety concerns]",
    "unsupported": " [Unsupported requests]",
    RESPOND: " [respond]",
}
