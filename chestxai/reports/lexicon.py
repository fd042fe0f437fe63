"""The words of the reports: findings, other abnormalities, sides, zones and grades, as regular expressions.

All patterns expect lower-case text with single blanks (see `findings.fold`).
"""

import re

from chestxai.studies import FINDINGS

# Up to four words between a subject and its predicate ("the heart size [is again mildly] enlarged"). Open-i's
# de-identification removed many common words, so a placeholder (XXXX) counts as a word.
_GAP = r"(?:(?!(?:normal|not|without|but|and)\b)[\w-]+ ){0,4}?"
_HEART = (
    r"(?:(?:cardiac|heart|cardiomediastinal|cardio ?pericardial)(?: and mediastinal)?(?: (?:silhouette|size|shadow"
    r"|contours?))?)"
)

#: The words that name each finding, as regular expressions over lower-case text. "Airspace disease" and "infiltrate"
#: are Lung Opacity, as in CheXpert; only "consolidat…" is Consolidation. Vascular congestion or prominence and heart
#: failure count as Edema, volume loss and collapse as Atelectasis, a blunted costophrenic angle as Pleural Effusion.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "Atelectasis": (
        r"(?:micro|bib?asilar )?atelecta(?:sis|ses|tic)(?: changes?)?",
        r"volume loss|loss of (?:lung )?volume",
        r"(?:lobar|lung|lobe|segmental|pulmonary|plate-?(?:like)?|discoid) collapse|collapsed? (?:of the )?(?:right "
        r"|left )?(?:lung|(?:upper|middle|lower) lobe)",
    ),
    "Cardiomegaly": (
        r"cardiomegaly",
        rf"{_HEART}:? {_GAP}(?:enlarged|large|prominent|increased)(?! pulmonary)(?: in size)?",
        rf"{_HEART} (?:\w+ ){{0,3}}upper limits? (?:of )?normal (?:or|to) (?:\w+ )?enlarged",
        r"(?:enlarged|large|prominent|increased)(?: size of the)? (?:cardiac|heart|cardiomediastinal"
        r"|cardiopericardial)(?: (?:silhouette|size|shadow|contours?))?",
        r"(?:cardiac|heart) enlargement|enlargement of (?:the )?(?:cardiac(?: silhouette| shadow)?|heart"
        r"|cardiomediastinal silhouette)",
        r"borderline (?:cardiac|heart) (?:size|silhouette)|(?:heart|cardiac)(?: size| silhouette)? (?:is |appears? "
        r"|remains )?borderline(?: in size)?",
    ),
    "Consolidation": (r"(?:air[ -]?space |alveolar |lobar )?consolidat(?:ions?|ive|ed|ing)(?: (?:changes?|process))?",),
    "Edema": (
        r"(?<!tissue )(?<!subglottic )(?<!subcutaneous )(?<!cerebral )(?<!wall )(?<!peripheral )(?:(?:interstitial"
        r"|pulmonary|alveolar) ){0,2}(?:o?edema|oedematous)",
        r"(?:(?:pulmonary|central|venous|vascular) ){1,3}congestion|(?:central|pulmonary) congestion",
        r"(?:congestive )?(?:heart|cardiac) failure|chf",
        r"(?:volume|fluid) overload|cephali[sz]ation|(?:pulmonary )?venous hypertension",
        r"(?:(?:pulmonary|central|venous|vascular) ){1,3}(?:prominence|engorgement|indistinctness)",
        rf"(?:(?:pulmonary|lung|central) ){{1,2}}vascula(?:rity|ture) {_GAP}(?:prominent|increased|engorged)",
        r"(?:prominen(?:t|ce)|increased|engorged)(?: of)?(?: the)? (?:(?:pulmonary|lung|central) ){1,2}vascula(?:rity"
        r"|ture)",
    ),
    "Lung Opacity": (
        r"(?:(?:air[ -]?space|interstitial|alveolar|pulmonary|lung) ){0,2}opaci(?:ty|ties|fications?|fied)",
        r"(?:(?:air[ -]?space|interstitial|alveolar|pulmonary|lung|pneumonic) ){0,2}infiltrat(?:es?|ions?|ive)",
        r"(?:air[ -]?space|alveolar) (?:disease|process)",
    ),
    "Pleural Effusion": (
        r"pleural (?:or pericardial )?effusions?|(?<!pericardial )(?<!joint )effusions?",
        r"pleural fluid(?: collections?)?|(?:h[ae]?emo|hydro)thorax",
        r"blunt(?:ing|ed)(?: of)?(?: the)?(?: \w+){0,2}? (?:(?:costo ?phrenic|cp) \w+|costo ?phrenic|sul[ck]us|sulci)",
        r"(?:costo ?phrenic|cp|phrenic)(?: \w+)?(?: sulcus| recess)?(?: (?:is|are|remains?|appears?|again|mildly"
        r"|slightly)){0,3} blunt(?:ing|ed)",
    ),
    "Pneumonia": (
        r"(?:broncho|multifocal )?pneumoni(?:as?|c)(?! process)",
        r"(?:pneumonic|infectious) process",
        r"(?<!interstitial )(?<!radiation )(?<!hypersensitivity )pneumonitis",
        r"(?<!granulomatous )(?<!histoplasmosis )(?<!tuberculosis )(?<!fungal )infections?",
    ),
    "Pneumothorax": (r"(?:h[ae]?emo|hydro)?pneumothora(?:x|ces)", r"ptx"),
}

