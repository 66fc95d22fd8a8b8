"""Text that came from a file, as it may be shown in a terminal."""

from __future__ import annotations

__all__: list[str] = []


def printable(text: str) -> str:
    r"""Return the text with control characters escaped, which would move the cursor, or hide what stands there.

    >>> printable("search.py\x1b[2K")
    'search.py\\x1b[2K'
    """
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
