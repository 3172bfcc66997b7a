"""Word lists of the parser, the guards and the scorer. English; another language is another file."""

from __future__ import annotations

FILLERS = frozenset(
    (
        "a an the please kindly hi hello hey thanks thank just really actually also so then well okay ok "
        "um uh of am are is was were be been being do does did done doing have has had having will shall "
        "get got go there here this that these those it its such tell show list give find display know "
        "want wish like would can could may might help need let see look about information detail some "
        "any which what honestly seriously basically possibly quickly mind telling wondering wonder "
        "curious explain mean btw"
    ).split()
)
PREPOSITIONS = frozenset(
    (
        "from to before after by into onto over under between until till since at in on for with within "
        "during through against out off up down around near above below than toward towards"
    ).split()
)
_PERSONS = {
    "i": "i me my mine myself", "you": "you your yours", "he": "he him his", "she": "she her hers",
    "we": "we us our ours", "they": "they them their theirs",
}  # fmt: skip
PERSONS = {word: person for person, words in _PERSONS.items() for word in words.split()}
SPEAKERS = frozenset("i you he she we they me him her us them".split())
SUBJECTS = frozenset("i he she we they".split())
QUESTION_WORDS = {"who": "who", "whom": "who", "whose": "who", "when": "when", "where": "where", "why": "why"}
_OTHER_SMALL = frozenset(
    (
        "should must all every each only both either more less fewer most least many much few same other "
        "another else next last first always ever never again still already yet except too enough or and "
        "if no not as how because while though although but nor"
    ).split()
)
SMALL_WORDS = FILLERS | PREPOSITIONS | frozenset(PERSONS) | frozenset(QUESTION_WORDS) | _OTHER_SMALL
_COMPARISONS = {
    "less": "before earlier less fewer shorter smaller lower under below until cheaper younger max maximum",
    "more": "after later more greater longer larger bigger higher over above exceeding older since min "
    "minimum",
    "equal": "exactly equal same", "or": "or either", "other": "other another except besides different",
    "least": "least", "most": "most", "only": "by only both", "and": "and also", "than": "than as",
}  # fmt: skip
COMPARISONS = {word: kind for kind, words in _COMPARISONS.items() for word in words.split()}
DIRECTIONS = frozenset(
    (
        "from to into onto before after until since by over under through between at in on for with "
        "against than of"
    ).split()
)
# Prepositions of which one may stand for another without changing what is asked: "prices for", "prices of".
INTERCHANGEABLE = frozenset(
    frozenset((a, b))
    for words in (
        "in on at of within during into", "to into of for until till", "for on of about", "with in by",
        "from of off", "by through", "over above", "under below", "than to",
        "toward towards to", "around near at in",
    )
    for a in words.split()
    for b in words.split()
)  # fmt: skip
SAME_DIRECTION = {"into": "to", "onto": "to", "until": "to", "since": "from"}
CONTRARY = frozenset(
    (a, b) for x, y in (("from", "to"), ("before", "after"), ("over", "under")) for a, b in ((x, y), (y, x))
)
NEGATIONS = frozenset(
    "not no never without none nor neither nobody nothing nowhere except excluding unless non".split()
)
# As written, before contractions are expanded.
WRITTEN_NEGATIONS = NEGATIONS | frozenset(
    (
        "cannot cant dont doesnt didnt isnt arent wasnt werent wont wouldnt shouldnt couldnt hasnt havent "
        "hadnt mustnt"
    ).split()
)
CONTRACTIONS = {
    "i'm": "i am", "im": "i am", "i've": "i have", "ive": "i have", "i'd": "i would", "i'll": "i will",
    "whats": "what is", "let's": "let us", "can't": "can not", "cannot": "can not", "cant": "can not",
    "won't": "will not", "wont": "will not", "dont": "do not", "doesnt": "does not", "didnt": "did not",
    "isnt": "is not", "arent": "are not", "wasnt": "was not", "you're": "you are", "you've": "you have",
    "we're": "we are", "they're": "they are", "it's": "it is", "that's": "that is", "there's": "there is",
    "what's": "what is", "who's": "who is", "where's": "where is", "how's": "how is", "when's": "when is",
    "wheres": "where is", "hows": "how is", "whos": "who is", "you'll": "you will",
    "should've": "should have",
}  # fmt: skip

