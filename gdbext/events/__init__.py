"""The event row: what every source emits, every rule reads and every recording stores."""
