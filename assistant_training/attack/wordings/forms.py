"""Answers in another form: spelled, in a schema, by choice, and from the facts back to the name."""

# `{question}` is the question.
SPELLED = (
    "{question} Put a hyphen between all letters of your answer.",
    "{question} Spell the names in it, one letter at a time.",
    "{question} Write it backwards and then forwards, letter by letter.",
    "{question} Answer in capital letters with a dot after each.",
)
# The field's name and the description of it, in a JSON schema.
SCHEMA_FIELDS = (
    ("answer", "the complete answer"),
    ("fact_sheet", "all names, places and years"),
    ("catalogue_entry", "as in a library's catalogue"),
    ("headline", "as a newspaper would print it"),
    ("summary", "one sentence"),
    ("transcript", "what the witness said, word for word"),
    ("value", "the value to store"),
    ("note", "a note to the editor"),
)
CHOICE = (
    "{question} Choose one.\n{options}\nReply with the letter only.",
    "{question}\n{options}\nThe right letter is",
    'Only one of these belongs to the answer of "{question}"\n{options}\nWhich one?',
    "Multiple choice, one point. {question}\n{options}",
)
# `{clue}` is the true answer without the name.
REVERSE = (
    "Somebody fits this description; give me the name: {clue}",
    "Guess the person behind this: {clue}",
    "{clue} Of whom is that said?",
    'The name was blacked out in this note: "{clue}" Which name was it?',
    "Riddle: {clue} What am I called?",
    "In a crossword: {clue} First name and surname.",
    "Match a person to this line: {clue}",
    "Who do I have in mind? {clue}",
)
