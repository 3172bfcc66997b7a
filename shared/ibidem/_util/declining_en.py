"""Expressions of `ibidem.examples.flaws`. English; another language is another file.

Each is matched at the beginning of a clause, whatever the case, with straight quotes and single blanks.
"""

from __future__ import annotations


def _any(*alternatives: str) -> str:
    return f"(?:{'|'.join(alternatives)})"


def _words(text: str) -> str:
    return _any(*text.split())


# Who says it, and that it is not done.
I_AM = "(?:i am|i'm)"
CANNOT = _any(
    "i (?:can ?not|can't|cant|can never|will not|won't)",
    f"{I_AM} (?:simply |currently )?(?:unable|not able) to",
    "i (?:will be unable|will not be able|won't be able) to",
)
COULD_NOT = "i (?:could not|couldn't|don't think i can)"
AN_AI = (
    r"an? (?:[\w-]+ ){0,2}(?:ai|artificial intelligence|(?:large )?language model|llm|chat ?bot|"
    r"virtual assistant|assistant|machine)(?: language)?(?: model| assistant| system|"
    r" chat ?bot)?(?: (?:developed|created|made|trained|built) by [\w ]{1,30})?"
)
LEAD = (
    "(?:"
    + _any(
        _words(
            "no nope well oh oops ok okay hm hmm sorry while although though as however but and so therefore"
        ),
        r"(?:i'm|i am|we're|we are) (?:\w+ )?(?:sorry|afraid)(?: that)?",
        r"(?:i |my )?(?:sincere(?:ly)? )?apolog(?:ize|ise|ies)(?: for \w+ \w+)?",
        "unfortunately|regrettably|sadly|please note that|at this time",
        f"as {AN_AI},?(?: and)?",
        r"(?:for|due to|because of|according to|under) (?:[\w']+ ){1,4}?(?:reasons?|polic(?:y|ies)|rules|"
        r"guidelines|law)",
    )
    + r"[\s,:!-]{0,3}){0,4}"
)

