"""What runs inside a hospital and may see patients' text. Never imports `server`."""
