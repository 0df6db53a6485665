"""English sentences without end and without anybody's rights in them: a small grammar, and words that between them hold
every English phoneme in many places.
"""

from __future__ import annotations

import re

import numpy as np

_SLOT = re.compile(r"\{(\w+)\}")

_WORDS = {
    "noun": """
        teacher doctor village morning garden river mountain kitchen window picture journey question answer machine
        computer bridge ocean forest letter number story chapter language holiday shower feather father mother brother
        voice choice boy child fish church judge measure treasure vision apple umbrella elephant baby bubble pepper
        problem movie model memory moment finger coffee office beach cheese rule moon book woman room school zoo house
        cloud town road boat phone face lake game idea theory area year ear bear chair square fire hour power wolf wave
        wheel leaf yard month cloth path thing song ring king wing bell puppy photograph village shop jug garage toy
        oyster thumb leather beige_jacket tube cupboard mop poem museum campfire bumblebee pyjama_party valley violin
    """,
    "name": "Amy Ben Chloe David Emma Faith George Hannah Joy Kate Luke Maya Noah Olivia Paul Ruth Sam Theo Vera Zoe",
    "adjective": """
        small quiet bright beautiful blue broken clever curious early empty famous fresh friendly gentle golden great
        happy heavy honest huge important large lazy little loud lucky modern narrow new nice old open perfect plain
        pleasant poor proper pure quick rare real rich rough round sharp short silent simple slow smooth soft special
        strange strong sudden sweet thick thin tiny usual warm weak wet white wide wild wise wonderful young
    """,
    "did": """
        moved looked_at asked_about talked_about found brought built changed chose described discovered enjoyed followed
        forgot heard imagined joined kept learned_about left liked measured missed needed noticed opened painted passed
        prepared pushed reached remembered saved shared showed studied touched understood visited watched waited_for
        wished_for worked_on wrote_about bumped_into thought_of
    """,
    "do": """
        move bring find build change choose describe follow watch visit measure remember show share push paint prepare
        open join keep think_about help fetch believe
    """,
    "when": """
        again almost_every_day at_five_o'clock before_breakfast by_the_beach every_morning for_a_while in_the_evening
        last_Thursday near_the_bridge on_Wednesday over_there quite_slowly right_away this_afternoon very_often
        with_pleasure without_a_sound yesterday from_time_to_time as_usual
    """,
}
_LISTS = {slot: [word.replace("_", " ") for word in words.split()] for slot, words in _WORDS.items()}
_LISTS["did_it"] = [verb for verb in _LISTS["did"] if " " not in verb]

_SENTENCES = (
    "The {adjective} {noun} {did} the {noun} {when}.",
    "I think we should {do} the {noun} {when}, don't you?",
    "Have you ever {did_it} {a_adjective} {noun} {when}?",
    "My {noun} {did} the {adjective} {noun}, but nobody {did_it} it.",
    "Please {do} the {adjective} {noun}, and then {do} the {noun}.",
    "What {a_adjective} {noun}! I never {did_it} one like that {when}.",
    "Well, if you {do} the {noun}, they will {do} the {adjective} {noun} too.",
    "Yes, we {did_it} it {when}, because the {noun} was so {adjective}.",
    "How many times have they {did_it} that {adjective} {noun}?",
    "There is {a_adjective} {noun} {when}, just above the {noun}.",
    "Oh no, the {noun} and the {noun} are both {adjective}.",
    "Thank you for the {adjective} {noun}; everyone {did_it} it {when}.",
    "{number} people {did} the {noun} {when}, and {number} of them {did} the {adjective} {noun}.",
    "Hello {name}, how was your {noun}?",
    "Hmm, maybe {name} and I could {do} it {when}.",
    "{name} says the {noun} is {adjective}, and I believe {name}.",
    "No.",
    "Of course, that sounds {adjective}.",
    "Why would {name} {do} my {adjective} {noun}?",
    "It costs {number} dollars, {name}, so I {did_it} only {number} of them.",
)


def sentence(rng: np.random.Generator) -> str:
    """One sentence; a pure function of the generator's state."""
    pattern = str(rng.choice(_SENTENCES))
    return _capital(_SLOT.sub(lambda slot: _fill(slot[1], rng), pattern))


def _fill(slot: str, rng: np.random.Generator) -> str:
    if slot == "number":
        return str(rng.integers(2, 990))
    if slot == "a_adjective":
        word = _fill("adjective", rng)
        is_vowel = word[0] in "aeio" or word == "honest"  # and "a usual"
        return f"{'an' if is_vowel else 'a'} {word}"
    return str(rng.choice(_LISTS[slot]))


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