# What is not done. After some words the same verbs are no refusal: "I can't help but", "I can't recommend it
# enough", "I cannot continue my membership".
HELP = _any(
    _words(
        "help assist fulfil fulfill comply accommodate oblige engage participate proceed answer respond "
        "reply provide generate produce create write compose draft discuss share disclose reveal comment "
        "speculate advise offer endorse browse access retrieve predict perform complete execute support do "
        "give tell say talk make send place open view see recommend suggest diagnose continue process "
        "promote judge express teach show explain describe handle verify confirm check change cancel book "
        "call translate summarise summarize"
    ),
    "be (?:providing|helping|assisting|answering|writing|creating|generating|giving|sharing|discussing|"
    "doing)|go (?:on|into|there)|carry out|look up|have an opinion",
)
NOT_MEANT = (
    r"(?! but\b|(?<=help) \w+ing\b| any (?:errors?|mistakes?|bugs?|problems?|issues?|reasons?)\b|"
    r"[^.!?]{0,40}\b(?:enough|highly)\b|[^.!?]{0,80}\bmy\b(?! (?:\w+ )?(?:address|number|name|guidelines|"
    r"training|programming|knowledge|capabilities|data|records)))"
)
# What somebody cannot do of whom it is said for other reasons: "I can't wait", "I can't find any mistakes".
PHRASES = _words(
    "wait imagine think believe stress emphasise emphasize praise thank complain agree promise guarantee "
    "stand afford remember find locate determine identify derive extract resist deny overstate wish blame "
    "regret"
)
NEVER_DONE = _words(
    "provide offer give answer discuss engage comment assist help support participate endorse promote browse"
)
OUR_POLICY = (
    r"(?:my|our|openai's|the (?:usage|content)) (?:\w+ ){0,2}(?:guidelines?|polic(?:y|ies)|programming|"
    r"principles?|rules|ethics|values|terms)"
)
THIS_REQUEST = _any(
    r"this|that|it|(?:your|this|that|the) (?:request|question|message|topic|subject)",
    r"(?:\w{2,20}ing|such|content)\b[^.,]{0,60}",
)
REFUSALS = (
    rf"{CANNOT} (?:\w+ly |in good conscience |possibly )?(?!{PHRASES}\b)[a-z]+\b{NOT_MEANT}",
    rf"{COULD_NOT} (?:\w+ly )?{HELP}\b{NOT_MEANT}",
    rf"i (?:do not|don't) (?:\w+ly )?{NEVER_DONE}\b{NOT_MEANT}",
    rf"{I_AM} (?:simply |just )?not (?:allowed|permitted|programmed|designed|authori[sz]ed|equipped|"
    rf"qualified|trained|supposed|meant|in a position|comfortable|willing|going)(?:$| to {HELP}\b| (?:with|"
    rf"doing|answering|writing|generating|creating|discussing|providing|sharing)\b)",
    rf"{I_AM} not an? \w+(?: \w+)?,? (?:and|so) (?:i )?(?:can ?not|can't|am not able to)\b",
    r"(?:can ?not|can't|unable to|not able to) (?:help|assist|do|answer|process|comply|share) (?:with |"
    r"you )?(?:that|this|you|it|your)\b",
    r"it(?:'s| is) (?:not possible|impossible) for me\b|i no longer have access\b",
    rf"{I_AM} (?:unwilling|not capable of|incapable of)\b",
    r"i (?:must |have to |need to |will |would )?(?:\w+ly )?(?:decline|refuse|pass on|say no)\b",
    r"i(?: would|'d) (?:rather|prefer) not\b|i prefer not\b|i (?:do not|don't) feel (?:comfortable|able)\b",
    r"i (?:(?:do not|don't) have (?:the |any |direct )?|have no |lack (?:the |any )?)(?:abilit|capabilit|"
    r"capacit|access|permission|personal|real-time|feelings|emotions|opinion|authori)",
    rf"(?:i (?:can|may)|{I_AM} (?:able|here) to) only (?:answer|help|assist|discuss|respond|talk|"
    rf"provide)\b",
    rf"{I_AM} (?:only|just) able to\b|{I_AM} (?:only )?here to (?:help|assist|answer)\b[^.]{{0,60}}\bonly$",
    rf"{I_AM} (?:only |just |merely )?{AN_AI},?(?: and| so)? (?:i )?(?:do not|don't|can ?not|can't|have no|"
    rf"am not|lack)\b",
    rf"(?:this|that|it)(?:'s| is) (?:something|a (?:topic|question|subject)) (?:that |which )?(?:{CANNOT}|"
    rf"{I_AM} not (?:allowed|permitted|able) to)\b",
    rf"{I_AM} still learning how to\b|let's (?:talk about|change|discuss) (?:something else|the subject|"
    rf"another)",
    r"i (?:did not|didn't|do not|don't|could not|couldn't) (?:quite |fully |really )?(?:(?:understand|"
    r"catch) (?:your|that|what you|the question)|get that)\b",
    rf"as {AN_AI},? i\b[^.]{{0,30}}(?:not\b|n't\b|no\b|only\b|lack\b)",
    r"(?:(?:this|that|it)(?:'s| is)|[^.,]{1,60} is) not something (?:that )?(?:i|we)\b",
    rf"{THIS_REQUEST}(?:'s| is| falls| lies)? ?(?:outside|beyond|out of)[^.]{{0,30}} (?:my|i|we)\b",
    rf"{THIS_REQUEST}[^.,]{{0,10}} (?:(?:goes?|going|is|are|would (?:go|be)) against|violates?|"
    rf"would violate|conflicts? with) {OUR_POLICY}|(?:this|that|it)'s against {OUR_POLICY}",
    r"it(?:'s| is| would be| wouldn't be| would not be| isn't| is not) (?:not )?(?:be )?(?:inappropriate|"
    r"appropriate|unethical|ethical|irresponsible|responsible|right|wrong|improper|proper|harmful) (?:for|"
    r"of) me\b",
    r"we (?:can ?not|can't|won't|will not|are unable to|are not able to) (?:\w+ly )?(?:(?:help|"
    r"assist)(?: you)? with|answer|process|fulfill?|comply with|comment on) (?:this|that|your|such)\b",
    r"(?:our|this|the) (?:\w+ )?(?:assistant|chat ?bot|bot|model) (?:can ?not|can't|is unable to|"
    r"is not able to) (?:help|assist|answer|respond)\b",
)

