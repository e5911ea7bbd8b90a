"""documents -> token ids -> batches.

split, audit           which documents are held out; what was read, in numbers
shards, prepare        documents -> token ids in memory-mapped files
order, batch, loader   token ids -> `Iterator[Batch]`
"""
