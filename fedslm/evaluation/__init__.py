"""How good an adapter is. Scores are computed where the data may be read; what leaves a hospital is decided elsewhere."""
