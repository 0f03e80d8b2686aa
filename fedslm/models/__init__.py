"""Base models and the adapters on them: loading, LoRA targets by family, adapter to and from named float32 arrays."""
