"""`save_pretrained`, `from_pretrained` and `push_to_hub` for models with compressed tables; needs huggingface_hub."""

from typing import Any

from embcomp import artifact
from embcomp.saving import load, save

_missing: ModuleNotFoundError | None = None
_Mixin: Any = object
try:
    from huggingface_hub import PyTorchModelHubMixin as _Mixin  # pyright: ignore
except ModuleNotFoundError as _error:
    _missing = _error

NAME = "model.safetensors"


class CompressedModelHubMixin(_Mixin):
    """A `PyTorchModelHubMixin` of huggingface_hub for models whose tables `compress_` swaps.

    The plain mixin builds the class with full tables, finds no weights for them in the file, and silently leaves them
    random. This mixin writes `model.safetensors` with `embcomp.save` and reads it with `embcomp.load`. It also reads
    files of the plain mixin.

    Example:
        >>> import torch, embcomp
        >>> from embcomp.hub import CompressedModelHubMixin  # doctest: +SKIP
        >>> class Ranker(torch.nn.Module, CompressedModelHubMixin):  # doctest: +SKIP
        ...     def __init__(self, items: int) -> None:
        ...         super().__init__()
        ...         self.item = torch.nn.Embedding(items, 8)
        >>> model = Ranker(items=1000)  # doctest: +SKIP
        >>> report = embcomp.compress_(model, embcomp.HashingTrick(rows=100))  # doctest: +SKIP
        >>> model.save_pretrained("ranker")  # doctest: +SKIP
        >>> Ranker.from_pretrained("ranker").item  # doctest: +SKIP
        CompressedEmbedding(...)
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        if _missing is not None:
            raise ModuleNotFoundError(f"{_missing}: pip install huggingface_hub safetensors")
        super().__init_subclass__(**kwargs)

    def _save_pretrained(self, save_directory: Any) -> None:
        model: Any = getattr(self, "module", self)
        save(model, save_directory / NAME)

    @classmethod
    def _load_as_safetensor(cls, model: Any, model_file: str, map_location: str, strict: bool) -> Any:
        if not artifact.is_artifact(model_file):
            plain: Any = super()
            return plain._load_as_safetensor(model, model_file, map_location, strict)
        return load(model, model_file).to(map_location)
