"""Word lists of the guards. English; another language is another file like this one."""

from __future__ import annotations

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

# What tells one of a row from the others.
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

# What stands for a unit behind a number; of single letters those that are no initials of their units.
UNIT_SYMBOLS = frozenset(UNITS.values()) | frozenset(
    (
        "am pm k m bn mn x ml dl cl mg mcg oz ft in yd mi mph kmh kph kw kwh mw mv kv ma mah hz khz mhz ghz "
        "bit kbit mbit gbit mbps gbps kbps pb px pt em rem ms sq yr yo"
    ).split()
)
# Words of a list, in which the order says nothing; words after which it does.
LINKS = frozenset("and or vs versus nor".split())
LEADS = frozenset("from to into before after than then".split())

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

# Sides that never share an answer, two or more. Each side lists words of one meaning; endings are added.
_OPPOSITES = """
increase raise grow rise | decrease reduce lower shrink drop fall
maximum max most highest greatest largest biggest | minimum min least lowest smallest fewest
more greater larger bigger higher | less fewer smaller lower
longest longer long | shortest shorter short
oldest older old | newest newer new youngest younger young
first earliest initial original | last latest previous prior preceding past | next upcoming coming following
current present ongoing | previous former past | next upcoming future
before | after | until till | during while
once | before
since | until till
since | before
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
may might | must | should ought
allow allowed permitted permit | require required mandatory compulsory | optional voluntary | forbidden
allowed permitted authorised authorized | forbidden prohibited banned barred
give gave given | receive received
sent | received
bought | sold
lent loan | borrow borrowed
built | destroyed demolished
rose risen | fell fallen
began begun started | ended stopped finished
won | lost
teach taught | learn learned learnt
ask asked | answer answered reply
enter entry entrance | exit leave left
attack | defend
love | hate
remember | forget forgot forgotten
freeze frozen froze | thaw defrost melt unfreeze
heat warm | cool chill
fill | empty drain
tighten | loosen
expand extend | contract shrink collapse
widen | narrow
lengthen | shorten
strengthen | weaken
harden | soften
thicken | thin
wake woke | sleep slept
born birth | died death dead die
marry married marriage | divorce divorced
hire hired recruit | fire fired dismiss
promote promotion | demote demotion
praise | criticise criticize
reward | punish
attract | repel
ascend climb | descend
inhale | exhale
profit gain | loss
income revenue | expense expenditure cost
supply | demand
save | spend spent
save | load
deposit | withdraw
buyer purchaser customer | seller vendor
lender creditor | borrower debtor
landlord landlady | tenant lessee renter
teacher | student pupil
doctor | patient
host | guest
winner | loser
sender | recipient receiver
plaintiff claimant | defendant
predator | prey
front | back rear
top | bottom
day daytime | night nighttime overnight
sunrise dawn | sunset dusk
ancient | modern
wet | dry
light bright | dark dim
loud noisy | quiet silent
smooth | rough
sharp | blunt
tight | loose
clean | dirty
sweet | sour | bitter | salty
raw uncooked | cooked
fresh | stale
alive living | dead
awake | asleep
guilty | innocent
natural | artificial
temporary | permanent
fixed | variable adjustable
manual manually | automatic automatically
gross | net
wholesale | retail
domestic | international foreign
urban | rural
solid | liquid | gas gaseous
acid acidic | alkaline
active | passive
singular | plural
major | minor
senior | junior
primary | secondary | tertiary
clockwise | counterclockwise anticlockwise
forward forwards | backward backwards
plus | minus
multiply multiplication | divide division
addition | subtraction
subtract | add
show | hide
minimise minimize | maximise maximize
expand | collapse
pause | resume
merge | split
read | write wrote written
agree | disagree
confirm | cancel
book reserve | cancel
order | cancel
renew | cancel terminate
subscribe | unsubscribe
follow | unfollow
connect | disconnect
mount | unmount
pull | push
commit | revert
lend | borrow
import | export
always | never | sometimes
everyone everybody | nobody
inside indoors | outside outdoors
above | below
full fully complete | partial partially
new | existing
average mean | median | total sum
row | column
like likes love | hate dislike
keep | drop discard lose
often frequently | rarely seldom
exist exists present | missing
reason cause | consequence effect
together | instead
including | excluding
horizontal horizontally | vertical vertically
"""
OPPOSITES = [line.split("|") for line in _OPPOSITES.strip().splitlines()]

