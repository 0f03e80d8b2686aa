"""Configuration: `schema` says what a setting may be, `checks` what settings contradict, `compose` how Hydra fills them."""
