"""What `docs/results.md` states, measured: one module a subject, one command for all (`make bench`)."""