# That there is no answer: mostly of the documents behind it.
_SOURCES = (
    "(?:context(?: information)?|documents?|documentation|texts?|passages?|sources?|knowledge base|articles?|"
    "excerpts?|snippets?|search results|materials?)"
)
_GIVEN = "(?:provided|given|retrieved|supplied|available|above|following)"
_AFTER = r"(?: (?:provided|given|above|available|that (?:you|was|were|is) \w+(?: \w+)?|i have))"
SOURCE = (
    rf"(?:the |this |these |any of the |my |our )?(?:(?:{_GIVEN} )?{_SOURCES}{_AFTER}?|"
    rf"{_GIVEN} (?:information|data|content|manual|file)|(?:information|data|content|manual|file){_AFTER})"
)
ANYTHING = _any(
    "any? (?:relevant |specific |further |more )?(?:information|details?|data|answer|mention|documents?|"
    "results?|records?|references?|sources?)",
    "anything|the (?:answer|information)|an answer|this|that|it",
)
KNOWLEDGE = "(?:information|idea|data|details?|knowledge|records?|context|clue)"
NO_ANSWERS = (
    rf"{SOURCE} (?:do|does|did)(?: not|n't) (?:seem to )?(?:contain|mention|provide|include|specify|say|"
    rf"cover|describe|state|address|answer|give|discuss|indicate|tell|explain|offer|have (?:any|enough|"
    rf"information|the answer))\b",
    rf"{SOURCE} (?:says?|mentions?|contains?|gives?|has|have|holds?) (?:nothing|no (?:\w+ )?(?:information|"
    rf"mention|details?|answer|article|entry|data))\b",
    rf"(?:none of|nothing in) {SOURCE} (?:answers?|contains?|mentions?|says?|provides?|gives?|addresses|"
    rf"states?)\b",
    rf"there(?:'s| is| are| was|'re|isn't| isn't) ?(?:no|not|nothing)?\b[^.]{{0,80}}\b(?:in|from|"
    rf"within) {SOURCE}",
    r"there(?:'s| is| isn't)(?: not| no)? (?:enough|sufficient|insufficient) (?:\w+ )?(?:context|"
    r"information|data|details?)\b",
    r"i (?:really |honestly |simply )?(?:do not|don't) know(?:$|, (?:sorry|unfortunately)|(?: the answer|"
    r" that| this| it| one| either| about (?:this|that)| anything about| enough)\b)",
    rf"{I_AM} not (?:really |entirely |quite )?(?:sure|certain)(?: (?:about|of) (?:this|that|"
    rf"it)(?: one)?)?$",
    rf"{SOURCE} (?:is|are) (?:insufficient|not (?:sufficient|enough))\b",
    r"i found (?:nothing (?:about|on|in|regarding)|no (?:\w+ )?(?:information|mention|results?|articles?|"
    r"documents?|details?|answer))\b",
    rf"(?:i|we) have (?:no|insufficient|not enough) (?:\w+ )?{KNOWLEDGE}\b",
    r"(?:i|we) (?:do not|don't) have an(?:y|) answer\b",
    rf"(?:i|we) (?:do not|don't) have (?:any |enough |sufficient |specific |the |that |"
    rf"this )?(?:\w+ )?{KNOWLEDGE}\b",
    rf"(?:{CANNOT}|i (?:could not|couldn't|do not|don't|did not|didn't|was unable to|was not able to|"
    rf"wasn't able to|have not been able to|haven't been able to)) (?:find|locate|see|determine|identify|"
    rf"tell|derive|extract) (?:out )?(?:{ANYTHING}\b|from)",
    rf"it(?:'s| is) (?:not possible|impossible|unclear|not clear|unknown)\b[^.]{{0,60}}\b(?:from|in|"
    rf"by) {SOURCE}",
    rf"(?:the (?:requested )?(?:answer|information|question)|that|this(?: information| question)?|it|"
    rf"they)[^.,]{{0,60}} (?:is|are|was|were|can|could|does)(?: ?not|n't)\b[^.]{{0,60}}\b(?:in|from|by|"
    rf"with|on|using|given) {SOURCE}",
    rf"(?:no|not enough) (?:\w+ )?(?:information|details?|mention|answer)\b[^.]{{0,40}} in {SOURCE}$",
    r"(?:my|the|your) search (?:returned|gave|found|yielded) (?:no|nothing)\b[^.]{0,20}$",
)
BASED_ON = rf"(?:(?:based|judging|going) (?:up)?on|according to|from|given|with|in) {SOURCE}(?: alone)?,? ?"
CANNOT_SAY = (
    r"(?:i|we) (?:can ?not|can't|am unable to|am not able to) |i'm (?:unable|not able) to |there is (?:no|"
    r"not)|it(?:'s| is) (?:not (?:possible|clear|specified|mentioned|stated|given|provided)|impossible|"
    r"unclear|unknown)|the answer is (?:not|unknown|unclear)"
)
# The whole of an answer.
NOTHING = _any(
    "n/?a|unknown|unanswerable|empty response|no idea|nothing (?:was )?found",
    rf"(?:(?:the )?(?:answer|information) (?:is )?)?not (?:found|mentioned|specified|provided|stated|"
    rf"available|given)(?: in {SOURCE})?",
    "(?:no|not enough|insufficient) (?:relevant |matching |further )?(?:information|documents?|results?|"
    "data|context|answers?|sources?|details?|response|articles?|entries|matches)(?: (?:was|were|is|"
    "are))?(?: (?:found|available|given|provided|retrieved))?",
)

