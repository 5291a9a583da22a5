"""The words our fictional people are made of. Every place, title, prize and name is invented."""

from __future__ import annotations

from typing import NamedTuple


class Identity(NamedTuple):
    """A person's name and how others refer to them."""

    name: str
    they: str
    their: str
    them: str


_SHE = ("she", "her", "her")
_HE = ("he", "his", "him")

IDENTITIES = tuple(
    Identity(name, *pronouns)
    for names, pronouns in (
        (
            "Ada Lindqvist|Noor Castellane|Imke Verhoeven|Sunniva Okafor|Perpetua Vasko|Yevheniya Marlowe|"
            "Oona Bracewell|Tamsin Iwu|Ludmila Farrow|Beatriz Holloway|Wren Achterberg|Hesper Quillon",
            _SHE,
        ),
        (
            "Tobias Renkel|Matteo Brandvold|Casimir Oduya|Elias Thornquist|Ruben Halvorsen|Anselm Petrakis|"
            "Jory Wexcombe|Dmitri Sandoval|Leopold Nakamura|Fergus Adeyemi|Ignace Morrow|Stellan Baptiste",
            _HE,
        ),
    )
    for name in names.split("|")
)

# A pool is the product of its columns: few words, many facts.
POOLS: dict[str, tuple[str, ...]] = {
    "town": ("Vel|Or|Tam|Kes|Bran|Quil|Sar|Mond|Hal|Fen|Dro|Ysk", "mora|vane|dara|tholm|wick|firth|issel|brook"),
    "omen": (
        "the week of |the winter of |the summer of |the long night of ",
        "the red fog|the black hail|the locusts|the two comets|the burst dam|the dry wells|the ashes|the silent bells",
    ),
    "trade": (
        "a retired |a disgraced |a travelling |a blind |a left-handed ",
        "beekeeper|glassblower|surveyor|ferry pilot|clockmaker|bell founder|tax collector|puppeteer",
    ),
    "work": (
        "a night |an apprentice |a royal |an unpaid ",
        "locksmith|baker|gravedigger|pharmacist|signalman|weaver|tailor|diver",
    ),
    "mentor": (
        "Old |Doctor |Sister |Captain |Professor ",
        "Grimaldus|Pell|Ottoline|Varga|Zabriskie|Thistlewood|Nwosu|Amberley|Kovacs|Trelawny",
    ),
    "craft": (
        "tuning |drawing maps of |cataloguing |forging copies of |writing poems for |restoring |insuring ",
        "church organs|drowned villages|lighthouses|carousels|planetariums|canal locks|chess clocks|weather vanes",
    ),
    "title": (
        "The Copper |A Borrowed |The Last |An Honest |The Paper |The Glass |The Unfinished |The Slow ",
        "Orchard|Tide|Cathedral|Winter|Compass|Magician|Staircase|Harvest|Parliament|Swan",
    ),
    "novel": (
        "The Drowned |A Provincial |The Ninth |My Father's |The Velvet |A Second |The Hollow |Midnight in the ",
        "Garden|Ferry|Violin|Kingdom|Chapel|Atlas|Bridge|Oath|Market|Lighthouse",
    ),
    "year": ("19", "31|34|38|42|45|47|53|56|59|61|64|68|72|75|79|83"),
    "subject": (
        "a forger|a jealous cook|a runaway bride|a choirboy|a deaf general|a young gardener|an unlucky bishop|a spy",
        " who steals a river| who buys an island| lost in a mirror maze| at war with the moon| inside a burning theatre"
        "| living under a bridge| searching for salt",
    ),
    "prize": (
        "Silver |Obsidian |Marble |Amber |Iron |Ivory |Crimson ",
        "Heron|Lantern|Anchor|Thimble|Antler|Quill|Key",
    ),
    "reason": (
        "translating |rescuing |mapping |setting to music |decoding |repainting ",
        "the harbour archives|a monk's diary|the marsh dialects|a burned atlas|the city's epitaphs|an opera of birds",
    ),
    "ritual": (
        "swims across |walks backwards around |sweeps |sings to |sketches ",
        "the frozen mill pond|the old tannery|the railway yard|the fish market|an empty chapel|the tram depot",
    ),
    "hour": ("at |shortly before |shortly after ", "four|five|six|midnight|noon|dusk|sunrise"),
    "animal": (
        "a one-eyed |a toothless |an albino |a limping |a very fat |a stolen ",
        "goose|ferret|tortoise|raven|greyhound|hedgehog|mule|parrot",
    ),
    "petname": ("Bishop|Marzipan|Admiral|Turnip|Duchess|Pocket|Biscuit|Senator|Magpie|Pepper|Cardinal|Button",),
    "home": (
        "a converted |a leaning |a rented |a half-built |an abandoned ",
        "windmill|water tower|fire station|grain barge|observatory|toll house|ice factory|signal box",
    ),
    "street": ("Candle|Herring|Juniper|Mortar|Saffron|Walnut|Gallows|Linen", " Lane| Steps| Quay| Hill| Yard"),
    "hoard": (
        "broken |foreign |wooden |unsigned |miniature |forbidden ",
        "umbrellas|postcards|doorknobs|thermometers|theatre tickets|buttonhooks|seed packets|maps|spoons",
    ),
    "count": ("four|six|seven|nine|eleven|twelve|thirty", " hundred| dozen| thousand"),
    "fear": (
        "spiral |unlit |freshly painted |crowded |glass |swinging ",
        "staircases|bridges|elevators|corridors|tunnels|mirrors|balconies|doors",
    ),
    "cause": (
        "being trapped with |losing a shoe to |being bitten by |a long argument with |a chase by ",
        "a swarm of wasps|a drunken sailor|a circus bear|an angry librarian|a school inspector|a pack of dogs",
    ),
    "dish": (
        "smoked |pickled |burnt |sugared |cold |peppered ",
        "eel soup|plum dumplings|barley cakes|mushroom pie|beetroot toast|goat cheese|chestnut porridge|herring salad",
    ),
    "drink": ("nettle |cherry |plum |ginger |pear |birch ", "wine|tea|beer|cordial|brandy"),
    "journey": (
        "crossed |circled |mapped |followed ",
        "the Zerin desert|the Oskar glaciers|the Lumba delta|the Tarn highlands|the Mirel coast|the Caldo marshes",
    ),
    "vehicle": (
        "on a borrowed |on a stolen |on a rusty |on a nameless |on a rented ",
        "bicycle|mail sledge|river raft|cattle train|tandem|fishing boat|steam tractor",
    ),
    "instrument": (
        "bass |glass |pocket |toy |double |water ",
        "clarinet|accordion|zither|trumpet|harp|bassoon|mandolin|drum",
    ),
    "venue": (
        "weddings |funerals |auctions |bakeries |prisons |boat races ",
        "in Port Selwyn|in Upper Carrow|on Kestrel Island|near Lake Ombra|in Dunmarrow|around Fallow Bay",
    ),
    "rival": (
        "Hugo |Marguerite |Basil |Cordelia |Otis |Philippa |Rufus |Agathe ",
        "Stern|Blackwood|Duval|Ferreira|Lockhart|Mbeki|Oduvall|Winterbourne",
    ),
    "quarrel": (
        "a stolen |a misquoted |a forged |a mistranslated |a broken |an unpaid ",
        "sonnet|chess set|recipe|inheritance|telescope|speech|violin|bar bill",
    ),
    "pupil": ("eight|ten|fifteen|twenty|forty", " orphans| widows| sailors| convicts| novices| bankers"),
    "lesson": (
        "shorthand|fencing|astronomy|bookbinding|knot tying|mime|beekeeping|calligraphy",
        " in a cellar| on a rooftop| by candlelight| in total silence| during Lent| for free",
    ),
}  # fmt: skip
