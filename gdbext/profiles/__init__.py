"""Profiles: what is known of one kernel, as data. TOML in, typed layouts and policies out."""
