"""Code as bytes: what a guest's entry and exit paths do, read with capstone. Pure: bytes in, facts out.

All bytes come through a ``read(address, length)`` callable (guest virtual addresses); a guest may be hostile or
corrupt, so every walk is bounded and undecodable bytes end a path instead of raising.
"""
