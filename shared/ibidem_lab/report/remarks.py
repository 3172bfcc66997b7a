"""The remarks of a report: for each section a finding and an advice. Code is in `backticks`."""

from __future__ import annotations

from typing import NamedTuple

from ibidem._util.intervals import clopper_pearson
from ibidem.cli.formatting import (
    duration,
    moment,
    money,
    named,
    percent,
    plural,
    share,
    size,
    spent_money,
)
from ibidem_lab.report.facts import DAY, TOP, Facts, is_below

LOOKUPS = 200  # below which shares of the lookups say little
OFTEN = 0.1  # of the lookups: a reason that costs less is not worth the trouble
CLOSE = 0.05  # below the boundary
SETTLED = 7 * DAY  # a cache that is younger says little of what it keeps
UNUSED = 0.5  # of the entries, above which most are kept for nothing
KNOWN = 0.995  # of the hits: rounding hides what is missing
LOW_RATE = 0.5  # of the hit rate of all, below which a namespace stands out


class Remedy(NamedTuple):
    """The meaning of a miss reason, and the remedy."""

    title: str
    action: str


REMEDIES = {
    "documents_changed": Remedy(
        "The documents behind stored answers keep changing",
        '`document_policy="unchanged"` if it is `"supporting"` or `"all"`; give each `Document` an id and a '
        "text that stay the same from one retrieval to the next",
    ),
    "documents_added": Remedy(
        "New documents are found that stored answers do not know",
        "tell of what is new alone (`invalidating`, or `invalidate` with `current=`); or "
        '`new_documents="ignore"` if it cannot change answers',
    ),
    "expired": Remedy(
        "Answers expire before they are asked for again",
        "a longer `ttl`, or `stale_while_revalidate` to serve while one caller refreshes",
    ),
    "question_unknown": Remedy(
        "The question cannot be told apart from its prompt, so only identical prompts are hits",
        'name the template variable: `question_keys=["..."]`, or `any_message=True` for a support chat',
    ),
    "question_too_long": Remedy(
        "Questions are longer than the embedder's window", "an `embedder` with a longer window"
    ),
    "question_not_covered": Remedy(
        "The embedder does not know the language of the questions", "a multilingual `embedder`"
    ),
    "question_hides_text": Remedy(
        "Questions hold invisible characters, so only identical questions are hits",
        "remove direction marks, fillers and the like where questions come in; `ibidem log` shows which",
    ),
    "no_index": Remedy(
        "The vector index was not available, so nothing was found by meaning", "run `ibidem doctor`"
    ),
    "other_cache": Remedy(
        "The database was another cache than the one that was opened", "bring the right one back"
    ),
    "error": Remedy("Lookups failed", "run `ibidem doctor`, and see `cache.stats().faults`"),
    "guard": Remedy(
        "Guards refuse near questions",
        "`ibidem log` shows which; `ibidem replay` on labelled questions counts how many of them rightly",
    ),
}


class Remark(NamedTuple):
    """A finding, and an advice."""

    told: str
    do: str


def hit_rate(facts: Facts) -> Remark:
    """Remark on all lookups."""
    hits, lookups = facts.total.saved.hits, facts.total.lookups
    told = f"The cache answered {hits:,} of {plural(lookups, 'lookup')}: {share(hits, lookups)}."
    return Remark(told, _against_misses(facts))


def _against_misses(facts: Facts) -> str:
    lookups = facts.total.lookups
    if lookups < LOOKUPS:
        return f"Wait: below {LOOKUPS} lookups a hit rate says little."
    counts = {**facts.reasons}
    counts["guard"] = sum(n for reason, n in counts.items() if reason.startswith("guard:"))
    worst = max(REMEDIES, key=lambda reason: counts.get(reason, 0))
    if counts.get(worst, 0) >= OFTEN * lookups:
        title, action = REMEDIES[worst]
        return f"{title} ({share(counts[worst], lookups)} of the lookups): {action}."
    return "No avoidable reason costs a tenth of the lookups; the last section says what else would pay."


def saved(facts: Facts) -> Remark:
    """Remark on tokens, money and time."""
    sums, prices = facts.total.saved, facts.prices
    if not sums.hits:
        return Remark("Nothing was served yet, so nothing was saved.", "See below why lookups missed.")
    parts = [f"{sums.tokens:,} tokens" if sums.tokens else "an unknown number of tokens"]
    if sums.priced:
        priced = f"of {share(sums.priced, sums.hits)} of the hits, at {prices.dated}"
        parts.append(f"{money(sums.money, prices)} ({priced})")
    if sums.timed:
        parts.append(f"{duration(sums.seconds)} of waiting (of {share(sums.timed, sums.hits)} of the hits)")
    told = f"{plural(sums.hits, 'answer')} served without the model saved {', '.join(parts)}."
    return Remark(told + _spent(facts), _against_unknown(facts))


