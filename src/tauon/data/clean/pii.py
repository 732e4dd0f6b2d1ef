"""Personal data in texts: found by form, confirmed by check digits where there are any, then masked, or the text is rejected.

E-mail and IP addresses by their grammar (`ipaddress`), phone numbers by `phonenumbers` (Google's libphonenumber), card numbers by their issuers'
prefixes and the Luhn digit, IBANs and national numbers by `python-stdnum`, keys and tokens by the prefixes that their issuers publish. Names and
street addresses have no form, and are not found.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, ClassVar, Literal

from tauon.config import register
from tauon.data.clean.base import Rejected, TextFilter

__all__ = ["PiiConfig"]

Kind = Literal["key", "email", "iban", "card", "phone", "id", "ip"]
Span = tuple[int, int]

_EMAIL = re.compile(r"(?<![\w.+-])[A-Za-z0-9][\w.+%-]{0,63}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,24}(?![\w@])")
_IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)")
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{0,4}(?![\w:])")
_CARD = re.compile(r"(?<![\w.-])[2-6]\d{3}(?:[ -]?\d){8,15}(?![\w-]|\.\d)")
_IBAN = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]){11,30}(?!\w)")
_DATE = re.compile(r"(?:19|20)\d\d[./-](?:0[1-9]|1[0-2])[./-](?:0[1-9]|[12]\d|3[01])")
"""2016-12-05 09 would pass as a national number: one date and hour in eleven has the check digit."""
_NUMBER = re.compile(r"(?<![\w+./-])[A-Z0-9]+(?:[./-][A-Z0-9]+)*(?!\w)")
_KEYS = re.compile(
    r"""-----BEGIN\ [A-Z ]*PRIVATE\ KEY-----.*?(?:-----END\ [A-Z ]*PRIVATE\ KEY-----|\Z)
    |\b(?:AKIA|ASIA)[0-9A-Z]{16}\b                                       # Amazon
    |\bgh[pousr]_[A-Za-z0-9]{36,255}\b|\bgithub_pat_[A-Za-z0-9_]{60,}\b  # GitHub
    |\bglpat-[A-Za-z0-9_-]{20,}                                          # GitLab
    |\bxox[abeoprs]-[A-Za-z0-9-]{10,}                                    # Slack
    |\bAIza[A-Za-z0-9_-]{35}                                             # Google
    |\b[rs]k_live_[A-Za-z0-9]{16,}                                       # Stripe
    |\bsk-(?:ant-|proj-)?[A-Za-z0-9_-]{32,}                              # OpenAI, Anthropic
    |\bhf_[A-Za-z0-9]{30,}\b|\bnpm_[A-Za-z0-9]{36}\b|\bpypi-[A-Za-z0-9_-]{50,}
    |\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}     # JSON web token
    """,
    re.VERBOSE | re.DOTALL,
)


@register("pii")
class PiiConfig(TextFilter):
    """Mask personal data and keys, or reject texts that have them. An address becomes `<EMAIL>`, a card number `<CARD>`."""

    find: tuple[Kind, ...] = ("key", "email", "iban", "card", "phone", "id", "ip")
    """What is looked for, in this order: what one has found is not looked at by the next."""
    action: Literal["mask", "drop"] = "mask"
    """mask: replace what was found by its kind; drop: reject the text."""
    regions: tuple[str, ...] = ("US",)
    """Countries whose phone numbers are found without +49 before them. [] finds international ones alone."""
    ids: tuple[str, ...] = ("us.ssn", "es.dni", "fr.nir", "it.codicefiscale", "cn.ric", "br.cpf", "gb.nhs", "pl.pesel", "in_.aadhaar")
    """National numbers, as modules of python-stdnum: de.idnr, nl.bsn, se.personnummer, ... A short one with one check digit (nl.bsn) also
    matches one in eleven numbers of its length."""
    public_only: bool = True
    """IP addresses: leave private ones (192.168.0.1) and those reserved for examples."""
    hides_text: ClassVar[bool] = True
    libraries: ClassVar[dict[str, str]] = {"phonenumbers": "phonenumbers", "stdnum": "python-stdnum"}

    def problems(self) -> Iterator[tuple[str, str]]:
        yield from super().problems()
        if self.missing():
            return
        import phonenumbers

        for region in self.raw_value("regions"):
            if region not in phonenumbers.SUPPORTED_REGIONS:
                yield "regions", f"{region!r} is no country; write its code of two letters: US, DE"
        for name in self.raw_value("ids"):
            if _validator(name) is None:
                yield "ids", f"{name!r} is not a number that python-stdnum knows; write country.name: us.ssn, de.idnr"

    def apply(self, text: str) -> str | Rejected:
        masked, found = str(text), Counter[str]()
        for kind in self.find:
            spans = list(self.spans(kind, masked))
            found[kind] += len(spans)
            for start, end in reversed(spans):
                masked = f"{masked[:start]}<{kind.upper()}>{masked[end:]}"
        if not found.total():
            return text
        if self.action == "mask":
            return masked
        listed = ", ".join(f"{n} {kind}" for kind, n in found.items() if n)
        return Rejected("personal_data", f"has personal data or keys: {listed}")

    def spans(self, kind: Kind, text: str) -> Iterator[Span]:
        """Yield where it is found, in order, without overlap."""
        if kind == "key":
            yield from (match.span() for match in _KEYS.finditer(text))
        elif kind == "email":
            yield from (match.span() for match in _EMAIL.finditer(text)) if "@" in text else ()
        elif kind == "iban":
            yield from _checked(_IBAN, text, _iban_length)
        elif kind == "card":
            yield from _checked(_CARD, text, lambda found: len(found) if _is_card(found) else 0)
        elif kind == "id":
            validators = [v for name in self.ids if (v := _validator(name)) is not None]
            yield from _ids(text, validators)
        elif kind == "phone":
            yield from self._phones(text)
        else:
            yield from sorted(span for form in (_IPV4, _IPV6) for span in _checked(form, text, self._ip_length))

    def _phones(self, text: str) -> Iterator[Span]:
        if not _DIGITS.search(text):
            return
        import phonenumbers

        taken: list[Span] = []
        for region in self.regions or (None,):
            for match in phonenumbers.PhoneNumberMatcher(text, region):
                if all(match.end <= a or match.start >= b for a, b in taken):
                    taken.append((match.start, match.end))
        yield from sorted(taken)

    def _ip_length(self, found: str) -> int:
        try:
            address = ipaddress.ip_address(found)
        except ValueError:
            return 0
        return len(found) if address.is_global or not self.public_only else 0


_DIGITS = re.compile(r"\d(?:\D{0,3}\d){5}")


def _checked(form: re.Pattern[str], text: str, length: Callable[[str], int]) -> Iterator[Span]:
    """Yield the places of `form`, as many characters of each as `length` confirms."""
    for match in form.finditer(text):
        confirmed = length(match.group())
        if confirmed:
            yield match.start(), match.start() + confirmed


def _is_card(found: str) -> bool:
    from stdnum import luhn

    digits = re.sub(r"\D", "", found)
    return 13 <= len(digits) <= 19 and len(set(digits)) > 1 and bool(luhn.is_valid(digits)) and _issuer(digits)


def _issuer(digits: str) -> bool:
    """Whether the first digits and the length are those of a large network: Visa, Mastercard, American Express, Discover, JCB, Diners, UnionPay."""
    two, four, n = int(digits[:2]), int(digits[:4]), len(digits)
    return (
        (digits[0] == "4" and n in (13, 16, 19))
        or ((51 <= two <= 55 or 2221 <= four <= 2720) and n == 16)
        or (two in (34, 37) and n == 15)
        or ((two == 65 or four == 6011 or 644 <= int(digits[:3]) <= 649 or two == 62) and 16 <= n <= 19)
        or (3528 <= four <= 3589 and 16 <= n <= 19)
        or ((two in (36, 38) or 300 <= int(digits[:3]) <= 305) and n == 14)
    )


def _iban_length(found: str) -> int:
    """Return the characters of the longest beginning that is an IBAN: the pattern may reach into the next word in capitals."""
    from stdnum import iban

    ends = [m.start() for m in re.finditer(r"[ -]", found)]
    return next((end for end in (len(found), *reversed(ends)) if end >= 15 and iban.is_valid(found[:end])), 0)


def _ids(text: str, validators: list[Any]) -> Iterator[Span]:
    """Yield the national numbers: one to five pieces of digits and capitals, one blank between them, the longest first."""
    pieces = [match.span() for match in _NUMBER.finditer(text) if not _DATE.fullmatch(match.group())]
    done = 0
    for first, (start, _) in enumerate(pieces):
        if start < done:
            continue
        last = first
        while last + 1 < len(pieces) and last - first < 4 and pieces[last + 1][0] == pieces[last][1] + 1 and text[pieces[last][1]] == " ":
            last += 1
        for end in (pieces[at][1] for at in range(last, first - 1, -1)):
            number = text[start:end]
            if end - start <= _LONGEST and sum(map(str.isdigit, number)) >= 6 and any(_is_id(number, v) for v in validators):
                yield start, end
                done = end
                break


_LONGEST = 26


def _is_id(number: str, validator: Any) -> bool:
    if not validator.is_valid(number):
        return False
    if validator.__name__ == "stdnum.us.ssn":  # no check digit: only as it is written
        return re.fullmatch(r"\d{3}-\d{2}-\d{4}", number) is not None
    return True


@lru_cache(64)
def _validator(name: str) -> Any:
    from stdnum.util import get_cc_module

    country, _, number = name.partition(".")
    try:
        return get_cc_module(country.rstrip("_"), number)
    except (ImportError, AttributeError, ValueError):
        return None
