"""What a consortium agrees on, by whom, signed how. So far: the run plan."""
