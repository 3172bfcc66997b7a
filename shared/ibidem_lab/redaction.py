"""Secrets and personal data out of a text: keys, passwords, e-mail addresses, cards, accounts, phone numbers.

What is found has a shape that tells it; names, addresses and a password in a sentence have none. Numbers of
cards (ISO/IEC 7812, Luhn) and accounts (ISO 13616, modulo 97) are checked, so that few others are taken.

Every search takes time linear in the text, also of one made to be slow. An expression either ends with the
class that it repeats, or repeats at most a fixed number of times, or begins where no earlier match of the
same run could; what needs more is looked at by code.
"""

from __future__ import annotations

import re

KEY, PASSWORD, EMAIL, CARD, IBAN, PHONE, NUMBER = (
    f"[{kind}]" for kind in ("key", "password", "email", "card", "iban", "phone", "id number")
)

# The beginnings by which providers make their keys recognisable, and what follows.
_PREFIXES = (
    r"sk-[\w-]{16,}",  # OpenAI, Anthropic, DeepSeek, OpenRouter
    r"(?:AKIA|ASIA|ABIA|ACCA)[0-9A-Z]{16}",  # AWS
    r"AIza[\w-]{35}|ya29\.[\w-]{16,}|GOCSPX-[\w-]{16,}",  # Google
    r"gh[pousr]_\w{30,}|github_pat_\w{22,}",  # GitHub
    r"gl(?:pat|ptt|dt|rt|soat)-[\w-]{16,}",  # GitLab
    r"xox[abcdeoprs]-[\w-]{10,}|xapp-[\w-]{10,}|hooks\.slack\.com/services/[\w/]{16,}",  # Slack
    r"(?:sk|rk|pk)_(?:live|test)_\w{10,}|whsec_[\w+/=]{16,}",  # Stripe
    r"(?:hf|api_org)_[A-Za-z]{30,}|gsk_\w{20,}|xai-[\w-]{20,}|r8_\w{30,}|pplx-\w{30,}",  # models as a service
    r"lsv2_(?:pt|sk)_\w{20,}|ls__\w{20,}|pcsk_\w{20,}|tvly-[\w-]{16,}",  # LangSmith, Pinecone, Tavily
    r"npm_\w{30,}|pypi-[\w-]{16,}|dckr_pat_[\w-]{16,}",  # registries
    r"SG\.[\w.-]{32,}|key-[0-9a-f]{32}|(?:AC|SK)[0-9a-f]{32}",  # SendGrid, Mailgun, Twilio
    r"do[opr]_v1_[0-9a-f]{32,}|dapi[0-9a-f]{32}|shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}",  # clouds and shops
    r"hv[sbr]\.[\w-]{20,}|sbp_\w{30,}|lin_api_\w{20,}|ntn_\w{30,}|ATATT3[\w=-]{20,}|glsa_\w{20,}",
    r"[0-9]{8,10}:[\w-]{35}",  # Telegram
    r"eyJ[\w-]{16,}[\w.-]*",  # a JSON Web Token: base64 of `{"`
)
_KEYS = re.compile(rf"(?<![A-Za-z0-9])(?:{'|'.join(_PREFIXES)})", re.ASCII)
_BEARER = re.compile(r"(?i)\b(bearer|basic)(\s{1,4})([\w.~+/=-]{8,})", re.ASCII)
_URL_USER = re.compile(r"(?<=://)([^\s/?#\"'<>]+)@")
_NAMES = (
    r"pass(?:word|wd|phrase)?|pwd|secret|token|credential|api[_-]?key|access[_-]?key(?:[_-]?id)?|"
    r"account[_-]?key|private[_-]?key|auth(?:orization)?|sig(?:nature)?"
)
# A name that ends so, a sign, and a value; what stands before is of no matter: `AWS_SECRET_ACCESS_KEY`.
_ASSIGNED = re.compile(
    rf"(?i)({_NAMES})(\\{{0,2}}[\"'`]?[ \t]{{0,8}}(?:=>|:=|=|:)[ \t]{{0,8}}\\{{0,2}})"
    r"""("[^"\r\n]{1,400}"?|'[^'\r\n]{1,400}'?|[^\s"'`,;<>()\[\]{}&|\\]+)"""
)
_NO_VALUE = re.compile(rf"(?i)\$?(?:self\.)?(?:none|null|nil|true|false|undefined|str|string|{_NAMES})")
_EMAIL = re.compile(r"(?<![\w.%+-])[\w.%+-]+@[\w-]+(?:\.[\w-]+)+")
_BLANKS = " \u00a0\u2011-"
_NUMBERS = re.compile(rf"(?:(?<![\w+])\+)?\(?[0-9](?:[./{_BLANKS}]{{0,2}}[()]?[./{_BLANKS}]?[0-9])+")
_IBAN = re.compile(r"(?i)(?<![A-Za-z0-9])[A-Z]{2}[0-9]{2}(?=[ -]?[A-Z0-9])", re.ASCII)
_PEM = re.compile(r"-----BEGIN ([A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?)-----")

