"""One file for each library: `models()` -> how each of its models is built; it imports the library, or fails to."""

# The name of a file here -> the name of the package that it needs.
PACKAGES = {
    "torchfm": "torchfm",
    "deepctr": "deepctr-torch",
    "fuxictr": "fuxictr",
    "recbole": "recbole",
    "geometric": "torch-geometric",
    "transformers": "transformers",
}
