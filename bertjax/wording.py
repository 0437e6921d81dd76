"""Numbers with their nouns, in the singular where there is one: "1 text", "2 texts"."""

import re

_ENDINGS = (("ies", "y"), ("sses", "ss"), ("ches", "ch"), ("xes", "x"), ("s", ""))


def counted(count: int, plural: str) -> str:
    """Return a number with what it counts, such as "1 text truncated to 128 tokens".

    plural: begins with the noun, or has one word or two before it; of these the first that ends in s is the noun.
    """
    if count != 1:
        return f"{count:,} {plural}"
    words = plural.split(" ")
    place = next((n for n, word in enumerate(words) if re.fullmatch(r".*[^s]s[,:;]?", word)), None)
    if place is not None:
        noun = words[place].rstrip(",:;")
        after = words[place][len(noun) :]
        plural_end, singular_end = next((a, b) for a, b in _ENDINGS if noun.endswith(a))
        words[place] = noun.removesuffix(plural_end) + singular_end + after
    return " ".join(["1", *words]).replace(" their ", " its ")
