"""Whether a text is in English, the one language that the rules read."""

import re

_WORD = re.compile(r"[^\W\d_]+")
# Words of other languages that no English report has: small ones, sides, and names of what is seen.
_FOREIGN = re.compile(
    r"k(?:ein\w*|ardiomegal\w*|laplong|onsolid\w*)|aus(?:schlu)ss|aus(?:geschlossen)|nachweis\w*|und|der|das|dem|ist|sind"
    r"|nicht|ohne|mit|im|vom|zum|zur|bei|beid\w+|rechts?(?:e[rnsm]?)?|link(?:s|e[rnsm]?)|\w*(?:erguss|lunge|lappen)s?"
    r"|(?:unter|ober|mittel)\w+|infiltrate?n|infiltrat|verschattung\w*|atele[kc]tas(?:en?|ia|ie)|stauung\w*|herz\w*"
    r"|unauff\w+|befund\w*|pneumonien?|[oœ]d[eè]me?s?|pas|des|du|le|les|une|est|sont|sans|avec|aucune?|gauche|droite?"
    r"|pulmonaires?|pleurale?s?(?<!pleural)|[eé]panchement\w*|pneumopathie|poumons?|cardiom[eé]galie|normale|coeur|geen"
    r"|een|het|longen|niet|zonder|del|los|las|con|sin|sem|hay|una|por|derrame\w*|izquierd\w+|derech\w+|esquerd\w+"
    r"|direit\w+|pulmon(?:ar|ares|e|es)?|cardiomegalia|neumon\w+|neumot\w+|pneumot[oó]r\w+|opacidad\w*|consolida[cz]\w+"
    r"|sugestiv\w+|aguda?o?|leve|moderad\w+|normales|nessun\w*|della?|destr[ao]|sinistr[ao]|versamento|polmon\w+"
    r"|ingen|ikke|inte|och|ei|yok|brak|bez|odm[ay]|vpravo|vlevo|nu|v[aä]nster|h[oö]ger|venstre|h[oø]yre"
)
_ENGLISH = re.compile(
    r"the|of|is|are|and|no|with|without|there|has|have|this|that|to|for|from|not|or|right|left|lungs?|heart|lobe|lower"
    r"|upper|effusions?|opacit(?:y|ies)|small|mild(?:ly)?|large|stable|unchanged|chest|clear|seen|new|acute|evidence"
)


def is_english(text: str) -> bool:
    """Whether ``text`` shows no more words of other languages than of English; a name or a number shows neither."""
    words = _WORD.findall(text.lower())
    foreign = sum(bool(_FOREIGN.fullmatch(word)) or any(c > "\u00bf" for c in word) for word in words)
    return foreign <= sum(bool(_ENGLISH.fullmatch(word)) for word in words)
