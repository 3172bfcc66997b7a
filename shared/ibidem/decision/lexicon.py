"""Word lists of the guards. English; another language is another file like this one."""

from __future__ import annotations

# Without "one", which is a pronoun more often than a number.
_SMALL = "two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
_ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth"
NUMBER_WORDS = {
    "zero": "0", "seventeen": "17", "eighteen": "18", "nineteen": "19", "twenty": "20", "thirty": "30",
    "forty": "40", "fifty": "50", "sixty": "60", "seventy": "70", "eighty": "80", "ninety": "90",
    "hundred": "100", "thousand": "1000", "million": "1000000", "billion": "1000000000",
    "dozen": "12", "half": "1/2", "twice": "2", "double": "2", "triple": "3",
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

SIGNS = {"$": "dollars", "\u20ac": "euros", "\u00a3": "pounds", "%": "percent"}

NEGATIONS = frozenset(
    (
        "not no never without none nor neither nobody nothing nowhere cannot cant dont doesnt "
        "didnt isnt arent wasnt werent wont wouldnt shouldnt couldnt hasnt havent hadnt mustnt "
        "except excluding unless non"
    ).split()
)

# Words that say how a sentence is built, not what it is about.
COMMON_WORDS = frozenset(
    (
        "a an and are as at be been but by can could did do does for from had has have he her his "
        "how i if in into is it its may more most no not of on one or our she so some such than "
        "that the their them then there these they this those to was we were what when where "
        "which who whose why will with would you your"
    ).split()
)

# Those of them whose place in the sentence says who does what to whom, and where from.
DIRECTIONS = frozenset(
    (
        "from to before after by into for over under through i you he she we they my your his her our their"
    ).split()
)
SAME_PERSON = {"me": "i", "him": "he", "us": "we", "them": "they"}

# Common words that mean something else in capitals.
OTHER_IN_CAPITALS = COMMON_WORDS | frozenset("us who aids am pm may led sat nice pole".split())

# Pairs whose two sides never share an answer. Each side lists words of one meaning.
OPPOSITES = """
increase raise grow rise | decrease reduce lower shrink drop fall
maximum max most highest greatest largest biggest | minimum min least lowest smallest fewest
more greater larger bigger higher | less fewer smaller lower
longest longer long | shortest shorter short
oldest older old | newest newer new youngest younger young
first earliest | last latest
only | also
best better good | worst worse bad
fastest faster fast quick quickly | slowest slower slow slowly
before prior earlier | after later following
above over | below under beneath
start begin open launch | stop end finish close quit
enable activate allow permit unlock | disable deactivate forbid prohibit deny block lock
add insert append attach | remove delete detach drop
create make build | destroy delete demolish
include | exclude omit
accept approve | reject refuse decline deny
buy purchase | sell
borrow | lend
import | export
push | pull
send | receive
upload | download
encode encrypt serialize compress | decode decrypt deserialize decompress
connect join | disconnect leave separate split
install | uninstall
import load read | export save write
win | lose
pass succeed success | fail failure
true | false
yes | no
legal lawful | illegal unlawful
safe | dangerous unsafe
possible able | impossible unable
valid | invalid
public | private
internal inside inner | external outside outer
local | remote
left | right
north northern | south southern
east eastern | west western
up upward ascending | down downward descending
in into | out
on | off
hot warm | cold cool
early | late
cheap cheapest cheaper inexpensive | expensive costly dearest
rich | poor
strong | weak
hard difficult | easy simple
heavy heaviest heavier | light lightest lighter
full | empty
wide broad | narrow
thick | thin
deep | shallow
male man men boy husband father he his | female woman women girl wife mother she her
arrive arrival | depart departure
debit withdraw withdrawal | credit deposit
advantage benefit pro | disadvantage drawback con
positive | negative
input | output
even | odd
mutable | immutable
global | local
sync synchronous | async asynchronous
horizontal | vertical
parent | child
client | server
question | answer
cause | effect
strength | weakness
employer | employee
lossy | lossless
"""
