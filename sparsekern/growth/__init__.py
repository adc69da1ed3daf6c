"""Growth: how the topology of sparse layers changes while they train."""

from sparsekern.growth.base import Growth, LayerUpdate
from sparsekern.growth.gse import GSE
from sparsekern.growth.layers import find_sparse_layers
from sparsekern.growth.observe import ObservedUpdate, Observer
from sparsekern.growth.ranks import RanksDiffer
from sparsekern.growth.rigl import RigL
from sparsekern.growth.schedule import cosine_share
from sparsekern.growth.set import SET
from sparsekern.growth.static import Static

__all__ = [
    "GSE",
    "SET",
    "Growth",
    "LayerUpdate",
    "ObservedUpdate",
    "Observer",
    "RanksDiffer",
    "RigL",
    "Static",
    "cosine_share",
    "find_sparse_layers",
]
