"""The privacy mechanism and its books: sampling, per-patient clipping, noise, accounting and the ledger."""
