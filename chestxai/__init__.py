"""What do diffusion models that draw chest X-rays understand? The helper package behind the book.

One module is one idea; the flow is ``studies → sources → models → finetune → attention → grounding →
localization/fidelity → stats → tradeoff → plots → batch``, and no module imports one to its right.
"""

__version__ = "0.1.0"
