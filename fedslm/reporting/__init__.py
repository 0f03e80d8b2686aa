"""What a run tells people: the event log, the live view in a terminal, and the reports drawn from both.

Events are public information of the run. Nothing in this package ever holds patients' text, updates or keys.
"""
