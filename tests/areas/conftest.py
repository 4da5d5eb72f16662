"""Assembly snippets, as the code layer's tests make them."""

from tests.code.conftest import assemble

__all__ = ["assemble"]
