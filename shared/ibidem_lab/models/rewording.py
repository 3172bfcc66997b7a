"""Edits of a question by rule: small ones that keep the answer, and small ones that change it.

Hand-written near misses share most words with their question and rewordings few, so that a model trained on
them alone learns that a small edit means another answer, and refuses typos. Small edits that keep the
answer teach it otherwise.
"""

import random
import re
from collections.abc import Callable, Collection, Sequence

Edit = Callable[[str, random.Random], str | None]


def _pairs(text: str) -> list[tuple[str, str]]:
    """What `this = that; this = that` holds."""
    split = (one.split(" = ") for one in " ".join(text.split()).split("; "))
    return [(left, right) for left, right in split]


# Exchangeable in a question, whichever way round; whole words only.
_EQUAL = _pairs("""
    what is = what's; how do i = how can i; how do i = how to; do not = don't; does not = doesn't; is not =
    isn't; cannot = can't; will not = won't; i am = i'm; i have = i've; it is = it's; who is = who's; where
    is = where's; could you tell me = can you tell me; tell me = let me know; maximum = max; minimum = min;
    buy = purchase; begin = start; often = frequently; need to = have to; movie = film; photo = picture; fix
    = repair; show = display; delete = remove; doctor = physician; percent = %; per cent = percent; for
    example = e.g.; information = info; television = tv; application = app; approximately = about; big =
    large; get = obtain; help = assist; quickly = fast; wrong = incorrect; choose = select; mobile phone =
    cell phone; phone = telephone; repository = repo; database = db; configuration = config; documentation =
    docs; kilometers = km; kilograms = kg; hours = hrs; minutes = mins; colour = color; favourite =
    favorite; organisation = organization; licence = license; centre = center; cancelled = canceled;
    travelling = traveling; programme = program; cheque = check; grey = gray; behaviour = behavior; analyse
    = analyze; united states = US; united kingdom = UK; european union = EU; new york city = NYC; two = 2;
    three = 3; four = 4; five = 5; ten = 10; twelve = 12; twenty = 20; which = what; employees = staff; kids
    = children; lawyer = attorney; flat = apartment
""")
_GREETINGS = (
    "hi, ",
    "hello, ",
    "hey, ",
    "quick question: ",
    "can you tell me, ",
    "just wondering, ",
    "please help: ",
)
_ENDINGS = ("", " thanks", " please", " thx", ", thank you", " :)")


def _exchange(text: str, pairs: Sequence[tuple[str, str]], rng: random.Random) -> str | None:
    """Exchange one word or phrase of a pair that the text has for the other, whichever way round."""
    known = [
        (a, b)
        for x, y in pairs
        for a, b in ((x, y), (y, x))
        if re.search(rf"(?<!\w){re.escape(a)}(?!\w)", text, re.I)
    ]
    if not known:
        return None
    old, new = rng.choice(known)
    return re.sub(rf"(?<!\w){re.escape(old)}(?!\w)", new, text, count=1, flags=re.I)


def equal_words(text: str, rng: random.Random) -> str | None:
    """Exchange one word or phrase for one that means the same."""
    return _exchange(text, _EQUAL, rng)


def typo(text: str, rng: random.Random) -> str | None:
    """Exchange, drop or double a letter inside a long word in small letters (names and codes stay)."""
    tokens = text.split()
    long = [i for i, token in enumerate(tokens) if len(token) > 5 and token.isalpha() and token.islower()]
    if not long:
        return None
    i = rng.choice(long)
    word, k = tokens[i], rng.randrange(1, len(tokens[i]) - 2)
    tokens[i] = rng.choice(
        [
            word[:k] + word[k + 1] + word[k] + word[k + 2 :],
            word[:k] + word[k + 1 :],
            word[:k] + word[k] + word[k:],
        ]
    )
    return " ".join(tokens)


def no_article(text: str, rng: random.Random) -> str | None:
    """Leave out one article."""
    found = list(re.finditer(r"\b(the|a|an) (?=\w)", text))
    if not found:
        return None
    match = rng.choice(found)
    return text[: match.start()] + text[match.end() :]


def polite(text: str, rng: random.Random) -> str | None:
    """Put a greeting before, thanks behind."""
    start = text if text[:2].isupper() or text[:2] == "I " else text[0].lower() + text[1:]
    return rng.choice(_GREETINGS) + start + rng.choice(_ENDINGS)


