"""Personal details out of a text: what `ibidem_lab.redaction` finds, and what words announce.

A name has no shape that tells it, but people announce it: "my name is", "Dear Mr", "Best regards". So with
dates of birth, home addresses, and the numbers of passports. Other names are found by Presidio, if that is
installed with a spaCy model for English; what it finds is a guess.

As in `ibidem_lab.redaction`, every search takes time linear in the text.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from ibidem_lab.redaction import CARD, NUMBER, PASSWORD, PHONE, secrets

NAME, BORN, ADDRESS, IP, MAC = (
    f"[{kind}]" for kind in ("name", "date of birth", "address", "ip address", "mac address")
)


def personal_details(text: str) -> str:
    """Return the text with each personal detail replaced by its kind in brackets, such as `[name]`.

    All that `ibidem_lab.redaction.secrets` finds, and what words announce: names ("my name is", titles,
    salutations, signatures), dates of birth, home addresses, numbers of identity papers, phone numbers of any
    form; internet addresses that are somebody's, and addresses of devices. With Presidio installed, and a
    spaCy model for English, other names as well.
    """
    shown = by_patterns(text)
    finder = _presidio()
    return shown if finder is None else finder(shown)


def by_patterns(text: str) -> str:
    """As `personal_details`, without Presidio."""
    text = _MAC.sub(MAC, secrets(text))
    text = _IPV6.sub(_ip, _IPV4.sub(_ip, text))
    text = _INSURANCE.sub(NUMBER, text)
    for expression, kind in _ANNOUNCED:
        text = expression.sub(rf"\g<1>{kind}", text)
    text = _PHONE_OF.sub(PHONE, text)
    for expression in _NAMES:
        text = expression.sub(_name, text)
    for expression, kind in _BESIDE_NAMES:
        text = expression.sub(rf"\g<1>{kind}", text)
    return text


# Names --------------------------------------------------------------------------------------------------


def _any(text: str) -> str:
    return f"(?:{'|'.join(text.split())})"


_TITLE = r"(?:Mr|Mrs|Ms|Miss|Mx|Dr|Prof|Professor|Herr|Frau|Mme|Monsieur|Madame|Se\u00f1ora?)\b"
_PARTICLE = _any("van von den der des del de da di du dos la le el al bin ibn ter zu")
_WORD = r"[A-Z\u00c0-\u00de][\w'\u2019.-]{0,40}(?<![.'])"
# What is called so is nobody's name.
_NOBODY = _any(
    "Sir Madam Customers? Teams? All Everyone Everybody Friends? Colleagues? Support Guests? Users? "
    "Members? Clients? Service The Your Our My Hiring Ladies Gentlemen There World Again Valued Parents? "
    "Students? Readers? Diary And What How When Where Why Who Which Can Could May Is Are Do Does I We It "
    "Its This That Not No Yes On In At To From For Of Sorry Sure Please Thanks? Thank If Nobody Optional "
    "Required Unknown None"
)
_A_NAME = (
    rf"(?!{_NOBODY}\b|{_TITLE})(?:(?:[A-Z]\.[ ]?){{1,3}})?{_WORD}(?:[ ](?:{_PARTICLE}[ ]){{0,2}}{_WORD})"
    rf"{{0,3}}"
)
# In chats names are written small. Before these words the name is talked of, not told.
_TALKED_OF = _any(
    "not wrong spelled spelt misspelled missing on in incorrect still no too also already different shown "
    "written printed the a an my your changed being now listed registered displayed never always hard long "
    "to of and or used what that this it for so very back me him her us them up at when if as by after "
    "from with tomorrow today later again optional required unknown none yes full first last"
)
_SMALL = rf"(?!{_TALKED_OF}\b)[a-z\u00df-\u00ff][a-z\u00df-\u00ff'-]{{1,30}}"
_SMALL_NAME = rf"{_SMALL}(?:[ ]{_SMALL}){{0,2}}(?=[ ]*(?:$|[.,;!?\n]|and\b|but\b|i\b))"
_KIND = "(?:full|first|last|middle|maiden|legal|family|given|sur)"
_CLOSING = (
    "(?:kind|best|warm|many)[ ](?:regards|wishes|greetings)|regards|sincerely|thanks|thank you|cheers|"
    "signed|best|love|yours(?: (?:truly|faithfully|sincerely))?"
)
_NAMES = tuple(
    re.compile(expression)
    for expression in (
        rf"(?i:\b(?:(?:my|the|his|her|their) (?:{_KIND} ?)?names?(?:'s| is| are)|i(?: am|'m) called|"
        rf"call me)) {{1,3}}({_A_NAME})",
        rf"(?i:\b(?:my (?:{_KIND} )?name(?:'s| is)|i(?: am|'m) called)) {{1,3}}({_SMALL_NAME})",
        rf"\b[Tt]his is ({_A_NAME})(?= (?:speaking|here|calling|writing|from)\b|[.,!]? (?:[Ii]|[Mm]y)\b)",
        rf"\bI(?: am|'m) (?=\S{{2,40}} (?:from|{_PARTICLE}|[A-Z]))({_A_NAME})(?=[,;]? (?:from|and|with)\b|"
        rf"[,;] )",
        rf"(?im:^[ \t]{{0,8}}(?:(?:customer|user|account|client|patient|guest|contact|"
        rf"{_KIND}) ?)?names?[ \t]{{0,3}}[:=][ \t]{{0,3}})({_A_NAME})(?m:[ \t]*$)",
        rf"(?:\b{_TITLE}\.?[ ]){{1,2}}({_A_NAME})",
        rf"(?m:^[ \t]{{0,4}})(?:Dear|Hi|Hello|Hey|Good (?:morning|afternoon|"
        rf"evening))[ ]({_A_NAME})(?m:(?=[ ]?(?:[,!:.]|$)))",
        rf"(?i:\b(?:{_CLOSING}),?\s{{1,3}})({_A_NAME})(?=\s*$)",
        rf"(?m:^[ \t]{{0,4}}(?:To|From|Cc|Attn|Attention)[ \t]{{0,3}}:[ \t]{{0,3}})({_A_NAME})(?m:(?=[ "
        rf"]*(?:$|[<\[(,;])))",
        rf"\b(?:c/o|attn\.?:?)[ ]({_A_NAME})",
    )
)


def _name(found: re.Match[str]) -> str:
    begin = found.start(1) - found.start()
    return f"{found[0][:begin]}{NAME}{found[0][begin + len(found[1]) :]}"


# Dates, addresses, numbers ------------------------------------------------------------------------------

_MONTH = "(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]{0,6}"
_DATE = (
    rf"(?:[0-9]{{1,4}}[./-][0-9]{{1,2}}[./-][0-9]{{1,4}}|(?:the )?[0-9]{{1,2}}(?:st|nd|rd|th|"
    rf"\.)?(?: of)? {_MONTH},? [0-9]{{2,4}}|{_MONTH}\.? [0-9]{{1,2}}(?:st|nd|rd|th)?,? [0-9]{{4}})"
)
_BORN = re.compile(
    rf"(?i)((?:\b(?:i was|i am|i'm) born(?: on| in)?|(?<=\[name\], )born(?: on)?|\bdate of birth|"
    rf"\bbirth ?date|\bd\.?o\.?b\.?|\b(?:my|his|her) birthday|(?<=\w's) birthday)(?: is)?[ :]{{1,3}})"
    rf"({_DATE})"
)
_KINDS_OF_ADDRESS = "(?:home|postal|billing|shipping|delivery|street|new|old|current)"
# A number and a name, in either order: "Send it to 3 friends" is no address.
_STREET = r"(?-i:(?=[0-9]{1,5}[a-z]?,? [A-Z\u00c0-\u00de]|[A-Z\u00c0-\u00de][^\n.;!?\[]{2,60}?[0-9]))"
_ADDRESS = re.compile(
    rf"(?i)((?:\b(?:i|we) live (?:at|in)|\b(?:my|our|{_KINDS_OF_ADDRESS}) (?:{_KINDS_OF_ADDRESS} )?"
    r"address(?: is|:)|(?:send|deliver|ship)(?: (?:it|them|this|everything))? to(?: \[name\],)?)[ ]{1,3})"
    rf"({_STREET}[^\n;!?\[]{{3,100}}?)(?=[.;!?]?(?:\n|$)|[.;!?] |,? and |\[)"
)
_HOME = re.compile(r"(\[name\], )([0-9]{1,5}[a-z]? [A-Z][^\n.;!?\[]{3,60})")
_BESIDE_NAMES = ((_BORN, BORN), (_ADDRESS, ADDRESS), (_HOME, ADDRESS))

_PAPER = (
    "(?:passport|(?:driver'?s?'?|driving|my) licen[cs]e|national insurance|social security|ssn|nhs|"
    "national id|tax id(?:entification)?|(?:national |identity |id )card|personal (?:id|identity|"
    "identification)|(?:patient|medicare|insurance|health card|permit|visa)(?= (?:id|number|no|nr|#)))"
)
_IDENTITY = re.compile(
    rf"(?i)(\b{_PAPER}(?: (?:number|no\.?|nr\.?|id|#))?(?: is| was)?[ :#]{{1,3}})(?-i:(?=[A-Z0-9 "
    rf"-]{{0,12}}[0-9])([A-Z0-9]{{2,20}}(?:[ -][A-Z0-9]{{1,6}}){{0,5}}\b))(?![ ](?:months?|years?|days?)\b)"
)
_INSURANCE = re.compile(r"\b[A-CEGHJ-PR-TW-Z][A-Z] ?[0-9]{2} ?[0-9]{2} ?[0-9]{2} ?[A-D]\b")  # United Kingdom
_TOLD_PASSWORD = re.compile(
    r"(?i)(\b(?:pass(?:word|code|phrase)|pin)(?: (?:for|of) (?:\w+ )?\w+)? (?:is|"
    r"was) ?:? [\"'`]?)((?=[^\s\"'`]{0,40}[0-9])[^\s\"'`]{4,60}?)(?=[\"'`.,;]{0,2}(?:\s|$))"
)
_DIGITS = r"(\+?[0-9(][0-9 ()./-]{5,18}[0-9])"
_PHONE = re.compile(
    rf"(?i)(\b(?:phone|telephone|tel|mobile|cell(?:phone)?|fax|whatsapp|(?:call|text|reach|"
    rf"ring) me)(?: (?:number|no|nr))?\.?(?: is| at| on| under)?[ :\n]{{1,3}}){_DIGITS}\b"
)
_PHONE_OF = re.compile(rf"(?<![\w.]){_DIGITS}(?=[ ,-]{{1,2}}(?i:office|fax|mobile|cell|home|work)\b)")
_CARD = re.compile(r"(?i)(\bcard(?: number| no\.?)?(?: is)?[ :]{1,3})([0-9](?:[ -]?[0-9]){11,18})\b")
_ANNOUNCED = ((_IDENTITY, NUMBER), (_TOLD_PASSWORD, PASSWORD), (_PHONE, PHONE), (_CARD, CARD))

_MAC = re.compile(r"(?<![\w:-])(?:[0-9A-Fa-f]{2}([:-]))(?:[0-9A-Fa-f]{2}\1){4}[0-9A-Fa-f]{2}(?![\w:-])")
_IPV4 = re.compile(r"(?<![\w.])[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?![\w/]|\.[0-9])")
_IPV6 = re.compile(r"(?<![\w:.])[0-9A-Fa-f:]{2,39}(?![\w:])")
# Four numbers after these words are a version or a section.
_IS_VERSION = re.compile(
    r"(?i)(?:v|ver|version|release[sd]?|firmware|build|driver|update|section|chapter|rev|"
    r"paragraph)[.:]? ?(?:to )?$"
)
_IS_OWN = re.compile(
    r"(?i)(?:my|your|his|her|their|user|client|visitor)(?:'s)? (?:own |public |"
    r"local )?ip(?: address)?(?: is|:)? ?$"
)
_PUBLIC_SERVERS = frozenset(
    map(ipaddress.ip_address, ("8.8.8.8", "8.8.4.4", "1.1.1.1", "1.0.0.1", "9.9.9.9"))
)
# Of no person: this host, private networks, links, groups.
_NOBODYS = tuple(
    map(
        ipaddress.ip_network,
        (
            "0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.168.0.0/16 "
            "224.0.0.0/3 ::/127 fc00::/7 fe80::/10 ff00::/8"
        ).split(),
    )
)


def _ip(found: re.Match[str]) -> str:
    try:
        address = ipaddress.ip_address(found[0])
    except ValueError:
        return found[0]
    before = found.string[max(0, found.start() - 40) : found.start()]
    if _IS_VERSION.search(before) or address in _PUBLIC_SERVERS:
        return found[0]
    is_nobodys = any(address in network for network in _NOBODYS if network.version == address.version)
    return found[0] if is_nobodys and not _IS_OWN.search(before) else IP


# Presidio -----------------------------------------------------------------------------------------------

_MODELS = ("en_core_web_lg", "en_core_web_md", "en_core_web_trf", "en_core_web_sm")  # the first one installed
_KINDS = {"PERSON": NAME, "PHONE_NUMBER": PHONE}  # of the rest the patterns know as much
_SURE = 0.5  # least score; what spaCy takes for a person has .85
_PLACEHOLDER = re.compile(r"\[[a-z ]{2,20}\]")


def description() -> str:
    """Return what `personal_details` finds them by, with versions: for the record."""
    if _presidio() is None:
        return "patterns"
    return f"patterns, presidio-analyzer {version('presidio-analyzer')}, {_model()}"


def _model() -> str:
    """Return the spaCy model to use with its version; "" if none is installed."""
    for name in _MODELS:
        try:
            return f"{name} {version(name.replace('_', '-'))}"
        except PackageNotFoundError:
            continue
    return ""


@cache
def _presidio() -> Callable[[str], str] | None:
    """Return what replaces names by Presidio; None if it, or a model for it, is not installed."""
    if find_spec("presidio_analyzer") is None or not _model():
        return None
    presidio, engines = map(import_module, ("presidio_analyzer", "presidio_analyzer.nlp_engine"))
    models = [{"lang_code": "en", "model_name": _model().split()[0]}]
    configuration = {"nlp_engine_name": "spacy", "models": models}
    engine = engines.NlpEngineProvider(nlp_configuration=configuration).create_engine()
    analyzer = presidio.AnalyzerEngine(nlp_engine=engine, supported_languages=["en"])

    def replaced(text: str) -> str:
        found = analyzer.analyze(text, language="en", entities=[*_KINDS], score_threshold=_SURE)
        return _without(text, found)

    return replaced


def _without(text: str, found: list[Any]) -> str:
    """Replace what was found, the longest where two overlap, and no placeholder."""
    taken = [(one.start(), one.end(), one[0]) for one in _PLACEHOLDER.finditer(text)]
    for one in sorted(found, key=lambda one: (one.start - one.end, one.start)):
        if all(one.end <= begin or end <= one.start for begin, end, _ in taken):
            taken.append((one.start, one.end, _KINDS[one.entity_type]))
    for begin, end, kind in sorted(taken, reverse=True):
        text = f"{text[:begin]}{kind}{text[end:]}"
    return text