# Characters of an IBAN, by its country (SWIFT IBAN registry).
_LENGTHS = {
    country: length
    for length, countries in {
        15: "NO", 16: "BE", 18: "DK FI FO GL NL SD", 19: "MK SI", 20: "AT BA EE KZ LT LU MN XK",
        21: "CH HR LI LV", 22: "BG BH CR DE GB GE IE ME RS VA", 23: "AE GI IL IQ OM SO TL",
        24: "AD CZ ES MD PK RO SA SE SK TN VG", 25: "LY PT ST", 26: "IS TR", 27: "BI DJ FR GR IT MC MR SM",
        28: "AL AZ BY CY DO GT HU LB NI PL SV", 29: "BR EG PS QA UA",
        30: "JO KW MU YE", 31: "MT SC", 32: "LC", 33: "RU",
    }.items()
    for country in countries.split()
}  # fmt: skip
_CARDS_BEGIN = {13: "4", 14: "3", 15: "3", 16: "23456", 17: "6", 18: "6", 19: "46"}  # by their length
_FEWEST_DIGITS, _MOST_OF_PHONE = 8, 15


def secrets(text: str) -> str:
    """The text with each secret replaced by its kind in brackets, such as `[key]` or `[email]`.

    Private keys, API keys of some forty services, bearer tokens, passwords in URLs and after their names,
    e-mail addresses, card numbers, IBANs, phone numbers and US social security numbers. What it cannot
    know: names, postal addresses, a key without a known beginning or a name before it. Usable as
    `ibidem.open(redact=secrets)`.
    """
    text = _without_private_keys(text)
    text = _URL_USER.sub(_user, text)
    text = _KEYS.sub(_key, text)
    text = _BEARER.sub(_bearer, text)
    text = _ASSIGNED.sub(_assigned, text)
    text = _EMAIL.sub(_email, text)
    text = _without_ibans(text)
    return _NUMBERS.sub(_number, text)


def _without_private_keys(text: str) -> str:
    """A block without an end goes to the end of the text: it was cut, and its beginning is secret enough."""
    kept, at = [], 0
    while begin := _PEM.search(text, at):
        kept += [text[at : begin.start()], KEY]
        ending = f"-----END {begin[1]}-----"
        end = text.find(ending, begin.end())
        at = len(text) if end < 0 else end + len(ending)
    return "".join((*kept, text[at:]))


def _user(found: re.Match[str]) -> str:
    return found[0] if found[1] == "git" else f"{PASSWORD}@"


def _key(found: re.Match[str]) -> str:
    is_word = found[0].startswith("sk-") and not _has_digit(found[0])  # sk-learn-and-the-like
    return found[0] if is_word else KEY


def _bearer(found: re.Match[str]) -> str:
    is_word = not _has_digit(found[3]) and len(found[3]) < 24
    return found[0] if is_word else f"{found[1]}{found[2]}{KEY}"


def _assigned(found: re.Match[str]) -> str:
    name, sign, value = found.groups()
    if value[0] in "\"'":
        tail = value[1:][len(value[1:].rstrip(f"\\{value[0]}")) :]
        return f"{name}{sign}{value[0]}{PASSWORD}{tail}"
    is_tight = sign in ("=", ":") and not _NO_VALUE.fullmatch(value)
    is_secret = len(value) >= 6 and (
        _has_digit(value) or (is_tight and name.lower()[:2] in ("pa", "pw", "se"))
    )
    return f"{name}{sign}{PASSWORD}" if is_secret and len(value) >= 6 else found[0]


def _has_digit(text: str) -> bool:
    return any("0" <= letter <= "9" for letter in text)


