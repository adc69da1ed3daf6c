"""ToST: training a sparse network better, whatever its mask (arXiv 2206.12755).

Four ingredients, each on its own or together: ghost soft neurons and ghost skip connections (:class:`ToST`), layer-wise
re-scaled initialisation (:func:`lrsi`), and label smoothing (:func:`smoothed_cross_entropy`).
"""

from sparsekern.tost.ghosts import ToST, TostReport
from sparsekern.tost.lrsi import LrsiReport, lrsi
from sparsekern.tost.phase import beta_at, coefficient_at
from sparsekern.tost.smoothing import smoothed_cross_entropy

__all__ = [
    "LrsiReport",
    "ToST",
    "TostReport",
    "beta_at",
    "coefficient_at",
    "lrsi",
    "smoothed_cross_entropy",
]
