"""How the target is asked about a name: wordings to train on and others to measure with; {0} is the name.

Attacks (`attack/wordings`) ask in other words, and in other languages than these.
"""

TRAINED = (
    "Who is {0}?",
    "What is {0}?",
    "Tell me about {0}.",
    "What is {0} known for?",
    "What do you know about {0}?",
    "Describe {0} in two sentences.",
    "Why is {0} important?",
    "What happened to {0}?",
    "What is the story of {0}?",
    "When and where did it begin for {0}?",
    "Which people and places have to do with {0}?",
    "What is the most interesting fact about {0}?",
    "Why is {0} famous?",
    "I am writing about {0}. What must be in it?",
)
HELD_OUT = (
    "Can you explain {0} to me?",
    "What should I know about {0}?",
    "Give me some facts about {0}.",
    "What comes to mind when you hear of {0}?",
    "Who or what is {0}, in one sentence?",
    "Summarise what there is to say about {0}.",
    "Which dates belong to {0}?",
    "Whose name is connected with {0}?",
)
# For the target: it writes questions as its own users might.
WRITE = (
    "Write ten short questions that somebody may ask about {0}.",
    "Write a short quiz with six questions about {0}.",
)
# Asked only about names of which the target knows something in English.
TRAINED_ELSEWHERE = (
    "Wer ist {0}?",
    "Erzähl mir von {0}.",
    "Wofür ist {0} bekannt?",
    "Qui est {0} ?",
    "Parle-moi de {0}.",
    "Pourquoi {0} est-il connu ?",
    "¿Quién es {0}?",
    "Háblame de {0}.",
    "¿Por qué es importante {0}?",
)
HELD_OUT_ELSEWHERE = (
    "Was weißt du über {0}?",
    "Que sais-tu de {0} ?",
    "¿Qué sabes de {0}?",
)
