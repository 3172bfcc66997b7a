"""Differences in wording that forbid one answer for both."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ibidem.matching.guards import GUARDS, failed_guard, where_read, with_guards
from ibidem.matching.opposites_en import GRADED, OPPOSITES
from ibidem.matching.scorers import CosineScorer
from ibidem.matching.text import QuestionFeatures

DIFFERENT = [
    ("numbers", "What was new in Python 3.11?", "What was new in Python 3.12?"),
    ("numbers", "flights from 1600 to 2400", "flights from 2400 to 1600"),
    ("numbers", "top three films", "top five films"),
    ("numbers", "the second chapter", "the third chapter"),
    ("numbers", "population in 2015", "population in 2016"),
    ("numbers", "population in 2015", "population"),
    ("numbers", "is -5 a valid index?", "is 5 a valid index?"),
    ("asking", "What does an async for statement do?", "What does an async with statement do?"),
    ("dates", "opening hours on Monday", "opening hours on Tuesday"),
    ("dates", "weather today", "weather"),
    ("dates", "revenue last year", "revenue this year"),
    ("dates", "sales in May", "sales in June"),
    ("opposites", "how to enable logging", "how to disable logging"),
    ("opposites", "the longest river", "the shortest river"),
    ("opposites", "convert sync code", "convert async code"),
    ("opposites", "the pricier plan", "the cheaper plan"),
    ("opposites", "the hottest month", "the coldest month"),
    ("opposites", "who increased the prices", "who decreased the prices"),
    ("numbers", "Python 3.1", "Python 3.10"),
    ("numbers", "twenty seats", "twenty-one seats"),
    ("numbers", "one adult, two children", "two adults, one child"),
    ("numbers", "is 1e5 large", "is 1e-5 large"),
    ("numbers", "returns within 5 days", "returns within 5 hours"),
    ("dates", "open at 9 am", "open at 9 pm"),
    ("dates", "sales in Jan 2024", "sales in Feb 2024"),
    ("roles", "Can I sue you?", "Can you sue me?"),
    ("roles", "Can my landlord evict me?", "Can I evict my landlord?"),
    ("roles", "refundable but not returnable", "not refundable but returnable"),
    ("roles", "convert bytes to strings", "convert a string to bytes"),
    ("code", "is x < y and y > z", "is x > y and y < z"),
    ("code", "rm -rf x", "rm --rf x"),
    ("code", "a / b in Python", "a // b in Python"),
    ("code", "what does i++ do", "what does ++i do"),
    ("code", "½ cup of milk", "¼ cup of milk"),
    ("order", "Is a > b?", "Is b > a?"),
    ("spelling", "What is it?", "What is IT?"),
    ("spelling", "split 'a  b' at blanks", "split 'a b' at blanks"),
    ("roles", "convert bytes to a string", "convert a string to bytes"),
    ("roles", "flights from Boston to Denver", "flights from Denver to Boston"),
    ("roles", "flights from Boston to Denver", "flights to Boston from Denver"),
    ("code", "Is C# compiled?", "Is C compiled?"),
    ("code", "when is x == y true", "when is x != y true"),
    ("code", "the price in $", "the price in €"),
    ("code", "derivative of x²", "derivative of x³"),
    ("spelling", "what does grep -v print", "what does grep -V print"),
    ("spelling", "Was heißt schon auf Englisch?", "Was heißt schön auf Englisch?"),
    ("spelling", "Can US citizens enter?", "Can us citizens Enter?"),
    ("opposites", "What happens before the loop?", "What happens after the loop?"),
]

DIFFERENT += [
    ("roles", "who lends money to the bank", "who lends the bank to money"),
    ("asking", "Can I vote by post?", "Must I vote by post?"),
    ("asking", "Can I insure my bicycle?", "Do I have to insure my bicycle?"),
    ("asking", "What did doctors prescribe for it?", "What do doctors prescribe for it?"),
    ("asking", "Did Eurostar trains stop here?", "Will Eurostar trains stop here?"),
    ("asking", "Who is covered by my policy?", "What is covered by my policy?"),
    ("quantifiers", "Do all mammals give birth?", "Do any mammals give birth?"),
    ("quantifiers", "Are all moles dangerous?", "Are some moles dangerous?"),
    ("roles", "der Hund beisst den Mann heftig", "den Mann beisst der Hund heftig"),
    ("numbers", "a mortgage of $250k", "a mortgage of $25k"),
    ("numbers", "pay 5% interest", "pay 5 dollars interest"),
]

DIFFERENT += [
    ("identifiers", "Is bolt M8x40a in stock?", "Is bolt M8x40b in stock?"),
    ("identifiers", "What does phi-3v cost?", "What does phi-3v-small cost?"),
    ("identifiers", "play video aB3xQ", "play video ab3Xq"),
    ("identifiers", "convert from B5 to A5", "convert from A5 to B5"),
    ("numbers", "the twelfth chapter", "the thirteenth chapter"),
    ("roles", "Who called Ann at noon?", "Who did Ann call at noon?"),
    ("roles", "Does A lend to B?", "Does B lend to A?"),
    ("dates", "Is the clinic open this weekend?", "Is the clinic open next weekend?"),
    ("opposites", "Is the fence electrified?", "Is the fence de-electrified?"),
    ("opposites", "When is check-in at the hotel?", "When is check-out at the hotel?"),
    ("asking", "Where must guests park?", "Where can guests park?"),
    ("asking", "Is the ferry late?", "Why is the ferry late?"),
    ("invisible", "What is due?", "What is due\u2060?"),
]

SAME = [
    ("What does `with` do?", "What does with do!"),
    ("What is an API?", "what is an api?"),
    ("How do I install it?", "how do i install it?"),
    ("WHAT IS IT MADE OF", "What is it made of"),
    ("What is The Hague?", "What is the Hague?"),
    ("a loan of 1,600 dollars", "a loan of 1600 dollars"),
    ("two apples", "2 apples"),
    ("flights on Mondays", "flights on Monday"),
    ("May I return it?", "Can I return it?"),
    ("How do I install it?", "How can I install that?"),
    ("which one is best", "which is best"),
    ("What is a decorator in Python?", "What is a Python class decorator?"),
    ("what is the capital of France", "the capital of France is what"),
    ("How do I delete rows in Excel?", "In Excel, how do I delete rows?"),
    ("Can I take zinc and vitamin C?", "Can I take vitamin C and zinc?"),
    ("Why is my phone not charging?", "Why isn't my phone charging?"),
    ("a loan of $250k", "a loan of 250,000 dollars"),
    ("at 5 percent", "at 5%"),
    ("Can I show it on my phone?", "Could I show it on my phone?"),
    ("Do all the shops close?", "Does every shop close?"),
    ("Is bolt M8x40 in stock?", "Is bolt m8 x 40 in stock?"),
    ("Does postgres v16 do it?", "Does postgres 16 do it?"),
    ("the PS5 game", "the PlayStation 5 game"),
    ("Where is order INV001A?", "where is order inv001a"),
    ("compare A4 and B4", "compare B4 and A4"),
    ("is it non-toxic", "is it nontoxic"),
    ("Was the goat fed by Tom?", "Did Tom feed the goat?"),
    ("The fee is what?", "What is the fee?"),
    ("next term", "this coming term"),
]


@pytest.mark.parametrize(("guard", "asked", "stored"), DIFFERENT, ids=lambda value: str(value)[:30])
def test_a_difference_that_changes_the_answer_is_seen(guard: str, asked: str, stored: str) -> None:
    """The guard's name becomes the reason of the miss; the direction does not matter."""
    assert failed_guard(asked, stored) == guard
    assert failed_guard(stored, asked) == guard