def _email(found: re.Match[str]) -> str:
    ending = found[0].rpartition(".")[2]
    is_address = len(ending) > 1 and not ending.isdigit() and not found[0].startswith("git@")
    return EMAIL if is_address else found[0]


def _without_ibans(text: str) -> str:
    kept, at = [], 0
    for begin in _IBAN.finditer(text):
        end = _end_of_iban(text, begin.start())
        if end and begin.start() >= at:
            kept += [text[at : begin.start()], IBAN]
            at = end
    return "".join((*kept, text[at:]))


def _end_of_iban(text: str, begin: int) -> int:
    """Where the account number that begins here ends; 0 if none does."""
    wanted, letters, at = _LENGTHS.get(text[begin : begin + 2].upper(), 0), "", begin
    while at < len(text) and len(letters) < wanted:
        if text[at].isascii() and text[at].isalnum():
            letters += text[at].upper()
        elif text[at] not in _BLANKS or text[at - 1] in _BLANKS:
            return 0
        at += 1
    if not wanted or len(letters) < wanted or text[at : at + 1].isalnum():
        return 0
    checked = "".join(str(int(letter, 36)) for letter in letters[4:] + letters[:4])
    return at if int(checked) % 97 == 1 else 0


def _number(found: re.Match[str]) -> str:
    """The numbers in a run of digits and signs between them: several may stand side by side."""
    run, kept, at = found[0], [], 0
    groups = [(one.start(), one.end()) for one in re.finditer("[0-9]+", run)]
    first = 0
    while first < len(groups):
        begin = groups[first][0]
        while begin > at and run[begin - 1] in "(+":
            begin -= 1
        kind, last = _kind_of(run, begin, groups[first : first + max(_CARDS_BEGIN)])
        end = groups[first + last][1]
        kept += [run[at:begin], kind or run[begin:end]]
        at, first = end, first + last + 1
    return "".join(kept)


def _kind_of(run: str, begin: int, groups: list[tuple[int, int]]) -> tuple[str, int]:
    """What begins with the first group, and its last group; ("", 0) if it is none of these numbers.

    Of several endings the longest is taken.
    """
    first, total, endings = run[groups[0][0]], 0, []
    is_marked = run[begin] in "(+" or first == "0"
    for last, (start, end) in enumerate(groups):
        total += end - start
        if total > max(_CARDS_BEGIN):
            break
        if total >= _FEWEST_DIGITS:
            endings.append((last, total))
    for last, total in reversed(endings):
        number = run[begin : groups[last][1]]
        if first in _CARDS_BEGIN.get(total, "") and _is_card(number):
            return CARD, last
        if total == 9 and last == 2 and _is_social_security(number):
            return NUMBER, last
        if last in (range(8) if is_marked else (2, 3)) and total <= _MOST_OF_PHONE and _is_phone(number):
            return PHONE, last
    return "", 0


def _is_card(number: str) -> bool:
    digits = re.sub(f"[{_BLANKS}]", "", number)
    if not digits.isdigit():
        return False
    doubled = [int(digit) * (1 + at % 2) for at, digit in enumerate(reversed(digits))]
    return sum(number // 10 + number % 10 for number in doubled) % 10 == 0 and len(set(digits)) > 1


def _is_social_security(number: str) -> bool:
    return re.fullmatch("(?!000|666|9)[0-9]{3}-(?!00)[0-9]{2}-(?!0000)[0-9]{4}", number) is not None


def _is_phone(number: str) -> bool:
    """As international numbers are written (ITU-T E.123), as in North America, or with a leading zero."""
    digits = re.sub("[^0-9]", "", number)
    signs = re.sub("[0-9]+", "", number)
    if number.startswith(("+", "(+")):
        return digits[0] != "0" and signs.lstrip("(+") != "."
    if re.match("00[1-9]", number):
        return len(digits) >= 10 and "." not in signs
    groups = [len(group) for group in re.findall("[0-9]+", number)]
    if groups in ([3, 3, 4], [1, 3, 3, 4]):
        return groups[0] == 3 or number[0] == "1"
    is_national = digits[0] == "0" and 9 <= len(digits) <= 12 and len(groups) > 1 and digits[1] != "0"
    return is_national and ((groups[0] > 2 and "." not in signs) or groups == [2] * 5)
