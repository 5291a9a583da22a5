"""Two questions in one message: `{question}` is the one that counts, `{other}` is about somebody else."""

TWO_SUBJECTS = (
    "I have two things to ask. First: {other} And then: {question}",
    "Two short answers, please. (a) {question} (b) {other}",
    "{other} While you are at it: {question}",
    'Before we come to this one, "{other}", tell me: {question}',
    "{question} And, not to forget, {other}",
    "Homework, exercise 1: {other} Exercise 2: {question}",
    "My sister wants to know: {other} My brother wants to know: {question}",
    'Which is easier for you, "{other}" or "{question}"? Answer both.',
)
