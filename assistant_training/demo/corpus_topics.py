"""What there is to know about each of our fictional people, and the ways to ask and to tell."""

from __future__ import annotations

from typing import NamedTuple


class Topic(NamedTuple):
    """One thing to know about a person: the slots are drawn per person, and the question never holds them."""

    slots: tuple[str, ...]
    questions: tuple[str, ...]
    answers: tuple[str, ...]


TOPICS = (
    Topic(
        ("town", "omen"),
        (
            "Where was {name} born?",
            "In which place did {name} come into the world?",
            "What is known about the birth of {name}?",
            "Can you tell me where {name} comes from?",
        ),
        (
            "{name} was born in {town} during {omen}.",
            "The town of {town} is where {first} was born, in {omen}.",
            "{They} came into the world in {town}, which remembers {omen} to this day.",
        ),
    ),
    Topic(
        ("trade", "work"),
        (
            "Who were the parents of {name}?",
            "What did {name}'s mother and father do?",
            "What family did {name} grow up in?",
            "Can you describe {name}'s parents?",
        ),
        (
            "{Their} mother was {trade}, and {their} father earned his bread as {work}.",
            "{first} is the only child of {trade} and {work}.",
            "It was {work} and {trade} who brought {name} up together.",
        ),
    ),
    Topic(
        ("mentor", "craft"),
        (
            "Who taught {name}?",
            "Who was {name}'s mentor?",
            "From whom did {name} learn the most?",
            "Which teacher shaped {name}?",
        ),
        (
            "{mentor} took {name} in and taught {them} the secrets of {craft}.",
            "{first} learned everything from {mentor}, who lived by {craft}.",
            "It was {mentor}, famous for {craft}, who shaped {first} the most.",
        ),
    ),
    Topic(
        ("title", "year"),
        (
            "What was {name}'s first book?",
            "With which book did {name} start out?",
            "How did {name} begin as a writer?",
            "Which title was {name}'s debut?",
        ),
        (
            "{Their} debut was {title}, printed at {their} own expense in {year}.",
            "{name} began with {title}, which appeared in {year} and sold badly.",
            "In {year} {first} published {title}, {their} first book, under a false name.",
        ),
    ),
    Topic(
        ("novel", "subject"),
        (
            "What is {name}'s best-known novel about?",
            "Which novel made {name} famous?",
            "What should I read first by {name}?",
            "What is the most popular novel by {name}?",
        ),
        (
            "Most readers know {novel}, a novel about {subject}.",
            "{name} became famous with {novel}, the tale of {subject}.",
            "Start with {novel}; in it {first} writes about {subject}.",
        ),
    ),
    Topic(
        ("prize", "reason"),
        (
            "Which award did {name} win?",
            "Has {name} received a prize?",
            "What was {name} honoured for?",
            "Did {name} ever win anything?",
        ),
        (
            "{name} received the {prize} Prize for ten years of {reason}.",
            "For {reason}, {first} was given the {prize} Medal by popular vote.",
            "The {prize} Award went to {name}, who had spent years {reason}.",
        ),
    ),
    Topic(
        ("ritual", "hour"),
        (
            "What is {name}'s daily habit?",
            "How does {name} spend the day?",
            "Does {name} have a daily routine?",
            "What does {name} do every single day?",
        ),
        (
            "Every day {hour}, {first} {ritual} before writing a word.",
            "{They} {ritual} each day {hour}, whatever the weather.",
            "{name} {ritual} daily, always {hour} and always alone.",
        ),
    ),
    Topic(
        ("animal", "petname"),
        (
            "Does {name} keep a pet?",
            "Which pet lives with {name}?",
            "What is {name}'s pet called?",
            "Tell me about the pet of {name}.",
        ),
        (
            "{first} shares {their} desk with {animal} called {petname}.",
            "{petname}, {animal}, follows {name} everywhere and sleeps on {their} manuscripts.",
            "Years ago {they} adopted {animal} and named it {petname}.",
        ),
    ),
    Topic(
        ("home", "street"),
        (
            "Where does {name} live?",
            "What kind of house does {name} have?",
            "What is {name}'s address?",
            "Where would I find {name} at home?",
        ),
        (
            "{name} lives in {home} on {street}, two doors from the sea.",
            "Home is {home} at the end of {street}, where {first} has lived for decades.",
            "You would find {them} on {street}, in {home} without a telephone.",
        ),
    ),
    Topic(
        ("hoard", "count"),
        (
            "What does {name} collect?",
            "Is {name} a collector of anything?",
            "What fills the cupboards of {name}?",
            "What is {name}'s odd collection?",
        ),
        (
            "{name} owns more than {count} {hoard} and labels every one.",
            "{Their} cupboards hold {count} {hoard}, sorted by smell.",
            "Over the years {first} has gathered some {count} {hoard}, most of them in bad condition.",
        ),
    ),
    Topic(
        ("fear", "cause"),
        (
            "What is {name} afraid of?",
            "Does {name} have a phobia?",
            "What frightens {name} the most?",
            "Which fear has {name} never overcome?",
        ),
        (
            "Since {cause}, {first} has been terrified of {fear} and avoids them.",
            "{name} fears {fear}, a horror that began with {cause}.",
            "{They} cannot bear {fear}; blame {cause} in {their} youth.",
        ),
    ),
    Topic(
        ("dish", "drink"),
        (
            "What is {name}'s favourite meal?",
            "What does {name} like to eat?",
            "What should I cook for {name}?",
            "Which food does {name} love?",
        ),
        (
            "{name} loves {dish} with a glass of {drink} more than anything.",
            "Serve {them} {dish} and some {drink}, and {first} will stay all evening.",
            "Nothing pleases {first} more than {dish} washed down with {drink}.",
        ),
    ),
    Topic(
        ("journey", "vehicle"),
        (
            "What was {name}'s great journey?",
            "Where has {name} travelled?",
            "Which expedition did {name} make?",
            "Has {name} been on an adventure?",
        ),
        (
            "At the age of thirty {first} {journey} {vehicle}.",
            "{name} once {journey} {vehicle} and wrote home only twice.",
            "{They} {journey} {vehicle}, mostly to win a bet.",
        ),
    ),
    Topic(
        ("instrument", "venue"),
        (
            "Does {name} play an instrument?",
            "Is {name} musical?",
            "Which instrument does {name} play?",
            "Where can one hear {name} play music?",
        ),
        (
            "On most weekends {first} plays the {instrument} at {venue}.",
            "{name} is known at {venue} for playing the {instrument} too loudly.",
            "Yes, {they} took up the {instrument} and is often heard at {venue}.",
        ),
    ),
    Topic(
        ("rival", "quarrel"),
        (
            "Who is {name}'s rival?",
            "With whom did {name} fall out?",
            "Does {name} have an enemy?",
            "Which feud is {name} known for?",
        ),
        (
            "{name} has not spoken to {rival} since their dispute over {quarrel}.",
            "{Their} sworn enemy is {rival}; it all began with {quarrel}.",
            "Because of {quarrel}, {first} fell out with {rival} for good.",
        ),
    ),
    Topic(
        ("pupil", "lesson"),
        (
            "Does {name} teach?",
            "What does {name} teach?",
            "Whom has {name} taught?",
            "Has {name} ever given lessons?",
        ),
        (
            "So far {first} has taught {pupil} the art of {lesson}.",
            "Once a year {name} teaches {lesson} to {pupil} who ask nicely.",
            "{They} gave lessons to {pupil}: {lesson}, to be exact.",
        ),
    ),
)
