"""The modules that have moved: their old names still import, so that objects pickled under them load."""

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED: Mapping[str, str] = {
    f"embcomp.{old}": f"embcomp.{new}"
    for old, new in {
        "bit_stages": "schedule.bit_stages",
        "caches": "compress.caches",
        "held_out": "schedule.held_out",
        "hot_tracker": "schedule.hot_tracker",
        "mask_stages": "schedule.mask_stages",
        "methods.graphhash": "methods.graph",
        "methods.lsh": "methods.graph",
        "methods.semantic_encoder": "methods.semantic",
        "methods.semantic_ids": "methods.semantic",
        "methods.semantic_neighbours": "methods.semantic",
        "methods.soft_graphhash": "methods.graph",
        "reclustering": "schedule.reclustering",
        "regularised": "compress.regularised",
        "remapping": "compress.remapping",
        "report": "compress.report",
        "semantic_ids.checks": "checks",
        "semantic_ids.files": "semantic_ids.tokenizers.files",
        "semantic_ids.nearest": "semantic_ids.tokenizers.nearest",
        "semantic_ids.quality": "semantic_ids.tokenizers.quality",
        "semantic_ids.refine": "semantic_ids.tokenizers.refine",
        "semantic_ids.residual_kmeans": "semantic_ids.tokenizers.residual_kmeans",
        "semantic_ids.resume": "semantic_ids.tokenizers.resume",
        "semantic_ids.rqvae": "semantic_ids.tokenizers.rqvae",
        "semantic_ids.rqvae_training": "semantic_ids.tokenizers.rqvae_training",
        "semantic_ids.sentence_pieces": "semantic_ids.pieces.sentence_pieces",
        "semantic_ids.tokenizer": "semantic_ids.tokenizers.base",
        "semantic_ids.vocabulary": "semantic_ids.pieces.vocabulary",
        "stages": "schedule.stages",
        "torchrec.arguments": "torchrec.collection.arguments",
        "torchrec.assemble": "torchrec.collection.assemble",
        "torchrec.branch": "torchrec.collection.branch",
        "torchrec.collections": "torchrec.collection.modules",
        "torchrec.constraints": "torchrec.sharded.constraints",
        "torchrec.decode": "torchrec.collection.decode",
        "torchrec.encoder": "torchrec.collection.encoder",
        "torchrec.engines": "torchrec.fused.engines",
        "torchrec.facts": "torchrec.sharded.same_on_ranks",
        "torchrec.integers": "torchrec.fused.integers",
        "torchrec.layout": "torchrec.collection.layout",
        "torchrec.look_up": "torchrec.collection.unsharded",
        "torchrec.loss_scale": "torchrec.fused.loss_scale",
        "torchrec.measure": "torchrec.collection.measure",
        "torchrec.optimizer": "torchrec.fused.optimizer",
        "torchrec.sequences": "torchrec.fused.sequences",
        "torchrec.sharding": "torchrec.sharded.shard",
        "torchrec.together": "torchrec.collection.together",
        "torchrec.trained": "torchrec.trainable",
        "warm": "compress.warm",
        "warm_sums": "compress.warm_sums",
        "width_search": "schedule.width_search",
        "width_stages": "schedule.width_stages",
    }.items()
}
"""The old name of a module -> its present one. `embcomp.semantic_ids.pieces` and `embcomp.torchrec.fused` became
folders, whose `__init__` has the names of the module."""


class _Finder(MetaPathFinder, Loader):
    """Comes after all other finders, so that a module that exists under a name is never hidden."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        sys.modules[module.__name__] = import_module(MOVED[module.__name__])


sys.meta_path.append(_Finder())