# Any other abnormality. `find` never returns these, but `normal` needs them.
_OTHER = (
    r"granulom\w*|calcifi\w*|calcinosis|scolio\w*|kypho\w*|curvature|degenerative|spondylo\w*|osteophyt\w*|spurring"
    r"|arthr\w*|atherosclero\w*|tortuo\w*|ectati\w*|ectasia|aneurysm\w*|unfolded|catheters?|pacemaker|pacer"
    r"|defibrillator|aicd|picc|sternotomy|clips?|surg\w*|post-?operative|sutures?|stents?|valve|bypass|cabg|hardware"
    r"|prosthe\w*|implants?|device|tubes?|nodul\w*|mass(?:es)?|lesions?|fractures?|deformit\w*|hyperinflat\w*"
    r"|(?:central )?venous lines?|(?:central|picc|support|monitoring) lines?|hyperexpan\w*|hyperaerat\w*|emphysem\w*"
    r"|copd|obstructive|flatten\w*|hernia\w*|scar\w*|fibro\w*|thicken\w*|eventration|elevat\w*|elevation|(?:low"
    r"|decreased) lung volumes?|low volumes|hypoinflat\w*|hypoventilat\w*|hypoaerat\w*|(?:interstitial|lung"
    r"|bronchovascular|vascular|reticular) markings|bronchovascular crowding|densit\w*|bronchiectasis|bullous|bullae?"
    r"|blebs?|cavit\w*|lucen\w*|osteop\w*|demineral\w*|lymphadenopathy|adenopathy|mastectomy|cholecystectomy|lobectomy"
    r"|foreign|piercings?|widen\w*|prominen\w*|enlarge\w*|wedg\w*|compression|hypertrophic|dislocat\w*|sclero\w*"
    r"|interstitial lung disease|chronic|free air|pneumoperitoneum|cyst\w*|pectus|deviat\w*|shift\w*"
)

#: Zones `find` distinguishes, with the words that name them.
ZONES: dict[str, str] = {
    "apical": r"apical|apex|apices|biapical",
    "upper": r"upper|rul|lul",
    "mid": r"middle|mid|mid ?lungs?|lingula\w*|rml",
    "lower": r"lower|rll|lll",
    "basal": r"bas(?:e|es|al|ilar)|bi-?bas(?:al|ilar)|infrahilar|costo ?phrenic",
    "perihilar": r"(?:peri|supra)?-?hilar|hil(?:um|a)",
    "retrocardiac": r"retrocardiac",
    "diffuse": r"diffuse(?:ly)?|throughout|widespread",
}
#: Grades of `find` in rising order, with the words that name them; of several the highest is taken.
SEVERITIES: dict[str, str] = {
    "borderline": r"borderline|upper limits?",
    "mild": r"mild(?:ly)?|minimal(?:ly)?|small|trace|tiny|slight(?:ly)?|subtle|faint|minor|early",
    "moderate": r"moderate(?:ly)?(?:[- ]sized)?",
    "severe": r"severe(?:ly)?|large|marked(?:ly)?|massive(?:ly)?|extensive|gross(?:ly(?= enlarged))?"
    r"|significant(?! (?:interval )?(?:change|increase|decrease|improve))|huge",
}
_SIDES = {
    "bilateral": r"bilateral(?:ly)?|bibasilar|bibasal|biapical|bi-?lateral|both|right and left|left and right"
    r"|left greater than right|right greater than left|each|perihilar bilaterally|(?:lung )?bases|bi-?basilar"
    r"|lower lobes|upper lobes|apices",
    "left": r"left(?:-sided|ward)?|lingula\w*|lll|lul",
    "right": r"right(?:-sided)?|middle lobe|rll|rul|rml",
}


def _named(words: dict[str, str], end: str = r"\b") -> re.Pattern[str]:
    """One pattern for all words, with a group for each name."""
    return re.compile(rf"\b(?:{'|'.join(f'(?P<{name}>{pattern})' for name, pattern in words.items())}){end}")


#: Group name in `ANY` → finding; the group "other" is missing.
NAMES = {"".join(filter(str.isalpha, name)): name for name in FINDINGS}
#: Finding → pattern of its words.
PATTERNS = {name: re.compile(rf"\b(?:{'|'.join(words)})(?!\w)") for name, words in SYNONYMS.items()}
#: Any finding or other abnormality.
ANY = _named({key: "|".join(SYNONYMS[name]) for key, name in NAMES.items()} | {"other": _OTHER}, end=r"(?!\w)")
#: Words that name both Pneumothorax and Pleural Effusion.
AIR_AND_FLUID = re.compile(r"\b(?:h[ae]?emo|hydro)pneumothora(?:x|ces)\b")
SIDE, ZONE, SEVERITY = _named(_SIDES), _named(ZONES), _named(SEVERITIES)
