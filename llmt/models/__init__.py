"""batches -> logits -> loss."""
