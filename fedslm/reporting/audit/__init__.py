"""What an auditor or a data-protection officer reads: costs before a run, a ledger checked, and a report of its spending.

Works on the files a hospital hands out and on public keys; it needs no database, no model and no network.
"""