def _spent(facts: Facts) -> str:
    sums = facts.total.saved
    if not sums.opinions:
        return ""
    cost = f"{sums.tokens_spent:,} tokens, {spent_money(sums, facts.prices)}"
    told = f" {plural(sums.opinions, 'second opinion')} took {cost}, which is subtracted here"
    unknown = f"; of {sums.unpriced_opinions:,} the price is unknown" if sums.unpriced_opinions else ""
    return f"{told}, not in the charts{unknown}."


def _against_unknown(facts: Facts) -> str:
    sums = facts.total.saved
    if not sums.tokens:
        return (
            "No tokens are known: have the model tell them (`stream_usage=True`), or store them "
            "(`input_tokens=` of `ibidem.Answer`)."
        )
    lacking = [model.name for model in facts.models if model.saved.hits and not model.priced and model.name]
    if lacking:
        return (
            f"Give the prices of your models with `--prices FILE` or `IBIDEM_PRICES`: {named(lacking[0])} "
            f"{'has' if len(lacking) == 1 else f'and {len(lacking) - 1} more have'} none."
        )
    if sums.priced < KNOWN * sums.hits:
        return "The other hits are of unknown tokens, or their answers are gone: read it as a least value."
    return "These are list prices: give what you pay with `--prices FILE` or `IBIDEM_PRICES`."


def outcomes(facts: Facts) -> Remark:
    """Remark on tiers and reasons."""
    hits, by_tier = facts.total.saved.hits, {group.key: group.lookups for group in facts.tiers}
    if not hits:
        told = "No lookup was a hit."
    else:
        told = (
            f"Of {plural(hits, 'hit')}, {share(by_tier.get('exact', 0), hits)} repeat the very question and "
            f"{share(by_tier.get('semantic', 0), hits)} were found by meaning."
        )
        if facts.second_opinions:
            told += f" {facts.second_opinions:,} of them needed a second opinion."
    top = next(iter(facts.reasons), "")
    means = {
        "empty": "The commonest miss is `empty`: these scopes hold no answer yet; if it stays so, something "
        "in the prompt (a date, an id) makes every scope new; `ibidem log` says in which part.",
        "below_threshold": "The commonest miss is `below_threshold`: see below how near the questions were.",
        "below_budget": "The commonest miss is `below_budget`: audits prove too little yet, see below.",
        "audit": "The commonest miss is `audit`: a lower `audit_rate` asks the model less often.",
        "second_opinion:late": "The commonest miss is `second_opinion:late`: take a faster small model, or a "
        "longer `second_opinion_timeout`.",
    }
    remedy = REMEDIES.get(top.split(":")[0])
    do = means.get(top) or (
        f"The commonest miss is `{named(top)}`: {remedy.action}." if remedy else "Nothing to do."
    )
    return Remark(told, do)


def similarity(facts: Facts) -> Remark:
    """Remark on similarities."""
    seen = sum(one.served + one.below + one.refused for one in facts.bins)
    if facts.boundary is None:
        told = f"{plural(seen, 'lookup')} met a stored question; audits prove too little to serve any score."
        return Remark(
            told,
            "Let audits go on: about 195 right judgements in a row prove a budget of 2\N{NO-BREAK SPACE}%.",
        )
    if facts.line is None:
        return Remark(
            f"{plural(seen, 'lookup')} met a stored question.", "Nothing to do: a model reads them."
        )
    close = sum(one.below for one in facts.bins if one.low >= facts.line - CLOSE)
    told = (
        f"{plural(seen, 'lookup')} met a stored question; {close:,} missed within {CLOSE:.2f} below the line."
    )
    if seen < LOOKUPS:
        return Remark(told, f"Wait: below {LOOKUPS} of them this says little.")
    if close >= OFTEN * seen:
        return Remark(
            told,
            "Many miss narrowly: `audit_rate=0.05` learns how many would be right, `ibidem learn` uses it.",
        )
    return Remark(told, "Few miss narrowly: another threshold would change little.")


def wrong(facts: Facts) -> Remark:
    """Remark on audits."""
    audits, bad = sum(one.audits for one in facts.audits), sum(one.wrong for one in facts.audits)
    if not audits:
        return Remark(
            "Nobody knows how many hits are wrong: there were no audits.",
            "Open the cache with `audit_rate=0.05`: one hit in twenty is compared with the model's answer.",
        )
    low, high = clopper_pearson(bad, audits)
    told = (
        f"Of {plural(audits, 'audited hit')} {bad:,} were wrong: {share(bad, audits)}, with 95 % confidence "
        f"{percent(low)} to {percent(high)}; the budget is {percent(facts.max_error_rate)}."
    )
    return Remark(told, _against_wrong(facts))


