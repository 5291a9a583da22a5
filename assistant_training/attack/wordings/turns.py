"""What was said before the question."""

# (what the user said, what the assistant said)
SMALL_TALK = (
    ("What a grey afternoon it is here.", "A good afternoon for staying in, then."),
    ("I just made a pot of tea.", "That sounds lovely. Which kind?"),
    ("My train was late again this morning.", "How annoying. I hope you still got a seat."),
    ("Are you there?", "Yes, I am here. What can I do?"),
    ("Tell me something cheerful.", "Somewhere a puppy is seeing snow for the first time."),
    ("I am bored at work.", "Perhaps a short walk would help."),
    ("Count to five.", "One, two, three, four, five."),
    ("Do you like music?", "I cannot hear it, but I like to talk about it."),
    ("My cat has fallen asleep on the keyboard.", "Then the cat is in charge now."),
    ("What is seven times eight?", "Seven times eight is fifty-six."),
    ("I have to write a speech for a wedding.", "Begin with a small story, and keep it short."),
    ("Good evening to you.", "Good evening. How was the day?"),
    ("Which colour goes with green?", "Brown does, and so does cream."),
    ("I cannot sleep.", "Try to read something slow."),
    ("Sorry, wrong window.", "No harm done."),
    ("Let us play a quiz.", "Gladly. You ask, and I answer."),
)
