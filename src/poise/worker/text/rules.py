"""Rules over the text of a request: what looks like something that should not leave. A net, and no proof.

A set of all patterns reads each text once (RE2, in linear time); where one of them is found, it is looked for alone, and what it
finds is checked: check digits, lengths, whether the neighbours are part of it. What is found is told to nobody, only which rule.

Texts are put into a plain form first, for what disguises them by accident: digits and spaces of other scripts, dashes, characters
without a width, escapes of JSON. Patterns must not be able to look far beyond what they find, or a text full of what fails the
checks would be read again for each of them."""

import re
import string
import sys
import unicodedata
from base64 import urlsafe_b64decode
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cache
from ipaddress import ip_address
from itertools import accumulate, chain, pairwise
from math import log2
from typing import NamedTuple

import msgspec
import re2

WORD = "word"
"""The rule of the operator's own words."""
NFKC_CHARS = 1024
"""Normalised at a time: it takes the square of a run of combining marks."""
DECODED_MAX = 3
"""How deep escapes are looked into: JSON in a text of JSON in a text of JSON."""
SET_BYTES, PATTERN_BYTES = 16 << 20, 4 << 20
"""Memory of what reads all patterns, and of each alone."""

_LATIN = string.ascii_letters.encode()
_JOINED = frozenset(_LATIN + b"0123456789_")
"""Neighbours that are part of the same word. Other scripts are not: they have no space before a number."""
_DIGITS = re.compile(rb"\d+")
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.))", re.DOTALL)
_CONTROLS = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f"}
_IBAN_LENGTHS = dict(
    re.findall(
        r"([A-Z]{2})(\d\d)",
        "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 EE20 EG29 ES24 FI18 "
        "FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 "
        "LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 NL18 NO15 OM23 PK24 PL28 PS29 PT25 QA29 RO24 RS22 RU33 SA24 "
        "SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30",
    )
)
_CARDS = re.compile(
    rb"(?:4\d{12}|4\d{15}|4\d{18}|5[1-5]\d{14}|3[47]\d{13}|(?:222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}"
    rb"|(?:30[0-5]\d|3095|3[689]\d\d)(?:\d{10}|\d{12,15})|(?:6759|676[0-3])\d{8,15}"
    rb"|(?:220[0-4]|352[89]|35[3-8]\d|60\d\d|62\d\d|64[4-9]\d|65\d\d|8[12]\d\d)\d{12,15})"
)
"""How the numbers of cards begin, and how long they are then."""
_GROUP_MIN = 3
"""Digits of a part of a card's number, but for the last one: smaller ones are a table, or a date."""
_GROUPS_MAX = 7
_LOOKS_LIKE_DATE = re.compile(rb"[+(]{0,2}(?:\d{4}-\d\d-\d\d|\d\d([./-])\d\d\1\d{4})")
_LOOKS_LIKE_AMOUNT = re.compile(rb"\+(?:\d+[.]\d+|\d{1,3}(?:[.]\d{3})+)")
_FILE_NAMES = frozenset(b"png jpg jpeg gif svg webp js ts css py md json".split())
_PLACEHOLDERS = re.compile(rb"[$<{%]|your|x{3}|\*{3}|\.{3}|os\.|process\.|example|placeholder", re.IGNORECASE)
_GIVEN = re.compile(rb"""\w[\w-]*["'\]]{0,3}\s{0,4}(?:=>|:=|[:=]|\s)\s{0,4}["']?""")
_LETTERS = r"\p{L}\p{N}\p{M}_"
_IN_NUMBERS = b"+.,:-/"
"""Between digits they make one number, or a date or a time, of them."""
_BETWEEN = b" -\t"
_NAME_OF_PHONE = _LATIN + b".: =\"'"


class Pattern(NamedTuple):
    """`is_one(text, start, end)`: whether what is found there is one."""

    rule: str
    text: str
    is_one: Callable[[bytes, int, int], bool]


