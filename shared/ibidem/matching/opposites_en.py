"""Lists of words that never share an answer, for the guards. English; another language is another file."""

from __future__ import annotations

# Lines of two or more sides that never share an answer. A side lists words of one meaning; endings are added.
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
cheap inexpensive | expensive costly pricey dear
rich | poor
strong | weak
hard difficult | easy simple
heavy | light
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
# Those of them that stand for their comparative and superlative, too.
GRADED = frozenset(
    """
blunt bright broad cheap clean cold cool costly dark dear deep dim dirty dry easy empty fresh full hard heavy
hot light loose loud narrow noisy poor pricey quiet rich rough safe shallow sharp simple smooth sour stale
strong sweet thick thin tight warm weak wet wide
""".split()
)

# Closed sets: with another member it is another question. Sets end with ";", members are separated by "|",
# synonyms of a member by blanks. Only a plural "s" is added.
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
# Each synonym of a member -> its first one.
ONE_NAME = {word: member.split()[0] for members in EXCLUSIVE for member in members for word in member.split()}

# Prefixes that negate their word: "unlock", "dishonest", "nonfiction".
NEGATIVE_PREFIXES = frozenset(
    "un in im il ir dis non de mis anti counter over under sub semi off ultra pseudo step grand".split()
)
# Prefixes of which each is contrary to the others of its group.
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
# Words in which the prefix or suffix negates nothing.
NO_CONTRARY = frozenset("inflammable unravel unloosen unthaw debone regardless inhabit unless".split())