def careless(text: str, rng: random.Random) -> str | None:
    """Small letters, no punctuation at the end; or a doubled one."""
    return rng.choice(
        [text.lower().rstrip("?.!"), text.rstrip("?.!"), text.rstrip("?.!") + "??", text.lower()]
    )


def time_first(text: str, rng: random.Random) -> str | None:
    """Move the year from the end of a question to its start, or back."""
    if match := re.fullmatch(r"(.+) in ((?:18|19|20)\d\d)\??", text):
        return f"In {match[2]}, {match[1][0].lower()}{match[1][1:]}?"
    if match := re.fullmatch(r"In ((?:18|19|20)\d\d),? (.+?)\??", text):
        return f"{match[2][0].upper()}{match[2][1:]} in {match[1]}?"
    return None


SAME: tuple[Edit, ...] = (
    equal_words,
    equal_words,
    equal_words,
    typo,
    typo,
    no_article,
    polite,
    careless,
    time_first,
)


def other_year(text: str, rng: random.Random) -> str | None:
    """Move a year by one to nine years."""
    years = list(re.finditer(r"(?<![\w.-])(1[89]\d\d|20[0-4]\d)(?![\w.-])", text))
    if not years:
        return None
    match = rng.choice(years)
    year = int(match[0]) + rng.choice([-9, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 9])
    return text[: match.start()] + str(year) + text[match.end() :]


def other_identifier(text: str, rng: random.Random) -> str | None:
    """Change one digit of an identifier: a word of letters and digits, or a version."""
    found = [
        m for m in re.finditer(r"(?<!\w)[\w.-]*\d[\w.-]*", text) if re.search(r"[A-Za-z].*\d|\d\.\d", m[0])
    ]
    if not found:
        return None
    match = rng.choice(found)
    places = [i for i, c in enumerate(match[0]) if c.isdigit()]
    i = match.start() + rng.choice(places)
    return text[:i] + rng.choice([d for d in "123456789" if d != text[i]]) + text[i + 1 :]


DIFFERENT: tuple[Edit, ...] = (other_year, other_identifier)

_EXCHANGED = _pairs("""
    with = without; before = after; enable = disable; increase = decrease; import = export; minimum =
    maximum; first = last; open = close; install = uninstall; buy = sell; lend = borrow; win = lose; encode
    = decode; upload = download; can i = must i; male = female; men = women; largest = smallest; highest =
    lowest; oldest = youngest; longest = shortest; best = worst; north = south; east = west; summer =
    winter; monday = thursday; april = august; born = buried; add = remove; start = stop; employer =
    employee; landlord = tenant; arrive = leave; how many = which; who = when; where = when; why = how; more
    = less; all = none of the
""")


def exchanged(text: str, rng: random.Random) -> str | None:
    """Exchange a word for its opposite or another question word: mostly, not surely, another answer."""
    return _exchange(text, _EXCHANGED, rng)


def other_number(text: str, rng: random.Random) -> str | None:
    """Change a number that stands alone: mostly, but not surely, another answer."""
    found = list(re.finditer(r"(?<![\w.,-])\d{1,3}(?![\w.,-]|\.\d)", text))
    if not found:
        return None
    match = rng.choice(found)
    number = int(match[0])
    return (
        text[: match.start()]
        + str(rng.choice([number + 1, number * 2, max(0, number - 1)]))
        + text[match.end() :]
    )


_FROM_TO = re.compile(r"\bfrom (\w+) (?:in)?to (\w+)\b")
_THAN = re.compile(r"\b([A-Z]\w+) (?:\w+ )?(?:than|over|against|vs) ([A-Z]\w+)\b")


def roles_exchanged(text: str, rng: random.Random) -> str | None:
    """Exchange X and Y in `from X to Y` or `X than Y`: mostly, not surely, another answer."""
    match = _FROM_TO.search(text) or _THAN.search(text)
    if not match:
        return None
    (left, left_end), (right, right_end) = match.span(1), match.span(2)
    return text[:left] + match[2] + text[left_end:right] + match[1] + text[right_end:]


UNSURE: tuple[Edit, ...] = (exchanged, exchanged, other_number, roles_exchanged)


def edited(text: str, edits: Collection[Edit], rng: random.Random) -> str | None:
    """The text after one of the edits that apply to it, chosen at random; `None` if none does."""
    for edit in rng.sample(list(edits), len(edits)):
        result = edit(text, rng)
        if result and result != text:
            return result
    return None
