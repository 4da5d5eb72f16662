"""The contexts that were interrupted and are not yet resumed, over all CPUs, and how an exit is held against them."""