# How a yes-or-no question begins: the answer depends on it.
MODES = {
    word: mode
    for mode, words in {
        "may": "can could may might", "must": "must", "should": "should ought", "will": "will shall",
        "did": "did", "does": "do does", "is": "is are am", "was": "was were", "has": "has have",
    "had": "had",
        "would": "would",
    }.items()
    for word in words.split()
}  # fmt: skip
# Prefixes of words that are not misspellings of each other: hypertension, hypotension.
DISTINCT_PREFIXES = (
    ("hyper", "hypo"), ("inter", "intra"), ("micro", "macro"), ("pre", "post"), ("endo", "exo"),
    ("import", "export"), ("ante", "anti"), ("over", "under"), ("mono", "poly"), ("in", "ex"),
)  # fmt: skip
# Modes that never share an answer.
CONTRASTS = frozenset(
    frozenset(pair.split())
    for pair in (
        "may must|may should|must should|did does|did will|does will|is was|is will|was will".split("|")
    )
)
# Modes that do not in "when may I", "what must I": fewer, as "what can I do" is "what should I do".
CONTRASTS_WITHIN = frozenset(frozenset(pair.split()) for pair in "may must|must should|was will".split("|"))
TENSES = {
    word: time
    for time, words in {"past": "did was were had", "now": "do does is are has", "later": "will"}.items()
    for word in words.split()
}
ASKED_FOR = {word: word for word in "who what when where why how".split()}
QUANTIFIERS = {
    word: kind
    for kind, words in {"all": "all every each always", "any": "any some sometimes ever"}.items()
    for word in words.split()
}  # fmt: skip

# Abbreviations and short forms -> their expansions. None that is a word of its own as well.
SHORT_FORMS = {
    "nyc": "new york city", "uk": "united kingdom", "usa": "united states", "uae": "united arab emirates",
    "eu": "european union", "irs": "internal revenue service", "vat": "value added tax",
    "dob": "date of birth",
    "info": "information", "tv": "television", "km": "kilometer", "kms": "kilometer", "cm": "centimeter",
    "mm": "millimeter", "kg": "kilogram", "kilo": "kilogram", "kilos": "kilogram", "lb": "pound",
    "lbs": "pound", "oz": "ounce", "ft": "foot", "feet": "foot", "hr": "hour", "hrs": "hour",
    "mins": "minute",
    "secs": "second", "sec": "second", "ml": "milliliter", "tsp": "teaspoon", "tbsp": "tablespoon",
    "temp": "temperature", "approx": "approximately", "dept": "department", "govt": "government",
    "vs": "versus", "app": "application", "apps": "application", "pic": "picture", "pics": "picture",
    "photo": "photograph", "photos": "photograph", "fridge": "refrigerator", "phone": "telephone",
    "phones": "telephone", "bike": "bicycle", "bikes": "bicycle", "exam": "examination",
    "exams": "examination", "avg": "average", "acct": "account", "db": "database", "js": "javascript",
    "mph": "miles per hour", "ad": "advertisement", "ads": "advertisement", "docs": "documents",
    "repo": "repository", "config": "configuration", "pls": "please", "plz": "please", "thx": "thanks",
    "u": "you", "ur": "your", "wifi": "wi fi", "men": "man", "women": "woman", "children": "child",
    "kids": "child", "kid": "child", "teeth": "tooth", "mice": "mouse", "asap": "soon", "dr": "doctor",
    "apt": "apartment", "id": "identification", "covid": "covid", "ac": "air conditioning",
    "purchase": "buy", "automobile": "car", "automobiles": "car", "automobile's": "car",
}  # fmt: skip