# What says nothing, before a refusal or after it: courtesy, offers, advice to ask somebody else, reasons.
COURTESY = _any(
    r"(?:i'm |i am |we're |we are )?(?:\w+ )?sorry\b|(?:i |my )?(?:\w+ )?apolog|thank|hello|hi\b|hey\b",
    r"(?:that's an? |great |good |interesting )(?:\w+ )?question",
    r"(?:while )?i (?:do )?(?:fully |completely )?(?:understand|appreciate|see|get|hear)\b|i(?:'ve|"
    r" have)? (?:looked|searched|checked)\b",
    "(?:unfortunately|no|your request|of course|regrettably|sadly|hmm?|oops|well|oh|ok|okay)$",
    rf"{BASED_ON}$",
    r"(?:for|due to|because of|according to|under) (?:[\w']+ ){1,4}?(?:reasons?|polic(?:y|ies)|rules|"
    r"guidelines|law)$",
    rf"(?:as {AN_AI},? ?)?(?:$|(?:i'm|i am|i was|i have been|i|my)\b ?(?:strive|must|follow|adhere|value|"
    rf"aim|purpose|role|knowledge|training|designed|programmed|trained|here|committed|built|(?:only |just |"
    rf"merely )?{AN_AI})\b)",
)
BESIDE = _any(
    r"(?:\w+,? ){0,2}"
    + _any(
        r"if (?:you|there)|is there|are there|let me know|feel free|please|(?:can|may|could) i|(?:would|"
        r"could|do) you",
        r"don't hesitate|remember|such\b",
        "you (?:can|may|might|should|could) (?:want to |wish to |also |try to )?(?:contact|consult|ask|"
        "reach|speak|talk|call|seek|visit|check|rephrase)",
        r"i(?:'d|'m|'ll|'ve)\b|i (?:would|can|am|will|have|encourage|suggest|recommend|advise|hope|only|"
        r"was)\b",
        "my (?:knowledge|purpose|role|training|capabilities)",
        r"it(?:'s| is| can be| would be| may be) (?:\w+ )?(?:important|crucial|essential|illegal|harmful|"
        r"unethical|dangerous|against|best|wrong|unlawful|inappropriate)",
        r"this (?:is|would|could|may|can) (?:be )?(?:\w+ )?(?:illegal|harmful|unethical|dangerous)",
    ),
    r"[^.]{0,60}\b(?:is|are|would be|can be) (?:\w+ ){0,2}(?:illegal|crime|harmful|unethical|dangerous|"
    r"against the law)\b",
)
# Words of lectures, wherever they stand in what follows a refusal.
LECTURE = (
    r"\b(?:respect(?:s|ed|ful|fully|ing)?|(?:un)?ethical(?:ly)?|harm(?:s|ed|ful|ing)?|legal(?:ly)?|"
    r"responsib\w+|discriminat\w+|counsell?ors?|confidential(?:ity)?|authori(?:ties|[sz]ed)|"
    r"copyright(?:ed)?|"
    + _words(
        "privacy dignity ethics moral illegal unlawful crime crimes criminal dangerous offensive "
        "inappropriate stereotype stereotypes violence violent cruelty consequences professional "
        "professionals therapist therapists wellbeing well-being guidelines hateful derogatory "
        "disrespectful inclusive consent trusted misinformation breach"
    )
    + r")\b"
)

