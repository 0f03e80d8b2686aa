"""A whole federation on one machine, with the same objects that a deployment runs."""