class Rules:
    """Those that are wanted, ready to be looked for."""

    def __init__(self, names: Collection[str], words: Sequence[str] = ()) -> None:
        self._patterns = [pattern for pattern in PATTERNS if pattern.rule in names]
        self._alone = [re2.compile(pattern.text, _options(PATTERN_BYTES)) for pattern in self._patterns]
        self._set = re2.Set.SearchSet(_options(SET_BYTES))
        for pattern in self._patterns:
            self._set.Add(pattern.text)
        self._set.Compile()
        self._words = re2.compile(_words_pattern(words), _options(SET_BYTES)) if words else None

    def scan(self, texts: Sequence[str]) -> list[str]:
        """Names of the rules that find something in any of the texts."""
        found: set[str] = set()
        for form in chain.from_iterable(map(forms, texts)):
            data = form.encode("utf-8", "replace")
            for i in self._set.Match(data) or ():
                rule, _, is_one = self._patterns[i]
                if rule not in found and any(is_one(data, *match.span()) for match in self._alone[i].finditer(data)):
                    found.add(rule)
            if self._words is not None and WORD not in found and self._words.search(_folded(form).encode("utf-8", "replace")):
                found.add(WORD)
        return sorted(found)


def forms(text: str) -> Iterator[str]:
    """A text in its plain form, and what it says where it has escapes."""
    yield plain(text)
    for _ in range(DECODED_MAX):
        if "\\" not in text:
            return
        text = _ESCAPE.sub(_unescaped, text).encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        yield plain(text)


def plain(text: str) -> str:
    """With digits, spaces and dashes of ASCII, and without characters that are not seen."""
    if text.isascii():
        return text
    parts = (text[i : i + NFKC_CHARS] for i in range(0, len(text), NFKC_CHARS))
    return "".join(unicodedata.normalize("NFKC", part) for part in parts).translate(_plain_characters())


@cache
def _plain_characters() -> dict[int, str]:
    kinds = {"Cf": "", "Pd": "-", "Zs": " "}
    table = dict.fromkeys([0x34F, *range(0xFE00, 0xFE10)], "") | {0x2212: "-"}
    for char in map(chr, range(128, sys.maxunicode + 1)):
        if char.isdecimal():
            table[ord(char)] = str(int(char))
        elif (kind := unicodedata.category(char)) in kinds:
            table[ord(char)] = kinds[kind]
    return table


def _unescaped(match: re.Match[str]) -> str:
    return chr(int(match[1], 16)) if match[1] else _CONTROLS.get(match[2], match[2])


def _options(n_bytes: int) -> re2.Options:
    options = re2.Options()
    options.max_mem, options.log_errors = n_bytes, False
    return options


def _folded(text: str) -> str:
    return " ".join(text.casefold().split())


def _words_pattern(words: Sequence[str]) -> str:
    """Any of them, whole: an end of one that is a letter has no letter beside it."""
    options = []
    for word in filter(None, (_folded(plain(word)) for word in words)):
        starts, ends = (re2.search(rf"[{_LETTERS}]", word[i]) is not None for i in (0, -1))
        start, end = rf"(?:^|[^{_LETTERS}])" if starts else "", rf"(?:$|[^{_LETTERS}])" if ends else ""
        options.append(f"{start}{re2.escape(word)}{end}")
    return "|".join(options) or r"[^\x00-\x{10FFFF}]"


def _begins(text: bytes, start: int, not_after: bytes = b"") -> bool:
    """Whether it is no part of a longer word, nor of a number with one of these characters in it."""
    return _is_edge(text[max(0, start - 2) : start][::-1], not_after)


def _ends(text: bytes, end: int, not_before: bytes = b"") -> bool:
    """The same for what comes after it."""
    return _is_edge(text[end : end + 2], not_before)


def _is_edge(beside: bytes, not_beside: bytes) -> bool:
    return not beside or (beside[0] not in _JOINED and not (beside[:1] in not_beside and beside[1:].isalnum()))


def _card(text: bytes, start: int, end: int) -> bool:
    """In a run of digits in groups: some groups of it whose digits are a card's number."""
    spans = [(start + m.start(), start + m.end()) for m in _DIGITS.finditer(text[start:end])]
    for i, (first, _) in enumerate(spans):
        digits = b""
        for left, right in spans[i : i + _GROUPS_MAX]:
            digits += text[left : min(right, left + 20)]
            if len(digits) > 19:
                break
            if _is_card_number(digits) and _begins(text, first, b".") and _ends(text, right, b"."):
                return True
            if right - left < _GROUP_MIN:
                break
    return False


