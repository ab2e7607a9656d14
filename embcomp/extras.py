"""The advice to give when an import is missing."""

from importlib.metadata import PackageNotFoundError, distribution

DISTRIBUTION = "embcomp-recsys"  # `embcomp` on PyPI is another project


def install(extra: str) -> str:
    """The command that installs the packages of an extra: for the installed embcomp, or for a checkout.

    Example:
        >>> from embcomp.extras import install
        >>> install("graph") in ("pip install 'embcomp-recsys[graph]'", "pip install '.[graph]' in the checkout")
        True
    """
    try:
        distribution(DISTRIBUTION)
    except PackageNotFoundError:
        return f"pip install '.[{extra}]' in the checkout"
    return f"pip install '{DISTRIBUTION}[{extra}]'"
