"""Examples and what is done to them before a model sees them. Readers of patient files live in `clients/records`."""
