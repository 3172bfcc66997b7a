"""Is a text in another language than English? Told by the small words that every sentence needs.

The models that come with Ibidem were trained on English. They give a German question a vector, and two of
them a probability, but nobody has measured what these are worth.
"""

from __future__ import annotations

import re

from ibidem._util.words_en import SMALL_WORDS

LEAST = 2  # small words of one other language that make a text foreign, if fewer are English

# None is an English word as well ("die", "also", "pour"), or common in English names ("de", "la", "van").
_BY_LANGUAGE = {
    "German": (
        "ich wie ist das der dem und nicht ein eine einen einem einer mein meine meinen meiner meinem "
        "kann können könnte wo warum wann welche welcher welches für mit auf von zu zum zur bei nach wir "
        "sie ihr ihre sind wird werden wurde habe haben gibt es mir mich muss möchte bitte soll sollte "
        "über oder wenn aber noch auch zwischen im am vom beim darf dauert kostet lautet"
    ),
    "French": (
        "le les des un une est sont je tu il elle nous vous ils quel quelle quels quelles comment "
        "pourquoi où quand combien mon mes votre vos notre avec dans sur puis peut peux dois faire être "
        "avoir du aux ce cette ces qui que quoi et ou ne pas plus mais sans entre faut c'est qu'est est- "
        "ce j'ai au coûte"
    ),
    "Spanish": (
        "una unos es son está están qué cómo cuándo dónde cuál cuáles cuánto cuánta cuántos por para con "
        "mis su sus puedo puede debo tengo hay hacer se y pero sin sobre entre del al lo le nos que como "
        "cuando donde cual ser estoy necesito quiero más mi cuesta"
    ),
    "Portuguese": (
        "uma umas é são está estão como quando onde qual quais quanto quanta por para com meu minha meus "
        "minhas seu sua posso pode devo tenho fazer não mais mas sem sobre entre dos das ao ela eu você "
        "que quem preciso quero custa"
    ),
    "Italian": (
        "il lo gli una uno è sono come quando dove quale quali quanto quanta perché che chi cosa per con "
        "mio mia miei mie suo sua posso può devo ho fare non più della del dello delle dei degli nel "
        "nella sul sulla si un ci tra vorrei"
    ),
    "Dutch": (
        "het een ik hoe wat waar wanneer waarom welke mijn kan kunnen moet zijn wordt worden heb hebben "
        "voor met op van bij naar niet maar ook dat deze dit wij jullie uw hoeveel geen om te en"
    ),
    "Swedish": (
        "jag hur vad var när varför vilken vilket vilka mitt mina kan måste är och inte det en ett för "
        "med på till från om hos eller men ska vi ni den finns gör"
    ),
    "Danish": (
        "jeg hvordan hvad hvor hvornår hvorfor hvilken hvilket mit mine kan er og ikke det en et til fra "
        "med på om eller skal vi kommer gør af"
    ),
    "Polish": (
        "jak co gdzie kiedy dlaczego czy jest są nie mogę można moje mój moja się do ze dla przez ile "
        "który która które to jaki jaka jakie"
    ),
    "Turkish": (
        "nasıl ne nerede neden niçin hangi kaç bir ve bu için ile mi mı mu benim nedir var yok olarak "
        "daha kadar gibi değil"
    ),
    "Indonesian": (
        "bagaimana apa apakah di mana kapan mengapa yang dan ini itu saya anda untuk dengan dari ke tidak "
        "bisa adalah berapa cara pada"
    ),
    "Vietnamese": (
        "làm thế nào là gì tôi của có không để cho và được như các những một bao nhiêu ở đâu khi cách"
    ),
    "Czech": ("jak co kde kdy proč je jsou mohu můj moje se na pro který která které kolik není od ze ve"),
    "Romanian": ("cum ce unde când care este sunt pot meu mea mele și nu pentru cu din la în să pe cât o"),
    "Finnish": ("miten mikä missä milloin miksi onko voinko on ja ei minun että kuinka paljon mitä kuka"),
    "Hungarian": ("hogyan mi hol mikor miért melyik van és nem az egy hogy mennyi vagy lehet kell mit"),
}
_LANGUAGES = [frozenset(words.split()) for words in _BY_LANGUAGE.values()]
_ANY = frozenset().union(*_LANGUAGES)
_WORD = re.compile(r"[^\W\d_]+(?:['-][^\W\d_]+)*")


def is_foreign(text: str) -> bool:
    """Return whether a text holds more small words of one other language than of English, and at least two.

    What has none, such as "Passwort vergessen", is taken for English.
    """
    words = set(_WORD.findall(text.lower().replace("’", "'")))
    if len(words & _ANY) < LEAST:
        return False
    english = len(words & SMALL_WORDS)
    return any(len(words & language) >= max(LEAST, english + 1) for language in _LANGUAGES)