# British spellings that no rule of `ibidem.matching.text` covers -> American ones.
SPELLINGS = dict(
    pair.split()
    for pair in (
        "colour color|flavour flavor|neighbour neighbor|labour labor|harbour harbor|humour humor|"
        "honour honor|behaviour behavior|favour favor|favourite favorite|tumour tumor|rumour rumor|"
        "vapour vapor|armour armor|odour odor|savour savor|vigour vigor|rigour rigor|parlour parlor|"
        "centre center|theatre theater|metre meter|litre liter|fibre fiber|kilometre kilometer|"
        "centimetre centimeter|millimetre millimeter|millilitre milliliter|catalogue catalog|"
        "dialogue dialog|analogue analog|programme program|aluminium aluminum|sulphur sulfur|tyre tire|"
        "kerb curb|grey gray|cheque check|plough plow|mould mold|moult molt|defence defense|"
        "offence offense|licence license|practise practice|pyjamas pajamas|mum mom|moustache mustache|"
        "anaemia anemia|diarrhoea diarrhea|oestrogen estrogen|paediatrician pediatrician|"
        "paediatric pediatric|haemorrhage hemorrhage|foetus fetus|manoeuvre maneuver|jewellery jewelry|"
        "fulfil fulfill|enrol enroll|enrolment enrollment|instalment installment|skilful skillful|"
        "travelling traveling|traveller traveler|cancelled canceled|cancelling canceling|"
        "modelling modeling|labelled labeled|draught draft|doughnut donut|yoghurt yogurt|omelette omelet|"
        "sceptical skeptical|judgement judgment|ageing aging|haemoglobin hemoglobin|leukaemia leukemia|"
        "orthopaedic orthopedic|encyclopaedia encyclopedia|archaeology archeology|caesarean cesarean|"
        "whisky whiskey|maths math|burnt burned|learnt learned|spelt spelled|dreamt dreamed|"
        "woollen woolen|marvellous marvelous|disc disk|counsellor counselor|cosy cozy|chilli chili|"
        "per_cent percent"
    ).split("|")
)

# Words that do not say who does what to whom: articles, auxiliaries; and polite words around a question.
UNSTRESSED = frozenset(
    (
        "a an the just really actually also so well okay ok um uh am are is was were be been being do does "
        "did done have has had having will shall would can could may might must should there this that "
        "these those it its such any some honestly basically currently ever already still"
    ).split()
)
POLITE = frozenset("please kindly thank thanks hi hello hey you".split())
# Question words that may be the object; forms of "be" or "get" before a participle.
ASKED_OBJECTS = frozenset("who whom what which how whose".split())
PASSIVE = frozenset("am are is was were be been being get gets got getting".split())
OBJECTS = {"me": "i", "him": "he", "us": "we", "them": "they"}
# Words between equals: exchanging the two changes nothing. LEADS: words after which the order counts.
LINKS = frozenset("and or vs versus nor".split())
LEADS = frozenset("from to into before after than then".split())
EQUALS = LINKS | frozenset("same as equal similar different differ both like but".split())
# Irregular forms of verbs -> the verb.
_IRREGULAR = """
beat beaten|bear bore borne|become became|begin began begun|bend bent|bite bit bitten|bleed bled|
blow blew blown|break broke broken|breed bred|bring brought|build built|burn burnt|buy bought|
catch caught|choose chose chosen|come came|cut|deal dealt|dig dug|do did done|draw drew drawn|
drink drank drunk|drive drove driven|eat ate eaten|fall fell fallen|feed fed|feel felt|fight fought|
find found|flee fled|fly flew flown|forbid forbade forbidden|forget forgot forgotten|
forgive forgave forgiven|freeze froze frozen|get got gotten|give gave given|go went gone|
grow grew grown|hang hung|hear heard|hide hid hidden|hit|hold held|hurt|keep kept|know knew known|
lay laid|lead led|leave left|lend lent|let|light lit|lose lost|make made|mean meant|meet met|
overtake overtook overtaken|owe owed|sue sued|use used|tie tied|die died|lie lied|pay paid|put|quit|
read|ride rode ridden|ring rang rung|rise rose risen|run ran|say said|see saw seen|seek sought|
sell sold|send sent|set|shake shook shaken|shoot shot|show showed shown|shut|sing sang sung|
sink sank sunk|sit sat|sleep slept|speak spoke spoken|spend spent|split|spread|steal stole stolen|
stick stuck|sting stung|strike struck stricken|swear swore sworn|sweep swept|swim swam swum|swing swung|
take took taken|teach taught|tear tore torn|tell told|think thought|throw threw thrown|
understand understood|wake woke woken|wear wore worn|weave wove woven|win won|wind wound|
withdraw withdrew withdrawn|write wrote written|bind bound|cast|cling clung|creep crept|grind ground|
kneel knelt|leap leapt|lean leant|mistake mistook mistaken|outdo outdid outdone|
override overrode overridden|overcome overcame|rebuild rebuilt|shed|shrink shrank shrunk|
slay slew slain|sling slung|spin spun|spit spat|spring sprang sprung|strive strove striven|thrust|
undo undid undone|upset|weep wept|wring wrung
"""
IRREGULAR = {form: forms[0] for forms in (verb.split() for verb in _IRREGULAR.split("|")) for form in forms}