# Closed sets: with another member it is another question. Sets end with ";", members are parted by "|", other
# words for a member by blanks. Only a plural "s" is added.
_EXCLUSIVE = """
january jan | february feb | march | april apr | may | june jun | july jul | august aug | september sept sep
| october oct | november nov | december dec;
monday mon | tuesday tue tues | wednesday wed | thursday thu thurs | friday fri | saturday sat | sunday sun
| weekday;
spring springtime | summer summertime | autumn fall | winter wintertime;
morning | noon midday | afternoon | evening | night midnight | dawn sunrise | dusk sunset;
breakfast | brunch | lunch | dinner supper;
hourly | daily | weekly | fortnightly biweekly | monthly | quarterly | yearly annual annually | weekday;
hour | day | week | fortnight | month | quarter | year | decade | century;
christmas xmas | easter | thanksgiving | halloween | hanukkah | diwali | ramadan | eid | pentecost |
passover | epiphany | carnival;
today | yesterday | tomorrow | tonight;
red | orange | yellow | green | blue | purple violet | pink | brown | black | white | grey gray | beige |
turquoise;
north northern | east eastern | south southern | west western;
northeast northeastern | northwest northwestern | southeast southeastern | southwest southwestern;
mercury | venus | earth | mars | jupiter | saturn | uranus | neptune | pluto;
mother mom mum | father dad daddy | brother | sister | son | daughter | wife | husband | uncle | aunt |
niece | nephew | cousin | grandmother grandma | grandfather grandpa | stepmother | stepfather;
dollar | euro | yen | franc | rupee | peso | rouble ruble | krona krone | zloty | yuan renminbi | bitcoin |
ethereum;
usd | eur | gbp | jpy | chf | inr | cny | sek | nok | dkk | pln | czk | aud | cad;
africa african | asia asian | europe european | australia australian | antarctica;
france french | germany german | spain spanish | italy italian | portugal portuguese | austria austrian |
switzerland swiss | belgium belgian | netherlands dutch holland | denmark danish | norway norwegian | sweden
swedish | finland finnish | poland polish | greece greek | turkey turkish | russia russian | ukraine
ukrainian | china chinese mandarin | japan japanese | india indian | korea korean | mexico mexican | brazil
brazilian | canada canadian | america american usa | egypt egyptian | israel hebrew israeli | ireland irish
| vietnam vietnamese | thailand thai | philippines filipino | indonesia indonesian | malaysia malaysian |
singapore | pakistan pakistani | bangladesh | iran iranian persian | iraq iraqi | morocco moroccan | nigeria
nigerian | kenya kenyan | ghana | ethiopia ethiopian | argentina | chile chilean | colombia colombian | peru
peruvian | cuba cuban | hungary hungarian | romania romanian | bulgaria bulgarian | croatia croatian |
serbia serbian | slovakia slovak | slovenia slovenian | czechia czech | iceland icelandic | estonia estonian
| latvia latvian | lithuania lithuanian | britain british uk;
england english | scotland scottish | wales welsh;
python | java | javascript js | typescript | ruby | rust | golang | kotlin | perl | php | haskell | scala |
swift;
windows | linux | macos mac osx | android | ios;
chrome | firefox | safari | edge | opera;
mysql | postgresql postgres | sqlite | oracle | mongodb | redis;
aws amazon | azure microsoft | gcp google;
facebook | instagram | twitter | tiktok | linkedin | snapchat | whatsapp | telegram | youtube;
paragraph | sentence | bullet | page | table;
json | xml | yaml | csv | toml | pdf | html;
small | medium | large;
child children kid | adult;
cat kitten | dog puppy | horse | cow | pig | sheep | goat | chicken | rabbit | hamster;
beef | pork | lamb | chicken | turkey | fish | salmon | tuna;
apple | pear | banana | orange | lemon | lime | cherry cherries | peach | plum | grape | strawberry
strawberries;
gold golden | silver | bronze | copper | iron | aluminium aluminum | platinum;
tea | coffee;
beer | wine | whisky whiskey | vodka | rum | gin;
passport | visa | licence license;
car | bus | train | tram | plane flight | ship boat | bicycle bike | motorcycle motorbike;
bronze | silver | gold | platinum;
christian christianity | muslim islam islamic | jewish judaism | buddhist buddhism | hindu hinduism;
aries | taurus | gemini | cancer | leo | virgo | libra | scorpio | sagittarius | capricorn | aquarius |
pisces;
solid | liquid | gas;
chemistry | physics | biology | mathematics math maths | history | geography;
bachelor | master | doctorate phd;
president | senator | governor | mayor | minister;
single | married | divorced | widowed;
violin | viola | cello | piano | guitar | flute | trumpet | drum;
football soccer | basketball | baseball | tennis | golf | hockey | cricket | rugby | volleyball;
"""

EXCLUSIVE = [members.split("|") for members in _EXCLUSIVE.strip().strip(";").split(";")]
# Words of a member -> its first one.
ONE_NAME = {word: member.split()[0] for members in EXCLUSIVE for member in members for word in member.split()}

# Beginnings that deny their word: "unlock", "dishonest", "nonfiction".
NEGATIVE_PREFIXES = frozenset(
    "un in im il ir dis non de mis anti counter over under sub semi off ultra pseudo step grand".split()
)
# Beginnings of which each is contrary to the others of its line.
_CONTRARY_PREFIXES = (
    "in ex|im ex|in out|in de|in un|over under|up down|pre post|sub super|inter intra|inter extra|"
    "intra extra|hyper hypo|macro micro|mega micro|maxi mini|en dis|em dis|en de|en un|con dis|"
    "as de|ac de|ap dis|on off|uni bi multi mono poly tri|endo exo|homo hetero|pro anti|pro con|fore after|"
    "front back|step grand|"
    "milli micro nano kilo mega giga tera|re de|un re|ante post|before after"
)
CONTRARY_PREFIXES: dict[str, frozenset[str]] = {}
for _line in _CONTRARY_PREFIXES.split("|"):
    for _one in _line.split():
        CONTRARY_PREFIXES[_one] = CONTRARY_PREFIXES.get(_one, frozenset()) | (set(_line.split()) - {_one})
LONGEST_PREFIX = max(map(len, (*NEGATIVE_PREFIXES, *CONTRARY_PREFIXES)))
CONTRARY_SUFFIXES = tuple(
    tuple(pair.split(":")) for pair in "ful:less less:ful less: er:ee or:ee ee:er ee:or".split()
) + tuple(pair for a, b in (("in", "out"), ("on", "off"), ("up", "down")) for pair in ((a, b), (b, a)))
# Words in which the beginning or ending denies nothing.
NO_CONTRARY = frozenset("inflammable unravel unloosen unthaw debone regardless inhabit unless".split())
