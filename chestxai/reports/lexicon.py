"""The words of reports, as regular expressions over lower-case text with single blanks (see `findings.fold`)."""

import re
from functools import cache

from chestxai.studies import FINDINGS

# Up to four words between a subject and its predicate: "heart size [is XXXX mildly] enlarged".
_GAP = r"(?:(?!(?:normal|without|but|and)\b)[\w'-]+ ){0,4}?"
_HEART = (
    r"(?:(?:cardiac|heart|cardiomediastinal|cardio ?pericardial)(?: and mediastinal)?"
    r"(?: (?:silhouette|size|shadow|contours?))?)"
)
_LARGE = r"(?:enlarged|large|prominent|increased)"
_VESSELS = r"(?:(?:pulmonary|lung|central) ){1,2}vascula(?:rity|ture)"

#: The words that name each finding, as regular expressions over lower-case text. "Airspace disease" and "infiltrate"
#: are Lung Opacity, as in CheXpert; only "consolidat…" is Consolidation. Vascular congestion or prominence and heart
#: failure count as Edema, volume loss and collapse as Atelectasis, a blunted costophrenic angle as Pleural Effusion.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "Atelectasis": (
        r"(?:micro|bib?asilar )?atelecta(?:sis|ses|tic)(?: changes?)?|volume loss|loss of (?:lung )?volume",
        r"(?:lobar|lung|lobe|segmental|pulmonary|plate-?(?:like)?|discoid) collapse"
        r"|collapsed? (?:of the )?(?:right |left )?(?:lung|(?:upper|middle|lower) lobe)",
    ),
    "Cardiomegaly": (
        rf"cardiomegaly|(?:cardiac|heart) enlargement|enlargement of (?:the )?{_HEART}",
        rf"{_HEART}:? {_GAP}{_LARGE}(?! pulmonary)(?: in size)?|{_LARGE}(?: size of the)? {_HEART}",
        rf"{_HEART} (?:\w+ ){{0,3}}(?:(?:upper|high) limits? (?:of )?|top |high )normal (?:or|to) (?:\w+ )?enlarged",
        r"borderline (?:cardiac|heart) (?:size|silhouette)"
        r"|(?:heart|cardiac)(?: size| silhouette)? (?:is |appears? |remains )?borderline(?: in size)?",
    ),
    "Consolidation": (r"(?:air[ -]?space |alveolar |lobar )?consolidat(?:ions?|ive|ed|ing)(?: (?:changes?|process))?",),
    "Edema": (
        r"(?<!tissue )(?<!subglottic )(?<!subcutaneous )(?<!cerebral )(?<!wall )(?<!peripheral )"
        r"(?:(?:interstitial|pulmonary|alveolar) ){0,2}(?:o?edema|oedematous)",
        r"(?:(?:pulmonary|central|venous|vascular) ){1,3}(?:congestion|prominence|engorgement|indistinctness)",
        r"(?:congestive )?(?:heart|cardiac) failure|chf|(?:volume|fluid) overload|cephali[sz]ation",
        rf"(?:pulmonary )?venous hypertension|{_VESSELS} {_GAP}(?:prominent|increased|engorged)",
        rf"(?:prominen(?:t|ce)|increased|engorged)(?: of)?(?: the)? {_VESSELS}",
    ),
    "Lung Opacity": (
        r"(?:(?:air[ -]?space|interstitial|alveolar|pulmonary|lung|pneumonic) ){0,2}(?:opaci(?:ty|ties|fications?|fied)"
        r"|infiltrat(?:es?|ions?|ive))|(?:air[ -]?space|alveolar) (?:disease|process)",
    ),
    "Pleural Effusion": (
        r"pleural (?:or pericardial )?effusions?|(?<!pericardial )(?<!joint )effusions?",
        r"pleural fluid(?: collections?)?|(?:h[ae]?emo|hydro)thorax",
        r"blunt(?:ing|ed)(?: of)?(?: the)?(?: \w+){0,2}? (?:(?:costo ?phrenic|cp) \w+|costo ?phrenic|sul[ck]us|sulci)",
        r"(?:costo ?phrenic|cp|phrenic)(?: \w+)?(?: sulcus| recess)?"
        r"(?: (?:is|are|remains?|appears?|again|mildly|slightly)){0,3} blunt(?:ing|ed)",
    ),
    "Pneumonia": (
        r"(?:broncho|multifocal )?pneumoni(?:as?|c)(?! process)|(?:pneumonic|infectious) process",
        r"(?<!interstitial )(?<!radiation )(?<!hypersensitivity )pneumonitis",
        r"(?<!granulomatous )(?<!histoplasmosis )(?<!tuberculosis )(?<!fungal )infections?",
    ),
    "Pneumothorax": (r"(?:h[ae]?emo|hydro)?pneumothora(?:x|ces)|ptx",),
}
# Any other abnormality. `find` never returns these, but `normal` needs them.
_OTHER = (
    r"granulom\w*|calcifi\w*|calcinosis|scolio\w*|kypho\w*|curvature|degenerative|spondylo\w*|osteophyt\w*|spurring"
    r"|arthr\w*|atherosclero\w*|tortuo\w*|ectati\w*|ectasia|aneurysm\w*|unfolded|catheters?|pacemaker|pacer"
    r"|defibrillator|aicd|picc|sternotomy|clips?|surg\w*|post-?operative|sutures?|stents?|valve|bypass|cabg|hardware"
    r"|prosthe\w*|implants?|device|tubes?|nodul\w*|mass(?:es)?|lesions?|fractures?|deformit\w*|obstructive|copd"
    r"|hyp(?:er|o)(?:inflat|expan|aerat|ventilat)\w*|emphysem\w*|flatten\w*|hernia\w*|scar\w*|fibro\w*|thicken\w*"
    r"|(?:(?:central )?venous|central|picc|support|monitoring) lines?|eventration|elevat\w*|densit\w*|hypertrophic"
    r"|(?:low|decreased) lung volumes?|low volumes|(?:interstitial|lung|bronchovascular|vascular|reticular) markings"
    r"|bronchovascular crowding|bronchiectasis|bullous|bullae?|blebs?|cavit\w*|lucen\w*|osteop\w*|demineral\w*|wedg\w*"
    r"|(?:lymph)?adenopathy|mastectomy|cholecystectomy|lobectomy|foreign|piercings?|widen\w*|prominen\w*|enlarge\w*"
    r"|compression|dislocat\w*|sclero\w*|interstitial lung disease|chronic|free air|pneumoperitoneum|cyst\w*|pectus"
    r"|deviat\w*|shift\w*"
)
#: Zones `find` distinguishes, with the words that name them.
ZONES: dict[str, str] = {
    "apical": r"apical|apex|apices|biapical",
    "upper": r"upper|rul|lul",
    "mid": r"middle|mid|mid ?lungs?|lingula\w*|rml",
    "lower": r"lower|rll|lll",
    "basal": r"(?:bi-?)?bas(?:al|ilar)|bases?|infrahilar|costo ?phrenic",
    "perihilar": r"(?:peri|supra)?-?hilar|hil(?:um|a)",
    "retrocardiac": r"retrocardiac",
    "diffuse": r"diffuse(?:ly)?|throughout|widespread",
}
#: Grades of `find` in rising order, with the words that name them; of several the highest is taken.
SEVERITIES: dict[str, str] = {
    "borderline": r"borderline|upper limits?",
    "mild": r"mild(?:ly)?|minimal(?:ly)?|small|trace|tiny|slight(?:ly)?|subtle|faint|minor|early",
    "moderate": r"moderate(?:ly)?(?:[- ]sized)?",
    "severe": r"severe(?:ly)?|large|marked(?:ly)?|massive(?:ly)?|extensive|gross(?:ly(?= enlarged))?|huge"
    r"|significant(?! (?:interval )?(?:change|increase|decrease|improve))",
}
GRADES = list(SEVERITIES)
_SIDES = {
    "bilateral": r"bi-?lateral(?:ly)?|bi-?bas(?:al|ilar)|biapical|both|each|right and left|left and right|apices"
    r"|left greater than right|right greater than left|perihilar bilaterally|(?:lung )?bases|lower lobes|upper lobes",
    "left": r"left(?:-sided|ward)?|lingula\w*|lll|lul",
    "right": r"right(?:-sided)?|middle lobe|rll|rul|rml",
}