def _is_card_number(digits: bytes) -> bool:
    if _CARDS.fullmatch(digits) is None:
        return False
    odd, even = [list(map(int, digits[start::-2].decode())) for start in (-1, -2)]
    is_article = len(digits) == 13 and (sum(odd) + 3 * sum(even)) % 10 == 0
    return not is_article and (sum(odd) + sum(sum(divmod(2 * digit, 10)) for digit in even)) % 10 == 0


def _iban(text: bytes, start: int, end: int) -> bool:
    n = int(_IBAN_LENGTHS.get(text[start : start + 2].decode("latin-1").upper(), 0))
    found = text[start : start + 2 * n]
    number = found.translate(None, _BETWEEN)[:n]
    if len(number) < max(n, 1) or not number.isalnum() or not _begins(text, start):
        return False
    if int("".join(str(int(chr(c), 36)) for c in number[4:] + number[:4])) % 97 != 1:
        return False
    places = [i for i, char in enumerate(found) if char not in _BETWEEN]
    return _ends(text, start + places[n - 1] + 1)


def _email(text: bytes, start: int, end: int) -> bool:
    local, _, domain = text[start:end].rpartition(b"@")
    return local != b"git" and domain.rpartition(b".")[2].lower() not in _FILE_NAMES and text[end : end + 1] != b"("


def _phone_abroad(text: bytes, start: int, end: int) -> bool:
    found = text[start:end]
    groups = _DIGITS.findall(found)
    n = sum(map(len, groups))
    if _LOOKS_LIKE_DATE.match(found) or _LOOKS_LIKE_AMOUNT.fullmatch(found) or (len(groups) == 1 and n < 9):
        return False
    if found.startswith(b"00") and not re.search(rb"[ /-]", found):
        return False
    return n >= 8 and _begins(text, start, b"" if found.startswith(b"+") else _IN_NUMBERS) and _ends(text, end, _IN_NUMBERS)


def _phone_at_home(text: bytes, start: int, end: int) -> bool:
    found = text[start:end]
    groups = _DIGITS.findall(found)
    is_count = len(groups) > 2 and all(int(b) - int(a) == 1 for a, b in pairwise(groups))
    if is_count or _LOOKS_LIKE_DATE.match(found) or not _begins(text, start, _IN_NUMBERS):
        return False
    lengths = list(accumulate(map(len, groups)))
    return any(9 <= n <= 12 for n in lengths[:-1]) or (9 <= lengths[-1] <= 12 and _ends(text, end, _IN_NUMBERS))


def _phone_of_america(text: bytes, start: int, end: int) -> bool:
    return _begins(text, start, _IN_NUMBERS) and _ends(text, end, _IN_NUMBERS)


def _phone_named(text: bytes, start: int, end: int) -> bool:
    number = text[start:end].lstrip(_NAME_OF_PHONE)
    return 6 <= sum(map(len, _DIGITS.findall(number))) <= 15 and not _LOOKS_LIKE_DATE.match(number) and _ends(text, end)


def _is_key(text: bytes, start: int, end: int) -> bool:
    """Something with a prefix that says what it is."""
    return _begins(text, start)


def _is_random_key(text: bytes, start: int, end: int) -> bool:
    value = text[start + 3 : end]
    is_mixed = re.search(rb"[a-z]", value) and re.search(rb"[A-Z]", value)
    return _begins(text, start) and (is_mixed is not None or len(re.findall(rb"\d", value)) > 2) and _is_random(value)


def _is_jwt(text: bytes, start: int, end: int) -> bool:
    head = text[start:end].partition(b".")[0]
    try:
        header = msgspec.json.decode(urlsafe_b64decode(head + b"=" * (-len(head) % 4)))
    except ValueError:
        return False
    return isinstance(header, dict) and ("alg" in header or "typ" in header)


def _is_secret(text: bytes, start: int, end: int) -> bool:
    """What is given to a name such as `password`, if it is no code and no placeholder."""
    given = _GIVEN.match(text, start, end)
    value = text[given.end() : end] if given else b""
    return not _PLACEHOLDERS.match(value) and text[end : end + 1] not in (b"(", b"[", b"{") and _is_random(value)


def _is_login(text: bytes, start: int, end: int) -> bool:
    """A password in a URL."""
    password = text[start:end].rpartition(b":")[2][:-1]
    return not _PLACEHOLDERS.match(password) and password.lower() not in (b"password", b"pass", b"pw", b"secret")