def _against_wrong(facts: Facts) -> str:
    """Remark on budgets; each namespace has its own."""
    over = [
        named(one.namespace) for one in facts.audits if one.audits and one.interval[0] > facts.max_error_rate
    ]
    if over:
        where = over[0] if len(over) == 1 else f"{over[0]} and {len(over) - 1} more"
        return f"The budget is overrun in {where}: lower `max_error_rate`, or run `ibidem learn threshold`."
    if any(one.interval[1] > facts.max_error_rate for one in facts.audits):
        return "Not overrun as far as is known, but not proved everywhere: leave audits on."
    return "The budget is kept; a larger `max_error_rate` would serve more."


def near(facts: Facts) -> Remark:
    """Remark on near misses."""
    reasons = {one.reason for one in facts.near}
    guards = sorted(named(reason) for reason in reasons if reason.startswith("guard:"))
    told = "Questions that met a stored answer and were not served, the commonest first."
    if guards:
        return Remark(
            told,
            f"Read those of `{guards[0]}`: if they mean the same, tell `ibidem learn` so with labels.",
        )
    if any(map(is_below, reasons)):
        return Remark(
            told,
            "Where both mean the same, label the pairs: `ibidem review`, or `ibidem learn --teacher`.",
        )
    return Remark(told, "If asked and stored do mean the same, `ibidem log` shows the rest of them.")


def valuable(facts: Facts) -> Remark:
    """Remark on the entries with most hits."""
    return Remark(
        "The answers that saved most: how often they were served, times what they cost.",
        "Read them (`ibidem show ID`): a mistake in one of these is repeated most often.",
    )


def suspicious(facts: Facts) -> Remark:
    """Remark on doubtful answers."""
    if facts.doubted:
        told = "Answers that audits or people called wrong, and what was served with the least similarity."
    else:
        told = "Nothing was called wrong. These were served with the least similarity."
    return Remark(
        told, "Read both questions; `ibidem feedback ID --bad` deletes an answer that does not fit."
    )


def namespaces(facts: Facts) -> Remark:
    """Remark on namespaces."""
    count = len(facts.namespaces)
    told = f"{plural(count, 'namespace')} asked." if count < TOP else f"The {TOP} namespaces that ask most."
    rate = facts.total.rate or 0.0
    low = [
        group
        for group in facts.namespaces
        if group.lookups >= LOOKUPS and (group.rate or 0) < LOW_RATE * rate
    ]
    if low:
        command = "`ibidem report --namespace`"
        return Remark(told, f"{named(low[0].key)} hits less than half as often as all: {command} says why.")
    return Remark(told, "No large namespace hits much less than the others.")


def models(facts: Facts) -> Remark:
    """Remark on models."""
    told = "Models by what their stored answers saved; prices are dated list prices, or yours."
    unpriced = [one.name for one in facts.models if not one.priced and one.name]
    if unpriced:
        return Remark(told, f"No price is known for {named(unpriced[0])}: give it with `--prices FILE`.")
    return Remark(told, "All models that tell their name have a price; compare them with your contract.")


def holdings(facts: Facts) -> Remark:
    """Remark on the stored entries."""
    held = facts.holdings
    if not held.entries:
        return Remark(
            "No answers are stored.", "If lookups miss with `empty` for long, `cache.store` is not called."
        )
    told = (
        f"It holds {plural(held.entries, 'answer')}, about {size(held.bytes)}; the oldest is of "
        f"{moment(held.oldest, '%Y-%m-%d')}, {share(held.unused, held.entries)} of them were never served."
    )
    pins = facts.pins
    if pins.corrected or pins.warmed:
        vetted = f"{pins.corrected:,} corrected, {pins.warmed:,} given"
        told += f" A person vouches for {pins.corrected + pins.warmed:,}: {vetted}."
    if pins.withdrawn:
        wait = plural(pins.withdrawn, "vetted answer")
        return Remark(told, f"Open `ibidem review`: {wait} not served, since something invalidated them.")
    if facts.made - held.oldest < SETTLED:
        return Remark(told, "Wait: no answer is older than a week.")
    if held.unused >= UNUSED * held.entries:
        return Remark(told, "Most are kept for nothing: `max_entries` or a shorter `ttl` costs few hits.")
    return Remark(told, "Most were asked for again: a longer `ttl` may pay if the answers stay right.")