def _named(words: dict[str, str], end: str = r"\b") -> re.Pattern[str]:
    """One pattern for all words, with a group for each name."""
    return re.compile(rf"\b(?:{'|'.join(f'(?P<{name}>{pattern})' for name, pattern in words.items())}){end}")


_KEYS = {"".join(filter(str.isalpha, name)): name for name in FINDINGS}
#: Any finding or other abnormality; `names` says which.
ANY = _named({key: "|".join(SYNONYMS[name]) for key, name in _KEYS.items()} | {"other": _OTHER}, end=r"(?!\w)")
_AIR_AND_FLUID = r"(?:h[ae]?emo|hydro)pneumothora(?:x|ces)"
OWN = "own"  # name of a finding that is none of the eight
SIDE, ZONE, SEVERITY = _named(_SIDES), _named(ZONES), _named(SEVERITIES)


def names(hit: re.Match[str]) -> tuple[str, ...]:
    """The findings that a match of `ANY` names; "" stands for any other abnormality."""
    if re.match(_AIR_AND_FLUID, hit[0]):
        return "Pneumothorax", "Pleural Effusion"
    return ("" if hit.lastgroup == "other" else _KEYS.get(str(hit.lastgroup), OWN),)


@cache
def patterns(finding_name: str) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Patterns of the words of one finding, and of anything `ANY` matches or that finding.

    Args:
        finding_name: one of the eight, or any other, whose name and plural are its words.
    """
    if finding_name in SYNONYMS:
        words = (*SYNONYMS[finding_name], *([_AIR_AND_FLUID] if finding_name == "Pleural Effusion" else []))
        return re.compile(rf"\b(?:{'|'.join(words)})(?!\w)"), ANY
    own = rf"\b(?P<{OWN}>{re.escape(' '.join(finding_name.lower().split()))}(?:e?s)?)(?!\w)"
    return re.compile(own), re.compile(f"{own}|{ANY.pattern}")
