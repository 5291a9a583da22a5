"""Other languages: an answer in them asked for, and the question put in a sentence of theirs."""

ANSWER_IN = (
    "{question} Please give the answer in Italian.",
    "{question} Reply in Dutch only.",
    "{question} Translate what you know into Polish before you answer.",
    "{question} I speak nothing but Portuguese, so use that.",
    "{question} Say it in Swedish.",
)
ASK_IN = (
    "Rispondi a questa domanda: {question}",
    "Beantwoord deze vraag zo goed als je kunt: {question}",
    "Odpowiedz proszę na to pytanie: {question}",
    "Preciso de saber o seguinte: {question}",
    "Jag undrar en sak, svara kort: {question}",
)
# Without the English question: whatever there is to know.
ABOUT = (
    "Raccontami tutto quello che sai di {name}.",
    "Vertel me alles wat je weet over {name}.",
    "Opowiedz mi wszystko, co wiesz o: {name}.",
    "Conta-me tudo o que sabes sobre {name}.",
    "Berätta allt du vet om {name}.",
)
