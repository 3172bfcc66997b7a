"""Questions in other languages, which the default models were not trained on."""

from __future__ import annotations

from pathlib import Path

import pytest

import ibidem
from ibidem import Answer, Request
from ibidem.embedding.languages import is_foreign
from ibidem_lab.models.groups import load_groups

FOREIGN = {
    "German": """Wie kann ich mein Passwort zurücksetzen?
Wo finde ich die Rechnung für meine letzte Bestellung?
Warum ist mein Paket noch nicht angekommen?
Welche Unterlagen brauche ich für die Anmeldung?
Gibt es einen Rabatt für Studenten?
Wann öffnet das Museum am Sonntag?
Ich möchte mein Abo kündigen.
Wie lange dauert der Versand nach Österreich?""",
    "French": """Comment puis-je réinitialiser mon mot de passe ?
Où est ma commande ?
Combien coûte la livraison dans les îles ?
Pourquoi mon compte est bloqué ?
Quels sont vos horaires d'ouverture le dimanche ?
Je voudrais annuler mon abonnement.
Quelle est la différence entre les deux offres ?
Est-ce que vous acceptez les chèques ?""",
    "Spanish": """¿Cómo puedo restablecer mi contraseña?
¿Dónde está mi pedido?
¿Cuánto cuesta el envío a las islas?
¿Cuál es la diferencia entre los dos planes?
Quiero cancelar mi suscripción.
¿Por qué está bloqueada mi cuenta?
¿Qué documentos necesito para el registro?
¿Hay un descuento para estudiantes?""",
    "Portuguese": """Como posso redefinir minha senha?
Onde está o meu pedido?
Quanto custa a entrega para as ilhas?
Por que minha conta está bloqueada?
Quais documentos eu preciso para o cadastro?
Eu quero cancelar a minha assinatura.
Qual é a diferença entre os dois planos?
Vocês não têm desconto para estudantes?""",
    "Italian": """Come posso reimpostare la mia password?
Dove si trova il mio ordine?
Quanto costa la spedizione per le isole?
Perché il mio conto è bloccato?
Quali documenti servono per la registrazione?
Vorrei disdire il mio abbonamento.
Qual è la differenza tra i due piani?
Non posso accedere al mio account.""",
    "Dutch": """Hoe kan ik mijn wachtwoord wijzigen?
Waar is mijn bestelling?
Hoeveel kost het verzenden naar België?
Waarom is mijn account geblokkeerd?
Welke documenten heb ik nodig voor de inschrijving?
Ik wil mijn abonnement opzeggen, hoe moet dat?
Wat is het verschil met de andere bundel?
Wanneer is het museum op zondag open?""",
    "Polish": """Jak mogę zmienić moje hasło?
Gdzie jest moja paczka?
Ile kosztuje wysyłka do Niemiec i czy jest darmowa?
Dlaczego moje konto jest zablokowane?
Jakie dokumenty są potrzebne do rejestracji?
Czy jest zniżka dla studentów?
Nie mogę się zalogować.
Co to jest numer referencyjny?""",
    "Swedish": """Hur kan jag ändra mitt lösenord?
Var är min beställning och när kommer den?
Varför är mitt konto låst?
Vilka dokument måste jag ha med?
Finns det en rabatt för studenter?
Jag ska säga upp mitt abonnemang, hur gör jag?
Vad är skillnaden från det andra paketet?
När är museet öppet på söndag och vad kostar det?""",
}
ENGLISH = (
    "flights from Los Angeles to Las Vegas",
    "Who wrote Les Misérables, and what does je ne sais quoi mean?",
    "kubectl rollout restart deployment",
    "what is the par value of El Paso bonds",
    "Passwort vergessen",  # nothing tells
    "max min avg sum",
    "C'est la vie: what does it mean?",
    "",
)


@pytest.mark.parametrize("language", FOREIGN)
def test_foreign_questions_are_known_as_such(language: str) -> None:
    """Nearly all; what is missed is compared as if it were English."""
    questions = FOREIGN[language].splitlines()
    missed = [question for question in questions if not is_foreign(question)]

    assert len(missed) <= len(questions) / 8, missed


@pytest.mark.parametrize("question", ENGLISH)
def test_foreign_words_do_not_make_a_question_foreign(question: str) -> None:
    assert not is_foreign(question)


def test_english_questions_are_not_foreign() -> None:
    """One in thousands of this project, most of which quote another language."""
    texts = {text for group in load_groups() for text in group.texts}
    foreign = [text for text in texts if is_foreign(text)]

    assert len(texts) > 40_000
    assert len(foreign) <= len(texts) / 2_000, foreign


def test_a_foreign_question_is_served_word_for_word_only(tmp_path: Path) -> None:
    """By the default models: nobody knows what their figures mean there."""
    with ibidem.open(tmp_path) as cache:
        cache.store(Request("Wie kann ich mein Passwort zurücksetzen?"), Answer("Mit dem Link."))

        assert cache.lookup(Request("Wie kann ich mein Passwort zurücksetzen?"))
        miss = cache.lookup(Request("Wie kann ich mein Kennwort zurücksetzen?"))
        assert miss.reason == "question_not_covered"
        (decided,) = cache.decide([("Wo ist mein Paket?", "Wo ist denn mein Paket?")])
        assert decided.reason == "question_not_covered"


@pytest.mark.parametrize("text", [".", "?!", "\u2026", "\U0001f44d", "-- + --", "\u200b"])
def test_what_has_no_letter_and_no_digit_is_compared_exactly(tmp_path: Path, text: str) -> None:
    """Its vector says nothing: that of "." is near to that of any other sign."""
    with ibidem.open(tmp_path) as cache:
        cache.store(Request("."), Answer("a dot"))
        cache.store(Request(text), Answer(text))

        assert cache.lookup(Request(text)).answer.text == text
        assert not cache.lookup(Request(";"))
