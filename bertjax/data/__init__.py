"""Text to rows: tokenizers, readers, the corpus on disk, sources. Nothing here imports JAX: worker processes use it."""
