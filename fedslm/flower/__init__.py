"""How the project speaks Flower: the records that messages carry, and every private `flwr` import in one place."""
