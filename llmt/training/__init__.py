"""batches -> weights."""
