"""One file for each library, with a function `models()` that imports it and returns how its models are built."""

# The name of a file here -> the name of the package that it needs.
PACKAGES = {
    "torchfm": "torchfm",
    "deepctr": "deepctr-torch",
    "fuxictr": "fuxictr",
    "recbole": "recbole",
    "geometric": "torch-geometric",
    "transformers": "transformers",
}