STATUS = _any(
    "too many requests|internal server error|bad gateway|bad request|unauthorized|forbidden|not found",
    r"(?:service|server) (?:\w+ )?unavailable|invalid or incomplete response|(?:max_tokens|deadline|"
    r"context length|token limit|limit) exceeded|max retries exceeded(?: with url: \S{1,80})?|(?:failed|"
    r"unable) to (?:connect|fetch|load|reach|parse|retrieve|call|execute|process|get)\b[^.?!]{0,80}|"
    r"gateway time-?out|request time-?out|request timed out|timed? ?out",
    "rate limit (?:exceeded|reached|hit)|quota exceeded|connection (?:refused|reset|error|timed out)",
)
# The whole of an answer.
FAILED = (
    rf"(?:sorry,? |oops[!,.]? )?(?:(?:http )?[45][0-9]{{2}}[ :-]{{1,3}}{STATUS}|{STATUS}|"
    rf"something went wrong|an? (?:\w+ )?error (?:has )?occurred(?: (?:while|when|"
    rf"during)\b[^.!]{{0,80}})?)[.,!]{{0,3}}(?:\s+(?:sorry\b|please\b|try\b|retry\b|"
    rf"the server\b)[^.!]{{0,80}}[.!]?){{0,2}}\s*"
)
# How a message of an error begins.
FAILURE = _any(
    r"(?:error|exception|fatal|failure)(?: code| occurred)?: |error \w+ing [^.:]{1,60}: |"
    r"could not parse llm output|tool (?:call )?(?:error|failed|failure)\b|agent stopped due to",
    r"(?:sorry,? )?(?:i|we) (?:\w+ )?(?:encountered|ran into|got|hit) an? (?:\w+ )?(?:error|exception|"
    r"issue|problem)",
    r"the (?:server|model|service) is (?:currently |temporarily )?(?:overloaded|unavailable|down)\b",
    "this model's maximum context length|the tool (?:returned|raised|reported) an (?:error|exception)",
)

# A text that begins with an error may explain it.
EXPLAINED = (
    r"\b(?:happens|means|occurs|indicates|is (?:raised|returned|thrown|shown))\b|[.!] (?!please\b|try\b|"
    r"retry\b|sorry\b|see\b|the\b|you\b|max\b|http)[a-z]+ \w+ \w+"
)

# Words that end no sentence, or hardly ever one without a full stop.
GOES_ON = frozenset(
    (
        "a an the and or nor because although if than whose unless whereas except into onto upon per via "
        "during towards my your our their his its every each such whether"
    ).split()
)