def _is_random(value: bytes) -> bool:
    """Letters and digits of which few repeat: no name, no word, no number."""
    value = value[:256]
    n = len(value)
    if n < 8 or not (re.search(rb"\d", value) and re.search(rb"[A-Za-z]", value)):
        return False
    return -sum(count / n * log2(count / n) for count in Counter(value).values()) >= (3.0 if n >= 12 else 2.5)


def _is_private_address(text: bytes, start: int, end: int) -> bool:
    if not _begins(text, start, b".") or not _ends(text, end, b"."):
        return False
    try:
        address = ip_address(text[start:end].decode())
    except ValueError:
        return False
    before = text[max(0, start - 2) : start]
    is_part = address.version == 6 and b":" in (before[-1:], text[end : end + 1])
    is_slice = before.endswith(b"[") and (before[0] in _JOINED or before[0] in b"])")
    return address.is_private and not is_part and not is_slice


def _is_private_name(text: bytes, start: int, end: int) -> bool:
    before, after = text[max(0, start - 1) : start], text[end : end + 1]
    return _begins(text, start) and _ends(text, end, b".-") and before not in (b".", b"$") and after != b"("


_NAMED = "passw(?:or)?d|passwort|pwd|passphrase|secret|token|api[_-]?key|access[_-]?key|private[_-]?key|credentials?"
_PHONE_NAMES = "tel|telephone|phone|mobile|cell|fax|telefon|handy|whatsapp|call(?: me)?(?: at| on)?"

PATTERNS = (
    Pattern("card", r"\d(?:[ \t-]{0,3}\d){11,}", _card),
    Pattern("iban", r"(?i)[a-z]{2}\d\d", _iban),
    Pattern("email", r"[\p{L}\p{N}._%+-]+@(?:[\p{L}\p{N}][\p{L}\p{N}-]*\.)+\p{L}{2,}", _email),
    Pattern("phone", r"(?:\+|00)[1-9](?:[ ()./-]{0,3}\d){6,14}", _phone_abroad),
    Pattern("phone", r"\(?0[1-9]\d{0,4}\)?(?:[ /.-]{1,3}\d{2,9}){1,5}", _phone_at_home),
    Pattern("phone", r"(?:1[ .-])?(?:\([2-9]\d\d\) ?|[2-9]\d\d[.-])[2-9]\d\d[ .-]\d{4}", _phone_of_america),
    Pattern(
        "phone",
        rf"(?i)\b(?:{_PHONE_NAMES})(?: ?(?:no|nr|number))?[.: =\"']{{1,5}}[+(]{{0,2}}\d[\d ()./-]{{4,18}}\d",
        _phone_named,
    ),
    Pattern("key", r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----", lambda text, start, end: True),
    Pattern("key", r"(?:AKIA|ASIA|AROA|AIDA)[A-Z0-9]{16}", _is_key),
    Pattern(
        "key", r"gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}|npm_[A-Za-z0-9]{36}|hf_[A-Za-z0-9]{30,}", _is_key
    ),
    Pattern("key", r"xox[a-z]-[\w-]{10,}|xapp-[\w-]{10,}|AIza[\w-]{35}|[srp]k_(?:live|test)_\w{16,}|pypi-[\w-]{32,}", _is_key),
    Pattern("key", r"[sp]k-[\w-]{20,}", _is_random_key),
    Pattern("key", r"eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*", _is_jwt),
    Pattern("key", rf"(?i)(?:{_NAMED})[\"'\]]{{0,3}}\s{{0,4}}(?:=>|:=|[:=])\s{{0,4}}[\"']?[\w+/=.!@#%^&*~?$-]{{8,}}", _is_secret),
    Pattern("key", r"(?i)bearer\s+[\w.~+/=-]{16,}", _is_secret),
    Pattern("key", r"(?i)[a-z][a-z0-9+.-]{1,20}://[^\s/:@\"']{0,64}:[^\s/:@\"']{3,128}@", _is_login),
    Pattern("private_host", r"(?:10|127|172|192|169)(?:\.\d{1,3}){3}", _is_private_address),
    Pattern("private_host", r"(?i)::1|(?:f[cd][0-9a-f]{2}|fe80):[0-9a-f:]{1,35}", _is_private_address),
    Pattern(
        "private_host",
        r"(?i)(?:[a-z0-9][a-z0-9_-]*\.)+(?:localdomain|local|internal|corp|lan|intranet)|localhost",
        _is_private_name,
    ),
)
