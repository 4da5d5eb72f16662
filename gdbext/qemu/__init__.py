"""Starting a guest, talking to its monitor, building and loading the probe."""
