"""What do diffusion models that generate chest X-rays understand? The helper package behind the book.

One module is one idea; the flow is ``studies → sources → models → finetune → attention → grounding →
localization/fidelity → stats → tradeoff → plots → batch → book``, and no module imports one to its right.
"""

import os

__version__ = "0.1.0"

# Read by transformers when it is first imported: its hints about packages we do not need are noise to a reader.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
