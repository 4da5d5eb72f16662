"""Code as bytes: what a guest's entry and exit paths do, read with capstone. Pure: bytes in, facts out.

All bytes come through a ``read(address, length)`` callable (guest virtual addresses); a guest may be hostile or
corrupt, so every walk is bounded and undecodable bytes end a path instead of raising.

* disasm, operands, classify, listing: instructions, what they mean to stacks and contexts, how they are shown
* paths, switches, scan: what the entry points reach; thread switches
* graph, windows: stretches in which a stop finds half-switched state
* values, state, machine, walk: values followed through registers and memory
* savemap, compare: where contexts are put and taken from, and what is wrong with that
* flags_on_entry: which flags of interrupted code reach a handler
"""