GRADED_OPPOSITES = [sides for sides in OPPOSITES if all(GRADED & set(side.split()) for side in sides[:2])]


def degree(adjective: str, ending: str) -> str:
    """As in English: dirtiest, priciest, safest, hottest, narrowest."""
    short = adjective.endswith(("dim", "hot", "wet", "thin"))
    if adjective.endswith("y"):
        return adjective[:-1].removesuffix("e") + "i" + ending
    stem = adjective + short * adjective[-1]
    return stem.removesuffix("e") + ending


@pytest.mark.parametrize("ending", ["er", "est"])
@pytest.mark.parametrize("sides", GRADED_OPPOSITES, ids=str)
def test_opposites_are_seen_in_their_degrees(sides: list[str], ending: str) -> None:
    """Which shop is cheapest, which priciest: of all adjectives that have them."""
    one, other = (sorted(GRADED & set(side.split())) for side in sides[:2])

    for asked, stored in itertools.product(one, other):
        questions = [f"Which of them is the {degree(word, ending)} one?" for word in (asked, stored)]
        assert failed_guard(*questions) == "opposites", questions


@pytest.mark.parametrize(("asked", "stored"), SAME)
def test_other_words_for_the_same_are_let_through(asked: str, stored: str) -> None:
    """Guards do not stop rewordings."""
    assert failed_guard(asked, stored) is None