# Words that say how a sentence is built, not what it is about.
COMMON_WORDS = frozenset(
    (
        "a an and are as at be been but by can could did do does for from had has have he her his "
        "how i if in into is it its may more most no not of on one or our she so some such than "
        "that the their them then there these they this those to was we were what when where "
        "which who whose why will with would you your"
    ).split()
)

# Words whose place in the sentence says who does what to whom, and where from.
ROLE_WORDS = frozenset(
    (
        "from to before after by into for over under through i you he she we they my your his her our their"
    ).split()
)

# Common words that mean something else in capitals.
OTHER_IN_CAPITALS = COMMON_WORDS | frozenset("us who aids am pm may led sat nice pole".split())

# Without "one", which is a pronoun more often than a number.
_SMALL = "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
_ORDINALS = (
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth "
    "fifteenth sixteenth seventeenth eighteenth nineteenth twentieth"
)
NUMBER_WORDS = {
    "zero": "0", "seventeen": "17", "eighteen": "18", "nineteen": "19", "twenty": "20", "thirty": "30",
    "forty": "40", "fifty": "50", "sixty": "60", "seventy": "70", "eighty": "80", "ninety": "90",
    "hundred": "100", "thousand": "1000", "million": "1000000", "billion": "1000000000",
    "thirtieth": "30", "hundredth": "100", "dozen": "12",
    "half": "1/2", "twice": "2", "double": "2", "triple": "3",
}  # fmt: skip
NUMBER_WORDS |= {word: str(value) for value, word in enumerate(_SMALL.split(), start=2)}
NUMBER_WORDS |= {word: str(value) for value, word in enumerate(_ORDINALS.split(), start=1)}

_MONTHS = "january february march april june july august september october november december"
_WEEKDAYS = "monday tuesday wednesday thursday friday saturday sunday"
_OTHER_DATES = (
    "today yesterday tomorrow tonight weekend weekday currently latest nowadays spring summer autumn "
    "winter morning afternoon evening noon midnight"
)
DATES = {word: word for word in f"{_MONTHS} {_WEEKDAYS} {_OTHER_DATES}".split()}
DATES |= {day + "s": day for day in _WEEKDAYS.split()}
# Without "may", "mar", "sat" and "sun", which are other words more often.
DATES |= {month[:3]: month for month in _MONTHS.split() if month != "march"} | {"sept": "september"}
DATES |= {day[:3]: day for day in "monday tuesday wednesday thursday friday".split()}

# Words that tell one of a row from the others -> which one.
POINTING = {
    word: kind
    for kind, words in {
        "this": "this current present", "last": "last latest previous past preceding",
        "next": "next coming upcoming following", "first": "first earliest",
    }.items()
    for word in words.split()
}  # fmt: skip

# Units of measure by the one name they go under here.
UNITS = {
    name: unit
    for unit, names in {
        "second": "second seconds sec secs", "minute": "minute minutes min mins", "hour": "hour hours hrs",
        "day": "day days", "week": "week weeks", "month": "month months", "year": "year years",
        "km": "km kilometer kilometers kilometre kilometres", "mile": "mile miles", "cm": "cm", "mm": "mm",
        "meter": "meter meters metre metres", "inch": "inch inches", "foot": "foot feet",
        "yard": "yard yards",
        "kg": "kg kilo kilos kilogram kilograms", "gram": "gram grams", "pound": "pound pounds lb lbs",
        "kb": "kb kilobyte kilobytes", "mb": "mb megabyte megabytes", "gb": "gb gigabyte gigabytes",
        "tb": "tb terabyte terabytes", "dollar": "dollar dollars usd", "euro": "euro euros eur",
        "celsius": "celsius", "fahrenheit": "fahrenheit", "liter": "liter liters litre litres",
        "gallon": "gallon gallons", "percent": "percent percentage",
    }.items()
    for name in names.split()
}  # fmt: skip

# Symbols of units behind a number; single letters only where they are not initials of their units.
UNIT_SYMBOLS = frozenset(UNITS.values()) | frozenset(
    (
        "am pm k m bn mn x ml dl cl mg mcg oz ft in yd mi mph kmh kph kw kwh mw mv kv ma mah hz khz mhz ghz "
        "bit kbit mbit gbit mbps gbps kbps pb px pt em rem ms sq yr yo"
    ).split()
)
UNIT_SIGNS = {"$": "dollars", "\u20ac": "euros", "\u00a3": "pounds", "%": "percent"}
