"""What runs at the coordinator and never sees a patient's text. Never imports `clients`."""