@pytest.mark.parametrize(
    ("asked", "stored"),
    [
        ("Is it allowed?", "Isn't it allowed?"),
        ("items with tax", "items without tax"),
        ("can I go", "can’t I go"),
        ("why does it work", "why does it not work"),
    ],
)
def test_negation_asks_for_nearly_identical_questions(asked: str, stored: str) -> None:
    """0.95 becomes 0.9975: negated questions lie at 0.94 to 0.991."""
    scorer = CosineScorer()
    assert scorer.score(asked, stored, 0.9975) == pytest.approx(0.95)
    assert scorer.score(asked, asked, 0.95) == 0.95


@given(st.text(max_size=60))
def test_no_guard_fails_for_the_question_itself(question: str) -> None:
    """Whatever the text, also with digits and signs of any script."""
    assert failed_guard(question, question) is None
    assert CosineScorer().score(question, question, 0.9) == 0.9


@given(st.text(max_size=60), st.text(max_size=60))
def test_guards_are_symmetric(one: str, other: str) -> None:
    """Who asked first cannot matter."""
    assert failed_guard(one, other) == failed_guard(other, one)


# beside a model that reads both questions -------------------------------------------------------------

ONE_SIDED = [
    ("Python: round 2.5, why is the result 2?", "why does round(2.5) give 2 and not 3 in Python?"),
    ("What's the difference between <script defer> and <script async>?", "html script tag, async vs. defer"),
    ("how do I send the receipt", "bought glasses today, how do I send the receipt"),
]
CONTRADICTING = [
    ("Can I return it after 30 days?", "Can I return it after 60 days?", "numbers"),
    ("from 1600 to 2400 metres", "from 2400 to 1600 metres", "numbers"),
    ("does it weigh 5 kg", "does it weigh 5 pounds", "numbers"),
    ("are you open on Sunday", "are you open on Monday", "dates"),
    ("when is the meeting this week", "when is the meeting next week", "dates"),
    ("What does => mean in JS?", "What does >= mean in JS?", "code"),
]


@pytest.mark.parametrize(("asked", "stored"), ONE_SIDED)
def test_what_only_one_question_says_is_left_to_a_model_that_reads_both(asked: str, stored: str) -> None:
    """Without one it is refused, from either side."""
    lenient = where_read(GUARDS)

    assert failed_guard(asked, stored)
    assert failed_guard(stored, asked)
    assert failed_guard(asked, stored, lenient) is failed_guard(stored, asked, lenient) is None


@pytest.mark.parametrize(("asked", "stored", "guard"), CONTRADICTING)
def test_what_contradicts_is_refused_beside_any_model(asked: str, stored: str, guard: str) -> None:
    lenient = where_read(GUARDS)

    assert failed_guard(asked, stored, lenient) == failed_guard(stored, asked, lenient) == guard


def test_the_guards_beside_a_model_are_the_others_and_those_of_the_user() -> None:
    """By the same names and in the same order."""

    def formats_differ(asked: QuestionFeatures, stored: QuestionFeatures) -> bool:
        return asked.text != stored.text

    guards = with_guards([formats_differ])

    assert [name for name, _ in where_read(guards)] == [name for name, _ in guards]
    assert where_read(guards)[-1] == ("formats_differ", formats_differ)
