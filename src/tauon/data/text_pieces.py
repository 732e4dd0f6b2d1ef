"""Where a text may be cut for byte-level BPE so that the tokens of its pieces are those of the whole, and which characters every library reads alike.

Knows nothing of tokenizers. The classes of characters are those of Unicode 3.2 that no later version changed: a pattern asks only whether a character is
a letter, a number, white space or something else.
"""

from __future__ import annotations

import re

__all__ = ["FAR", "NOT_SETTLED", "pieces"]

_LETTERS = "A-Za-zÀ-ÖØ-öø-žƀ-ȟɐ-ʭΑ-ΡΣ-Ωα-ωЁА-яёא-תء-غف-ي一-龥ぁ-ゔァ-ヺ가-힣"
"""Ranges that are letters (\\p{L}) in every version of Unicode that a library may use; without U+017F, which is a lower-case S to some."""
_MARKS = "¡-¿×÷–—‘’“”„†•…′″€−、。「」！，（）：；？"
"""Other characters of one class in every version (`¡-¿` has numbers and letters, too)."""
NOT_SETTLED = re.compile(rf"[^\x00\x02-\x7f{_LETTERS}{_MARKS}]")
"""A character that two libraries could put in different classes, or U+0001."""
FAR = 1 << 16
"""Number of characters that are searched for the usual cut."""
_CUT = re.compile(r"[A-Za-z](?=[ \n])")
_OTHER_CUT = re.compile(rf"[{_LETTERS}](?=[ \t\r\n,.;:!?()、。，．！？；：（）「」…—])")


def pieces(text: str, size: int = 1 << 17) -> list[str]:
    """Return a long text in pieces of about `size` characters, cut where no pre-tokenisation pattern joins the two sides, so that the tokens
    equal those of the whole text, while every core has work and memory stays small: before blanks that follow an ASCII letter; if there is
    none within `FAR` characters, before a blank or a mark that follows a letter of any script. A text with neither is not cut.
    """
    cuts, at = [0], size
    while at < len(text) - size:
        found = _CUT.search(text, at, at + FAR) or _OTHER_CUT.search(text, at)
        if found is None:
            break
        cuts.append(found.end())
        at = found.end() + size
    return [text[a:b] for a, b in zip(cuts, [*cuts[1:], len(text)], strict=True)]
